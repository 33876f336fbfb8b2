"""Generators that images can be distilled through: the interface, a small one of our own, its training, its gates."""
