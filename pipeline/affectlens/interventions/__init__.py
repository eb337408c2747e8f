"""What a vector causes: interventions over frames and strengths, effects against controls, and the verdict in words."""
