"""The model families that can be taught: how their folders are read, and where to look inside."""
