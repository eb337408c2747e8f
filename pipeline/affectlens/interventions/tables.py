"""What sampled text says under an intervention: how it reads to probes and how well it is still written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from affectlens.interventions.effects import Judged, is_control, judge
from affectlens.interventions.vector_kinds import STUDIED
from affectlens.model.reading import Site
from affectlens.model.sampling import repetition
from affectlens.model.subject import Subject
from affectlens.probing.methods import Linear, Vocabulary

if TYPE_CHECKING:
    import torch

PLAIN = "plain"
"""The kind of the row that is sampled without intervention."""
SCORES = ("probe", "vocabulary")


@dataclass(frozen=True)
class Reader:
    """Reads finished text with the untouched model and with word counts.

    Attributes:
        subject: the model.
        layer: where the probe reads.
        probe: directions from held-out topics, which built nothing that is injected.
        vocabulary: TF-IDF of the training stories.
    """

    subject: Subject
    layer: int
    probe: Linear
    vocabulary: Vocabulary

    def read(self, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """Each continuation of one prompt by itself.

        Returns:
            ``probe`` and ``vocabulary``: scores of shape ``texts concepts``, each concept against the others, of
            mean residuals over the new tokens and of the words; ``loss``: nats a token under the untouched model;
            ``repetition``: share of three-token runs that repeat.
        """
        import torch

        tokens = self.subject.pad([[*prompt, *text] for text in texts])
        start = self.subject.lead + len(prompt)
        site = Site(self.layer)
        residual = self.subject.activations(tokens, [site])[site][:, start:].float().mean(dim=1)
        with torch.no_grad():
            logits = self.subject.bridge(tokens)[:, start - 1 : -1].float()
        loss = logits.logsumexp(dim=-1) - logits.gather(-1, tokens[:, start:, None])[..., 0]
        words = [self.subject.tokenizer.decode(text) for text in texts]
        return {
            "probe": _against_others(self.probe.scores(_numpy(residual))),
            "vocabulary": _against_others(self.vocabulary.scores(words)),
            "loss": _numpy(loss.mean(dim=1)),
            "repetition": np.array([repetition(text) for text in texts], dtype=np.float32),
        }


def _against_others(scores: Float[np.ndarray, "texts concepts"]) -> Float[np.ndarray, "texts concepts"]:
    others = max(1, scores.shape[1] - 1)
    return (scores - (scores.sum(axis=1, keepdims=True) - scores) / others).astype(np.float32)


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def summarise(
    concepts: Sequence[str],
    kinds: np.ndarray,
    found: Mapping[str, Float[np.ndarray, "vectors openings ..."]],
    generator: np.random.Generator,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Table and metrics of sampled text.

    Args:
        kinds: of each row; one is ``PLAIN``.
        found: what :meth:`Reader.read` gives, averaged over the samples of a vector and an opening.

    Returns:
        One row per concept, vector and score: the rise over text without intervention against that of the controls,
        how much less likely the untouched model finds the text (a ratio of perplexities), and how much it repeats.
    """
    plain = kinds == PLAIN
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    ratio = np.exp((found["loss"] - found["loss"][plain]).mean(axis=1))
    for vector in (kind for kind in dict.fromkeys(kinds.tolist()) if kind in STUDIED):
        mine = kinds == vector
        control = is_control(kinds, vector)
        for score in SCORES:
            rise = found[score] - found[score][plain]
            judged = judge(
                [rise[mine][index, :, index] for index in range(len(concepts))], rise[control].mean(axis=1), generator
            )
            rows += [
                _row(concept, vector, score, judged, index)
                | {
                    "perplexity_ratio": float(ratio[mine][index]),
                    "repetition": float(found["repetition"][mine][index].mean()),
                    "plain_repetition": float(found["repetition"][plain].mean()),
                }
                for index, concept in enumerate(concepts)
            ]
            metrics[f"text_{score}_above_controls_{vector}"] = float(judged.above.mean())
    return rows, metrics


def _row(concept: str, vector: str, score: str, judged: Judged, index: int) -> dict[str, Any]:
    return {
        "concept": concept,
        "vector": vector,
        "score": score,
        "rise": float(judged.effect[index]),
        "low": float(judged.low[index]),
        "high": float(judged.high[index]),
        "control_mean": float(judged.control_mean[index]),
        "control_max": float(judged.control_max[index]),
        "p": float(judged.p[index]),
        "p_adjusted": float(judged.p_adjusted[index]),
        "above_controls": bool(judged.above[index]),
    }
