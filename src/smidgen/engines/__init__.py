"""Engines: what executes a network. `prepare` gives a module that shares the network's parameters."""
