"""Evaluation: what a trained model scores over a whole split."""
