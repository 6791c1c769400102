"""The built-in trials, and finding a trial by name or in a file."""
