"""What is wrong with a manifest, and what train and test share."""
