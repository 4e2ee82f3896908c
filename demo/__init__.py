"""The whole job on packaged real images with tiny models."""
