"""eval/commands."""
