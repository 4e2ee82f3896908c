"""From manifest lines and cache rows to batches."""
