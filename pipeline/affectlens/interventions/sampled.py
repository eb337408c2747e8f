"""What sampled text says under an intervention: how it reads to probes and how well it is still written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from affectlens.interventions.conditions import STUDIED
from affectlens.interventions.config import CausalConfig
from affectlens.interventions.scoring import against_others
from affectlens.interventions.verdicts import judged_rows
from affectlens.model.partial import PartialForward
from affectlens.model.sampling import repetition
from affectlens.model.subject import Subject
from affectlens.probing.methods import Linear, Vocabulary

if TYPE_CHECKING:
    import torch

PLAIN = "plain"
"""The family of the row that is sampled without intervention."""
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
        tokens = self.subject.pad([[*prompt, *text] for text in texts])
        start = self.subject.lead + len(prompt)
        before = range(start - 1, tokens.shape[1] - 1)
        outcome = PartialForward(self.subject, self.layer).run(tokens, None, keep=before, read=[self.layer])
        residual = outcome.residuals[self.layer][:, start:].float().mean(dim=1)
        chosen = outcome.logits.gather(-1, tokens[:, start:, None])[..., 0]
        loss = outcome.logits.logsumexp(dim=-1) - chosen
        words = [self.subject.tokenizer.decode(text) for text in texts]
        return {
            "probe": against_others(self.probe.scores(_numpy(residual))),
            "vocabulary": against_others(self.vocabulary.scores(words)),
            "loss": _numpy(loss.mean(dim=1)),
            "repetition": np.array([repetition(text) for text in texts], dtype=np.float32),
        }


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def summarise(
    kind: Literal["sample", "knockout"],
    concepts: Sequence[str],
    families: np.ndarray,
    scores: Mapping[str, Float[np.ndarray, "vectors openings ..."]],
    config: CausalConfig,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of the table ``samples`` and metrics of one kind of sampled text.

    Args:
        kind: of the text; goes into the names of metrics.
        families: of each row; one is ``PLAIN``.
        scores: what :meth:`Reader.read` gives, averaged over the samples of a vector and an opening.

    Returns:
        One row per concept, vector and score: the rise over text without intervention against that of the controls,
        how much less likely the untouched model finds the text (a ratio of perplexities), and how much it repeats.
    """
    plain = families == PLAIN
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    ratio = np.exp((scores["loss"] - scores["loss"][plain]).mean(axis=1))
    repetition = scores["repetition"].mean(axis=1)
    for vector in STUDIED:
        own = np.flatnonzero(families == vector)
        if not len(own):
            continue
        for score in SCORES:
            judged = judged_rows(concepts, families, vector, scores[score] - scores[score][plain], config)
            for row, index in zip(judged, own, strict=True):
                rise = {"rise" if name == "effect" else name: value for name, value in row.items()}
                rows.append(
                    {"kind": kind, "score": score}
                    | rise
                    | {
                        "perplexity_ratio": ratio[index],
                        "repetition": repetition[index],
                        "plain_repetition": float(repetition[plain].mean()),
                    }
                )
            above = float(np.mean([row["above_controls"] for row in judged]))
            metrics[f"{kind}_text_{score}_above_controls_{vector}"] = above
    return rows, metrics
