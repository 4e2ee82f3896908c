"""The run folder: checkpoints, the best one, loggers, environment."""
