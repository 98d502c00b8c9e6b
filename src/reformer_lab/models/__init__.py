"""Models: configuration, language model, presets."""
