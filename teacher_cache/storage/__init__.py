"""Files of a store: in a local folder, behind a URL, or behind a URL with a local cache."""
