"""Networks as C99: float32, and integers only."""
