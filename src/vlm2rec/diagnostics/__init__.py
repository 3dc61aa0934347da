"""Measurements of how well each modality works: by dropping it from the query, and in the shape of its space."""
