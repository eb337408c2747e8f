"""What Weights & Biases gives no public way to do; ``wandb`` is therefore bounded above in pyproject."""

from __future__ import annotations

from typing import Any


def declare_input(run: Any, draft: Any) -> None:
    """Declare an artifact as an input of an offline run, by its contents.

    The public ``Run.use_artifact`` does just this for a draft in an online run, and refuses offline ones because it
    then waits for the server. The declaration travels in the offline run and is made when that is synced. Tested with
    wandb 0.31.

    Args:
        run: an open offline ``wandb.Run``.
        draft: a ``wandb.Artifact`` with the entries that its maker logged.
    """
    run._log_artifact(draft, aliases=[], is_user_created=True, use_after_commit=True)
