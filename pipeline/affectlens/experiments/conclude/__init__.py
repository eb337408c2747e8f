"""From what was measured to what it amounts to: one module per kind of question, all pure functions."""
