"""Watching a model's state while it answers: rows of scores, statistics over the stream, thresholds and verdicts."""
