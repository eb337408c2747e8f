"""How good a sparse autoencoder is on held-out text, always beside a random one, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from einops import rearrange

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int

    from affectlens.activations import TokenRows
    from affectlens.model.subject import Subject
    from affectlens.sae.model import Dictionary
    from affectlens.sae.recipe import SaeLimits

DENSE = 0.1
"""A feature that is active on more than this share of tokens says little about any of them."""
DENSITY_EDGES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
CHUNK = 1024
LONGEST = 2048
"""Tokens that go through the model at once when cross-entropy is measured; memory grows with the square."""
LEAST_COST = 0.01
"""Nats a token."""
SAME_FEATURE = 0.7
"""Cosine from which two features of different SAEs count as the same (Paulo & Belrose 2025)."""


def measure(sae: Dictionary, rows: TokenRows, chosen: Int[np.ndarray, "n"]) -> dict[str, Any]:
    """Figures on the given rows.

    Returns:
        ``rows``; ``l0``: mean number of active features; ``explained_variance``: 1 - squared error / variance around
        the mean row; ``dead_share``: features that never fire on these rows; ``dense_share``: features active on more
        than a tenth of them; ``density_histogram``: of the features that fire; ``nearest_cosine``: quantiles over
        features of the largest cosine with another feature's decoder row.
    """
    fired = np.zeros(sae.d_sae, dtype=np.int64)
    residual, square, total = 0.0, 0.0, np.zeros(sae.d_model)
    for x in _batches(rows, chosen):
        codes = sae.encode(x)
        fired += (codes > 0).sum(axis=0)
        rebuilt = sae.reconstruct(x) if sae.per_token else sae.decode(codes)
        residual += float(np.square(rebuilt - x, dtype=np.float64).sum())
        total += x.sum(axis=0, dtype=np.float64)
        square += float(np.square(x, dtype=np.float64).sum())
    count = len(chosen)
    variance = square - float(np.square(total).sum()) / count
    density = fired / count
    features, _ = np.histogram(density[density > 0], bins=DENSITY_EDGES)
    nearest = nearest_cosines(sae.decoder)
    return {
        "rows": count,
        "l0": float(fired.sum() / count),
        "explained_variance": 1 - residual / max(variance, 1e-12),
        "dead_share": float((fired == 0).mean()),
        "dense_share": float((density > DENSE).mean()),
        "density_histogram": {"edges": list(DENSITY_EDGES), "features": features.tolist()},
        "nearest_cosine": {str(q): float(np.quantile(nearest, q)) for q in QUANTILES},
    }


def _batches(rows: TokenRows, chosen: Int[np.ndarray, "n"]) -> Iterator[Float[np.ndarray, "chunk d_model"]]:
    for first in range(0, len(chosen), CHUNK):
        yield rows.read(chosen[first : first + CHUNK])


def nearest_cosines(
    decoder: Float[np.ndarray, "features d"], other: Float[np.ndarray, "others d"] | None = None
) -> Float[np.ndarray, "features"]:
    """For each row the largest cosine with a row of ``other``; with another row of its own when that is left out."""
    ours = _unit(decoder)
    theirs = ours if other is None else _unit(other)
    found = np.empty(len(ours), dtype=np.float32)
    for first in range(0, len(ours), CHUNK):
        cosines = ours[first : first + CHUNK] @ theirs.T
        if other is None:
            index = np.arange(len(cosines))
            cosines[index, first + index] = -1.0
        found[first : first + CHUNK] = cosines.max(axis=1)
    return found


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def agreement(saes: Sequence[Dictionary]) -> dict[str, float]:
    """How far SAEs that differ in their seed alone hold the same features.

    Returns:
        ``matched_share``: mean over ordered pairs of the share of features with a counterpart of cosine at least 0.7;
        ``median_cosine``: mean over pairs of the median cosine with the closest counterpart.
    """
    pairs = [(a, b) for a in saes for b in saes if a is not b]
    cosines = [nearest_cosines(a.decoder, b.decoder) for a, b in pairs]
    return {
        "matched_share": float(np.mean([(each >= SAME_FEATURE).mean() for each in cosines])),
        "median_cosine": float(np.mean([np.median(each) for each in cosines])),
    }


def cross_entropies(
    subject: Subject,
    layer: int,
    texts: Sequence[Sequence[int]],
    replacements: Mapping[str, Any],
    progress: Any = lambda units: None,
) -> dict[str, float]:
    """Mean next-token cross-entropy in nats with the residual stream of text tokens replaced.

    Args:
        subject: the whole model.
        layer: where the residual stream is replaced, after the block.
        texts: token ids of each text, without special tokens. Begin tokens stay untouched.
        replacements: name -> function from residual rows (numpy, float32, ``tokens d_model``) to rows.

    Returns:
        ``clean`` (nothing replaced) and one figure for each name; the same predictions are counted for all.
    """
    from affectlens.model.subject import hook_name

    sums = dict.fromkeys(["clean", *replacements], 0.0)
    count = 0
    # A text longer than the model's context goes through in pieces, each with a begin token of its own.
    limit = min(subject.context or LONGEST, LONGEST) - subject.lead
    for piece in (piece for text in texts for piece in _pieces(text, limit)):
        tokens = subject.pad([piece])
        for name in sums:
            hooks = []
            if name != "clean":
                hooks = [(hook_name(layer), _replacing(replacements[name], subject.lead))]
            logs = subject.log_probabilities(tokens, hooks)
            sums[name] -= float(_log_likelihood(logs, tokens, subject.lead))
        count += len(piece) - 1
        progress(len(piece))
    return {name: total / count for name, total in sums.items()}


def _pieces(text: Sequence[int], limit: int) -> list[Sequence[int]]:
    """Stretches of a text of at most ``limit`` tokens; a last one of a single token predicts nothing."""
    pieces = [text[first : first + limit] for first in range(0, len(text), limit)]
    return [piece for piece in pieces if len(piece) > 1]


def _replacing(function: Any, lead: int) -> Any:
    import torch

    def hook(value: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = rearrange(value[:, lead:], "texts tokens d -> (texts tokens) d").float().cpu().numpy()
        changed = value.clone()
        new = torch.from_numpy(function(rows)).to(value)
        changed[:, lead:] = rearrange(new, "(texts tokens) d -> texts tokens d", texts=len(value))
        return changed

    return hook


def _log_likelihood(logs: torch.Tensor, tokens: torch.Tensor, lead: int) -> torch.Tensor:
    """Sum over the text tokens that are predicted from a text token."""
    predicted = tokens[:, lead + 1 :]
    return logs[:, lead:-1].gather(2, predicted[:, :, None]).sum()


def recovered(entropies: Mapping[str, float], name: str) -> float | None:
    """Share of what replacing rows by their mean costs that reconstructions give back; 1 is perfect, 0 is useless.

    Mean ablation is a stricter zero than the more common ablation to the zero vector, which language models suffer
    from far more. None where it costs less than ``LEAST_COST``: then there is nothing to be given back.
    """
    cost = entropies["mean"] - entropies["clean"]
    return (entropies["mean"] - entropies[name]) / cost if cost >= LEAST_COST else None


@dataclass(frozen=True)
class Fault:
    """Something wrong with an SAE.

    Attributes:
        text: a clause that goes on after "This SAE is weak, because".
        grave: whether its features are no evidence at all.
    """

    text: str
    grave: bool = False


def faults(health: Mapping[str, Any], limits: SaeLimits) -> list[Fault]:
    """Where the figures of an SAE are beyond its limits.

    Args:
        health: what ``health.json`` holds.
        limits: the study's section ``sae.limits``.
    """
    random, listed = health["random"], []
    dead, dense, variance = health["dead_share"], health["dense_share"], health["explained_variance"]
    if dead > limits.dead_share:
        text = f"{_percent(dead)} of its features never fire on the held-out text"
        listed.append(Fault(text, grave=dead > limits.grave_dead_share))
    if variance < random["explained_variance"] + limits.margin_over_random:
        listed.append(Fault("it reconstructs hardly better than random features do", grave=True))
    elif variance < limits.explained_variance:
        text = f"it explains only {_percent(max(0.0, variance))} of the variance"
        listed.append(Fault(text, grave=variance < limits.grave_explained_variance))
    if dense > limits.dense_share:
        listed.append(Fault(f"{_percent(dense)} of its features are active on more than a tenth of all tokens"))
    if health["l0"] > limits.active_share * health["width"]:
        listed.append(
            Fault(f"{health['l0']:.0f} of {health['width']} features are active at once, which is not sparse")
        )
    recovered = health.get("ce_recovered")
    if recovered is not None and recovered < limits.ce_recovered:
        share = _percent(max(0.0, recovered))
        listed.append(Fault(f"the model keeps only {share} of its predictions when reading through it"))
    if health.get("agreement", {}).get("matched_share", 1.0) < limits.matched_share:
        share = _percent(health["agreement"]["matched_share"])
        listed.append(Fault(f"only {share} of its features come back under another seed"))
    return listed


def verdict(found: Sequence[Fault]) -> Literal["sound", "weak", "bad"]:
    """One word for the faults of an SAE."""
    return "bad" if any(fault.grave for fault in found) else "weak" if found else "sound"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 or share == 0 else f"{100 * share:.1f}%"
