"""Networks lowered from the graph: fused, in integers, in the memory of a microcontroller."""
