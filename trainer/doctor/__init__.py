"""What would fail, said before anything is spent: `medalign doctor`."""
