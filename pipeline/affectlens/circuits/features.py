"""Which SAE features of the cached layer carry the effect, with what the SAE does not explain as one unit.

Leaving the error out makes any circuit of features fail (Marks et al. 2024, "Sparse feature circuits"); here it is a
unit that keeps its place, and features and error together are all of the residual stream at the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from affectlens.circuits.bench import EXACT
from affectlens.errors import UserError
from affectlens.sae.model import token_scale

if TYPE_CHECKING:
    from jaxtyping import Float

    from affectlens.circuits.bench import Bench
    from affectlens.sae.model import Dictionary

    Values = Float[np.ndarray, "positions features"]


@dataclass(frozen=True)
class Coded:
    """A residual stream as the SAE has it: what features write per decoder row, and what is left.

    Attributes:
        codes: of each feature, the scale of the token included.
        error: the residual less what the SAE makes of it.
    """

    codes: Values
    error: Float[np.ndarray, "positions d_model"]


def coded(sae: Dictionary, residual: Float[np.ndarray, "positions d_model"]) -> Coded:
    """Features and error of residual rows."""
    import torch

    scale = np.asarray(token_scale(sae.load(), torch.from_numpy(residual)), dtype=np.float32)
    codes = sae.encode(residual) * scale
    return Coded(codes, residual - sae.reconstruct(residual))


def topic_codes(bench: Bench, sae: Dictionary, topic: str, layer: int) -> Coded:
    """Reference values of features and error: means over the contexts of a topic, position by position."""
    codes, error, count = 0.0, 0.0, 0
    for _, recorded in bench.record_topic(topic):
        one = coded(sae, recorded.residual[layer + 1].cpu().numpy())
        codes, error, count = codes + one.codes.astype(np.float64), error + one.error.astype(np.float64), count + 1
    return Coded(np.asarray(codes) / count, np.asarray(error) / count)


def feature_effects(
    own: Coded,
    reference: Coded,
    decoder: Float[np.ndarray, "features d_model"],
    gradient: Float[np.ndarray, "positions d_model"],
    whole: float,
) -> tuple[Float[np.ndarray, "features"], float]:
    """What each feature's difference from its reference adds to a figure by its gradient, and what the error adds.

    Args:
        own: of the text.
        reference: as :func:`topic_codes` gives them.
        decoder: a row a feature.
        gradient: of the figure to the residual stream at the layer.
        whole: the same of the residual stream itself.

    Raises:
        UserError: features and error do not sum to it.
    """
    along = gradient @ decoder.T
    features = ((own.codes - reference.codes) * along).sum(axis=0)
    error = float(((own.error - reference.error) * gradient).sum())
    if abs(features.sum() + error - whole) > EXACT * max(1.0, np.abs(features).sum()):
        raise UserError(
            f"`circuits`: features and error sum to {features.sum() + error:.4f}, the residual stream to {whole:.4f}; "
            "this SAE writes otherwise than by its decoder, so set `circuits.feature_contexts: 0`"
        )
    return features.astype(np.float32), error
