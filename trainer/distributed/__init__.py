"""trainer/distributed."""
