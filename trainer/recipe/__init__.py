"""trainer/recipe."""
