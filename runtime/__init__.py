"""The ground floor: files, signals, processes, progress. Knows nothing of medalign."""
