"""teacher_cache/format."""
