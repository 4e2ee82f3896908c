"""Recipes: sections, composition, the paper's rows, cost and the generated reference."""
