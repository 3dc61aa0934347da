"""The stages of `vlm2rec.data.prepare`: a log as numbers, clean tables, what survives, a directory written."""
