"""Command line of train, student, export, doctor and recipes."""
