"""From files on disk to a filled teacher cache: manifest, pixels, geometry, expert, build."""
