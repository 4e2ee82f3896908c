"""One HTML file that shows scores, answers and attention, and needs nothing beside it."""
