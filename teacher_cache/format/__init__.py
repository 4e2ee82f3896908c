"""Zarr arrays and sharded files, written and read row by row."""
