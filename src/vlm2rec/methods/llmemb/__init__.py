"""LLMEmb (arXiv 2409.19925): items as attributes, and the method."""
