"""Rows of a monitor: everything that is read of a state at a token, in one matrix product.

A row is a direction of the residual stream: a concept, valence or arousal, an encoder row of a feature, a trained
probe, or a control that means nothing. All of them are standardised on benign tokens, so that one drift, one threshold
rule and one picture serve all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from affectlens.monitor.probes import Probe
from affectlens.probing import control_vectors
from affectlens.probing.methods import without

if TYPE_CHECKING:
    from affectlens.sae.model import Dictionary

CONTROLS = ("isotropic", "covariance", "permuted")
"""Families of random rows, each as large as the others."""


@dataclass(frozen=True)
class Rows:
    """Rows that read one layer.

    Attributes:
        names: unique.
        families: ``concept``, ``axis``, ``feature``, ``probe``, ``control``, ...
        weights: of each.
        offset: added to the product.
        rectified: whether what is below zero counts as zero, as of a feature.
        mean: of benign tokens.
        deviation: of benign tokens.
    """

    names: tuple[str, ...]
    families: tuple[str, ...]
    weights: Float[np.ndarray, "rows d_model"]
    offset: Float[np.ndarray, " rows"]
    rectified: Bool[np.ndarray, " rows"]
    mean: Float[np.ndarray, " rows"]
    deviation: Float[np.ndarray, " rows"]

    @classmethod
    def of(
        cls,
        family: str,
        vectors: Mapping[str, Float[np.ndarray, "d_model"]],
        offset: Sequence[float] | None = None,
        *,
        rectified: bool = False,
    ) -> Rows:
        """Rows of one family, not standardised yet."""
        count = len(vectors)
        return cls(
            tuple(vectors),
            (family,) * count,
            np.stack(list(vectors.values())).astype(np.float32),
            np.zeros(count) if offset is None else np.asarray(offset, dtype=float),
            np.full(count, rectified),
            np.zeros(count),
            np.ones(count),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Rows) -> Rows:
        joined = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("weights", "offset", "rectified", "mean", "deviation")
        }
        return Rows(self.names + other.names, self.families + other.families, **joined)

    def only(self, names: Sequence[str]) -> Rows:
        """Some of the rows, in the order of their names."""
        places = [self.names.index(name) for name in names]
        arrays = {name: getattr(self, name)[places] for name in ("weights", "offset", "rectified", "mean", "deviation")}
        return Rows(tuple(names), tuple(self.families[place] for place in places), **arrays)

    def values(self, states: Float[np.ndarray, "*tokens d_model"]) -> Float[np.ndarray, "*tokens rows"]:
        """As they are read, in one product."""
        found = states @ self.weights.T + self.offset
        return np.where(self.rectified, np.maximum(found, 0), found) if self.rectified.any() else found

    def scores(self, states: Float[np.ndarray, "*tokens d_model"]) -> Float[np.ndarray, "*tokens rows"]:
        """In standard deviations of benign tokens above their mean."""
        return (self.values(states) - self.mean) / self.deviation

    def standardised(self, benign: Sequence[Float[np.ndarray, "tokens d_model"]]) -> Rows:
        """The same with the mean and deviation of benign tokens, each episode counting alike.

        Raises:
            ValueError: no episode.
        """
        mean, deviation = moments([self.values(states) for states in benign])
        return replace(self, mean=mean, deviation=deviation)


def moments(
    episodes: Sequence[Float[np.ndarray, "tokens rows"]],
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Mean and standard deviation over tokens, each episode counting alike; a constant has deviation 1."""
    if not episodes:
        raise ValueError("no benign episode to standardise on")
    mean = np.mean([values.mean(axis=0, dtype=np.float64) for values in episodes], axis=0)
    square = np.mean([((values - mean) ** 2).mean(axis=0, dtype=np.float64) for values in episodes], axis=0)
    return mean, np.where(square > 1e-18, np.sqrt(square), 1.0)


def probe_rows(probes: Mapping[str, Probe]) -> Rows:
    """Trained probes; their value is a logit."""
    return Rows.of("probe", {n: p.weights for n, p in probes.items()}, [p.offset for p in probes.values()])


def feature_rows(sae: Dictionary, features: Mapping[str, int]) -> Rows | None:
    """Encoder rows of chosen features: what each of them is before the SAE keeps the largest alone.

    None for an SAE that normalises each token: its activations are no product of the state.
    """
    module: Any = sae.load()
    if sae.per_token:
        return None
    encoder = module.W_enc.detach().float().cpu().numpy()
    bias = getattr(module, "b_enc", None)
    bias = np.zeros(encoder.shape[1]) if bias is None else bias.detach().float().cpu().numpy()
    if getattr(module.cfg, "apply_b_dec_to_input", True):
        bias = bias - module.b_dec.detach().float().cpu().numpy() @ encoder
    vectors = {name: encoder[:, feature] for name, feature in features.items()}
    return Rows.of("feature", vectors, [bias[feature] for feature in features.values()], rectified=True)


def control_rows(
    concepts: Mapping[str, Float[np.ndarray, "d_model"]],
    benign: Float[np.ndarray, "tokens d_model"],
    count: int,
    generator: np.random.Generator,
    claimed: Sequence[str] = (),
) -> Rows:
    """Rows that mean nothing in particular, without what they share with the concepts.

    Args:
        concepts: directions at norm 1.
        benign: states whose covariance one family has.
        count: of each random family.
        generator: of the draws.
        claimed: concepts that a claim is about; every other one serves as a wrong emotion, less what it shares with
            these.
    """
    vectors = np.stack(list(concepts.values())).astype(np.float64)
    # Columns of the subspace that the concepts span: what is left is at right angles to every one of them.
    values, basis = np.linalg.svd(vectors, full_matrices=False)[1:]
    basis = basis[values > 1e-6 * values[0]]
    if len(basis) > vectors.shape[1] // 2:  # more concepts than the stream is wide: their main half
        basis = basis[: vectors.shape[1] // 2]
    families = (
        control_vectors.isotropic(count, vectors.shape[1], generator),
        control_vectors.covariance_matched(count, benign.astype(np.float64), generator),
        control_vectors.permuted(count, vectors, generator),
    )
    found = {
        f"{family}:{number + 1}": row
        for family, drawn in zip(CONTROLS, families, strict=True)
        for number, row in enumerate(control_vectors.unit_rows(without(drawn, basis)))
    }
    rows = Rows.of("control", found)
    own = [concepts[name] for name in claimed if name in concepts]
    if own and len(concepts) > len(own):
        plane = np.linalg.qr(np.stack(own).astype(np.float64).T)[0].T
        others = {f"wrong:{name}": row for name, row in concepts.items() if name not in claimed}
        left = control_vectors.unit_rows(without(np.stack(list(others.values())).astype(np.float64), plane))
        rows = rows + Rows.of("wrong_emotion", dict(zip(others, left, strict=True)))
    return rows
