"""`smidgen bench`: training speed, in images/s over whole training steps."""
