"""Explanations of features in words: written by a model from some topics, scored by a judge on others."""
