"""Vision-language embedders for sequential recommendation (VLM2Rec, arXiv 2603.17450)."""

__version__ = "0.1.0"
