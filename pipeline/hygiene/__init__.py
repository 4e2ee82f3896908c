"""pipeline/hygiene."""
