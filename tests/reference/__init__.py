"""Slow, independent re-implementations that the library is checked against."""
