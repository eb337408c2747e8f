"""The losses of shaping: answers learnt, answers preferred, a projection brought to a set-point.

Nothing here knows of models: log-probabilities and projections come in, a number comes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from affectlens.model.tuning import UNSEEN

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def answer_log_probs(
    logits: Float[Tensor, "rows tokens vocabulary"], labels: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows"]:
    """Log-probability in nats of each row's learnt tokens together; ``UNSEEN`` labels do not count."""
    import torch

    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=UNSEEN, reduction="none"
    )
    return -flat.view(labels.shape).sum(dim=1)


def dpo_loss(
    chosen: Float[Tensor, "pairs"],
    rejected: Float[Tensor, "pairs"],
    base_chosen: Float[Tensor, "pairs"],
    base_rejected: Float[Tensor, "pairs"],
    beta: float,
) -> Float[Tensor, ""]:
    """-log sigmoid of the margin, mean over pairs (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

    Args:
        chosen: log-probability in nats of each preferred answer under the model that learns.
        rejected: of the other answer.
        base_chosen: of the preferred answer under the model where training started.
        base_rejected: of the other one there.
        beta: how much divergence from that model costs.
    """
    import torch

    return -torch.nn.functional.logsigmoid(dpo_margin(chosen, rejected, base_chosen, base_rejected, beta)).mean()


def dpo_margin(
    chosen: Float[Tensor, "pairs"],
    rejected: Float[Tensor, "pairs"],
    base_chosen: Float[Tensor, "pairs"],
    base_rejected: Float[Tensor, "pairs"],
    beta: float,
) -> Float[Tensor, "pairs"]:
    """By how much the implied reward of the preferred answer is larger; 0 where nothing was learnt."""
    return beta * ((chosen - base_chosen) - (rejected - base_rejected))


def set_point_loss(
    shifts: Float[Tensor, "layers rows tokens"], counted: Bool[Tensor, "rows tokens"], dose: float
) -> Float[Tensor, ""]:
    """Mean squared distance of the shift from its dose, over layers and the tokens that count.

    What the model says is in no term: anchoring its output to the base teaches later layers to take the shift back.

    Args:
        shifts: of the projection against the base model's at the same token, in standard deviations of benign tokens.
        counted: tokens of answers.
        dose: where the shift is to be.
    """
    return (shifts[:, counted] - dose).square().mean()
