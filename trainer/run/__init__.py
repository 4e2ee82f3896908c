"""trainer/run."""
