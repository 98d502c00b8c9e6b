"""Training: configuration of a run, the loop, optimisers, checkpoints, records."""
