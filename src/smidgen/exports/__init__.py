"""Trained networks taken elsewhere, each export checked against the network over all test images."""
