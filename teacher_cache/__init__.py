"""The teacher cache on disk: schema, writer, reader, audit. Knows arrays, not models."""
