"""Schedulers that do not learn by trial."""
