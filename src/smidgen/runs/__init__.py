"""Runs: a trial trained with one seed, and the directory that it leaves."""
