"""What a vector causes: trials over frames and strengths, effects against controls, and the verdict in words."""
