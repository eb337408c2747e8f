"""AffectLens: measure how a language model represents emotion concepts, and what those representations cause."""

__version__ = "0.1.0"
