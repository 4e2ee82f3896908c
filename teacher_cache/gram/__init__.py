"""The gram codec: similarity matrices within a stated error, 8 to 90 times smaller."""
