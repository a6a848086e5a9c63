"""LAD-TS and its learned rivals, all agents and seeds of a slot in one batch."""
