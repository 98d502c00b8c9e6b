"""Other libraries and their checkpoints; imported when asked for."""
