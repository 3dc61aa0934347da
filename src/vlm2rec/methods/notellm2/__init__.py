"""NoteLLM-2 (arXiv 2405.16789): pairs of items, the model that embeds their records, and the method."""
