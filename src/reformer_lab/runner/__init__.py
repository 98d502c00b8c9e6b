"""Runs the arms of experiments: each once, trainings side by side, measurements alone, resumable at any instant."""
