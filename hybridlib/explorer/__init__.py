"""Notebook 00: hybrid inference and the edge to touch; what they compute works without a browser."""
