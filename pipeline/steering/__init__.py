"""Acting on the residual stream: pure interventions, hooks that cannot leak, generation, whole grids in one batch."""
