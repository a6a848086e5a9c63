"""Hybrid inference: shared public steps, personal endings, and the quality that remains."""
