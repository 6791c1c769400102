"""Lowered networks written in C."""
