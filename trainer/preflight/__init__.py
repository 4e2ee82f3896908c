"""trainer/preflight."""
