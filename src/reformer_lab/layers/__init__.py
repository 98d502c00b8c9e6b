"""Layers: nn.Modules over `reformer_lab.ops`."""
