"""Where a store lies: a local folder, a URL, or a URL through a local cache."""
