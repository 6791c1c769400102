"""What a network is: typed operations, traced from any module; folding, costs and activations."""
