"""Measures what answering costs; reads models and images, writes nothing."""
