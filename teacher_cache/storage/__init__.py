"""teacher_cache/storage."""
