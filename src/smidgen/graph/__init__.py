"""Networks as graphs of typed operations: tracing, folding, costs and activations."""
