"""eval/figures."""
