"""Circuits: which heads, neurons and features write a reading, and which make the model say the word."""
