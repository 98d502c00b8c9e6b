"""Tokenizers that need no other library. Those of transformers: integrations/huggingface_tokenizers.py."""
