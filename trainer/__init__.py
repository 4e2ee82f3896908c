"""Train a student against a teacher cache: recipe, student, batches, losses, loop."""
