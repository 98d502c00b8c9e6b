"""Data: from files, or from a seed alone, to batches of tokens."""
