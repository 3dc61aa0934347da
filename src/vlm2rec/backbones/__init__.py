"""Backbones from transformers: loading, eyes, adapters, and the two small ones."""
