"""Weights & Biases behind one interface; nothing else in the package knows it."""
