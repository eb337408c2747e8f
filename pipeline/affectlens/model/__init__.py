"""The model under study: loading, tokens, reading residuals, partial forward passes, sampling and steering hooks."""
