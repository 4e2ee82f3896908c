"""Loss curves, attention overlays and rows of a cache, as PNG, PDF and SVG."""
