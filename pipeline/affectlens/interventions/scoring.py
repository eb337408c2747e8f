"""What an intervention does to the next word: concept words against each other, divergence, perplexity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from affectlens.interventions.frames import read_frames
from affectlens.model.partial import Outcome, PartialForward
from affectlens.model.steering import Edit, Span, add, project_out, set_features
from affectlens.model.words import ConceptWords

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from affectlens.model.steering import Encode, Scale

Values = TypeVar("Values", bound=Any)
EditsOf = Callable[[slice, int], Sequence[Edit]]
"""The edits of a run of rows in a text of so many positions; within them rows count from the run's first."""
Positions = Literal["all", "last"]
LOGITS_SHARE = 4
"""How many times fewer tokens go together where the logits of all of them are looked at."""


def reach(positions: Positions, rows: int, width: int, lead: int) -> Span:
    """Where texts of ``width`` positions are changed: all of the text, or from its last position on."""
    return Span.text(rows, lead) if positions == "all" else Span.onward(rows, width - 1)


def injection(
    vectors: Float[Tensor, "rows d_model"],
    doses: Float[Tensor, "rows"],
    units: Mapping[int, float],
    lead: int,
    positions: Positions = "all",
) -> EditsOf:
    """Each row pushed along its own vector.

    Args:
        vectors: at norm 1.
        doses: strengths.
        units: per layer of the push what strength 1 means there.
        lead: positions before the text.
    """

    def edits(run: slice, width: int) -> list[Edit]:
        span = reach(positions, run.stop - run.start, width, lead)
        return [
            Edit(layer, partial(add, direction=vectors[run], strength=doses[run], unit=unit), span=span)
            for layer, unit in units.items()
        ]

    return edits


def direction_removal(
    direction: Float[Tensor, "d_model"],
    along: Float[Tensor, "rows d_model"],
    centres: Mapping[int, Float[Tensor, "d_model"]],
    lead: int,
    positions: Positions = "all",
) -> EditsOf:
    """Each row loses what it has along one direction: along the direction itself, or along a control.

    Args:
        along: the direction in the first row, then controls, all at norm 1.
        centres: per layer what is taken off before projecting.
    """
    import torch

    def edits(run: slice, width: int) -> list[Edit]:
        rows = run.stop - run.start
        own, strength = direction.expand(rows, -1), torch.ones(rows, device=direction.device)
        return [
            Edit(
                layer,
                partial(project_out, direction=own, centre=centre, strength=strength, along=along[run]),
                span=reach(positions, rows, width, lead),
            )
            for layer, centre in centres.items()
        ]

    return edits


def feature_removal(
    layer: int,
    encode: Encode,
    features: Int[Tensor, "k"],
    decoders: Float[Tensor, "rows k d_model"],
    values: Float[Tensor, "k"],
    lead: int,
    positions: Positions = "all",
    scale: Scale | None = None,
) -> EditsOf:
    """Each row has the same features set to the same codes, written by their decoder rows or by controls.

    Args:
        decoders: the features' own in the first row, then controls of the same geometry.
        values: the codes they get.
        scale: as in :func:`set_features`.
    """
    import torch

    def edits(run: slice, width: int) -> list[Edit]:
        rows = run.stop - run.start
        delta = partial(
            set_features,
            encode=encode,
            features=features.expand(rows, -1),
            decoder=decoders[run],
            values=values.expand(rows, -1),
            strength=torch.ones(rows, device=values.device),
            scale=scale,
        )
        return [Edit(layer, delta, span=reach(positions, rows, width, lead))]

    return edits


@dataclass(frozen=True)
class Readout:
    """How strongly directions are present at a layer above the intervention.

    Attributes:
        layer: where is read.
        centre: taken off first.
        directions: unit directions, one a concept.
        scale: mean residual norm of the layer, by which readings are divided.
    """

    layer: int
    centre: Float[Tensor, "d_model"]
    directions: Float[Tensor, "concepts d_model"]
    scale: float

    def of(self, residual: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows concepts"]:
        """Readings of residuals, in mean residual norms."""
        return (residual.float() - self.centre) @ self.directions.T / self.scale


@dataclass(frozen=True)
class Context:
    """A text whose next token is looked at, run once without intervention.

    Attributes:
        tokens: its ids, with the begin token.
        residual: the residual stream after the layer from which runs resume.
        log_probabilities: of the next token.
        reading: of the readout at the last position, if there is one.
    """

    tokens: Int[Tensor, "one positions"]
    residual: Float[Tensor, "one positions d_model"]
    log_probabilities: Float[Tensor, "vocabulary"]
    reading: Float[Tensor, "one concepts"] | None


@dataclass(frozen=True)
class Scores:
    """What happened to the next token in one context, one row per intervention.

    Attributes:
        effect: change in a concept's words against the other concepts' words, in nats.
        divergence: KL of the next-token distribution from the one without intervention, in nats.
        reading: change of each concept's reading downstream against the others', if there is a readout.
    """

    effect: Float[np.ndarray, "rows concepts"]
    divergence: Float[np.ndarray, "rows"]
    reading: Float[np.ndarray, "rows concepts"] | None


class Scorer:
    """Scores interventions by the words of the studied concepts.

    Attributes:
        upper: the model, from the layer of the interventions up.
        words: the scored words of each concept.
        tokens_per_batch: most tokens that go through the model at once.
        readout: what is read downstream, if anything.
    """

    def __init__(
        self,
        upper: PartialForward,
        words: Sequence[ConceptWords],
        tokens_per_batch: int,
        readout: Readout | None = None,
    ) -> None:
        import torch

        self.upper = upper
        self.words = words
        self.tokens_per_batch = tokens_per_batch
        self.readout = readout
        device = upper.subject.device
        self._ids = torch.tensor([token for concept in words for token in concept.tokens], device=device)
        self._means = torch.zeros(len(self._ids), len(words), device=device)
        start = 0
        for column, concept in enumerate(words):
            self._means[start : start + len(concept.tokens), column] = 1 / len(concept.tokens)
            start += len(concept.tokens)

    def context(self, text: str) -> Context:
        """A text, read once."""
        import torch

        tokens = self.upper.subject.pad([self.upper.subject.encode(text)])
        residual = self.upper.lower(tokens)
        outcome = self.upper.run(tokens, residual, read=self._read)
        return Context(tokens, residual, torch.log_softmax(outcome.logits[0, -1], dim=-1), self._readings(outcome))

    def contrast(self, log_probabilities: Float[Tensor, "rows vocabulary"]) -> Float[np.ndarray, "rows concepts"]:
        """Mean log-probability of each concept's words less that of the other concepts' words.

        The mean over words is taken within a concept first, so that a concept with many words weighs no more.
        """
        return _numpy(against_others(log_probabilities[:, self._ids] @ self._means))

    def score(self, context: Context, rows: int, edits: EditsOf) -> Scores:
        """Each of ``rows`` interventions in one context."""
        import torch

        base, width = context.log_probabilities, context.tokens.shape[1]
        effects, divergence, readings = [], [], []
        for run in self._runs(rows, width):
            count = run.stop - run.start
            tokens, residual = context.tokens.expand(count, -1), context.residual.expand(count, -1, -1)
            outcome = self.upper.run(tokens, residual, edits(run, width), read=self._read)
            change = torch.log_softmax(outcome.logits[:, -1], dim=-1) - base
            effects.append(against_others(change[:, self._ids] @ self._means))
            divergence.append(-(base.exp() * change).sum(dim=-1))
            reading = self._readings(outcome)
            if reading is not None and context.reading is not None:
                readings.append(against_others(reading - context.reading))
        reading = _numpy(torch.cat(readings)) if readings else None
        return Scores(_numpy(torch.cat(effects)), _numpy(torch.cat(divergence)), reading)

    @property
    def _read(self) -> list[int]:
        return [self.readout.layer] if self.readout else []

    def _readings(self, outcome: Outcome) -> Float[Tensor, "rows concepts"] | None:
        """The readout at the last position, if there is one."""
        return self.readout.of(outcome.residuals[self.readout.layer][:, -1]) if self.readout else None

    def losses(self, text: Sequence[int], rows: int, edits: EditsOf | None) -> Float[np.ndarray, "rows"]:
        """Mean negative log-probability of a text's tokens under each of ``rows`` interventions, in nats a token."""
        import torch

        tokens = self.upper.subject.pad([text])
        residual, width = self.upper.lower(tokens), tokens.shape[1]
        losses = []
        # Logits of every position are kept at once here, hundreds of kilobytes each, so fewer rows go together.
        for run in self._runs(rows, LOGITS_SHARE * width):
            count = run.stop - run.start
            made = edits(run, width) if edits else ()
            logits = self.upper.run(tokens.expand(count, -1), residual.expand(count, -1, -1), made, keep=None).logits
            target = tokens[:, 1:, None].expand(count, -1, -1)
            chosen = logits[:, :-1].gather(-1, target)[..., 0] - logits[:, :-1].logsumexp(dim=-1)
            losses.append(-chosen.mean(dim=-1))
        return _numpy(torch.cat(losses))

    def _runs(self, rows: int, width: int) -> Iterator[slice]:
        step = max(1, self.tokens_per_batch // width)
        for start in range(0, rows, step):
            yield slice(start, min(rows, start + step))


def perplexity_ratios(scorer: Scorer, edits: EditsOf, rows: int, texts: int) -> Float[np.ndarray, "rows"]:
    """Perplexity under each of ``rows`` interventions on the first neutral texts, as a multiple of what it is without.

    Perplexity is of all tokens of the texts together.
    """
    import numpy as np

    encoded = [scorer.upper.subject.encode(text) for text in read_frames()["neutral"][:texts]]
    gained = [scorer.losses(text, rows, edits) - scorer.losses(text, 1, None) for text in encoded]
    return np.exp(np.average(gained, axis=0, weights=[len(text) for text in encoded])).astype(np.float32)


def against_others(own: Values) -> Values:
    """What each concept (last axis) has more than the mean of the others; of tensors and of arrays."""
    total = own.sum(axis=-1, keepdims=True)
    return own - (total - own) / max(1, own.shape[-1] - 1)


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
