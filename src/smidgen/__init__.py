"""smidgen."""
