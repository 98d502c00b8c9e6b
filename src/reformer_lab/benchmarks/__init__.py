"""Measurements of time and memory: what the experiments record and what `reformer-lab bench` prints."""
