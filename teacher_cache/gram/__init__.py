"""teacher_cache/gram."""
