"""Captioned scenes, and the models trained on them that ship in `data/models/`."""
