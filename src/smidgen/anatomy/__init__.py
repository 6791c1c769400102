"""Anatomy: what a network is made of."""
