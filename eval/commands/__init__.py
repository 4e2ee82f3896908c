"""Command line of eval and bench."""
