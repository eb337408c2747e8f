"""Sparse autoencoders: recipe, training, fast path, loading and health. ``stages/sae.py`` ties them to a study."""
