"""Command line of cache and data."""
