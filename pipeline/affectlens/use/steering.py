"""A model steered by a study's own vectors: concepts, valence and arousal, and SAE features.

Four things may be done along a vector, at every token of the prompt and of the answer: **add** it, project it **out**,
**clamp** what the residual stream has of it to a value, or **cap** it there. Amounts of concepts and axes are shares of
the mean residual norm, the unit in which texts are read, too; features are clamped and capped in the SAE's activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from affectlens.config import nearest
from affectlens.errors import UserError
from affectlens.model import steering
from affectlens.model.sampling import losses, stream
from affectlens.model.steering import Edit, Span
from affectlens.sae.model import token_scale
from affectlens.use.modulating import CIRCUIT, Circuits, joined
from affectlens.use.opened import Opened
from affectlens.use.readings import FEATURE, Readings
from affectlens.use.texts import Messages, Pieces, tokenised

if TYPE_CHECKING:
    from jaxtyping import Float

Action = Literal["add", "out", "clamp", "cap"]
TOKENS_PER_BATCH = 2048
"""Of finished answers that are read together."""


@dataclass(frozen=True)
class Push:
    """One thing done along one vector.

    Attributes:
        name: the concept, ``valence``, ``arousal``, ``feature:<number>``, or ``circuit:<concept>``, which has its own
            layers and can only be added.
        amount: **add**: share of the mean residual norm. **out**: share of it that is taken away, usually 1. **clamp**,
            **cap**: the value, as it is read.
        action: what is done.
        layers: after which blocks; the study's layer where none is named. Each gets the whole amount.
    """

    name: str
    amount: float
    action: Action = "add"
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Everything done in one row of a batch; nothing, where there are no pushes.

    Attributes:
        pushes: at one layer additions come first, then the others in this order.
        random: a seed: each layer's sum of additions is turned to a random direction, and what is taken away, clamped
            or capped is taken along one. Position by position it is as large as the change of the first push alone.
    """

    pushes: tuple[Push, ...] = ()
    random: int | None = None


class Vectors:
    """The named unit vectors of a study, layer by layer."""

    def __init__(self, study: Opened) -> None:
        self._study = study
        self._units: dict[tuple[str, int], np.ndarray] = {}
        self._circuits = Circuits(study)
        self._centres: dict[int, Any] = {}
        """Of each layer one tensor, by which edits of many rows are known to be of one kind."""

    @property
    def names(self) -> list[str]:
        """Of concepts, axes and circuits; features are named by their number."""
        return [*self._directions, *self._circuits.names]

    @property
    def _directions(self) -> list[str]:
        return [*self._study.directions(), *self._study.axes()]

    def feature(self, name: str) -> int | None:
        """The number of a feature; None for anything else.

        Raises:
            UserError: the SAE has no such feature.
        """
        if not name.startswith(FEATURE):
            return None
        number, count = name.removeprefix(FEATURE), self._study.sae.d_sae
        if not number.isdecimal() or int(number) >= count:
            raise UserError(f"`{name}`: the SAE has features 0 to {count - 1}; write {FEATURE}<number>")
        return int(number)

    def unit(self, name: str, layer: int) -> Float[np.ndarray, "d_model"]:
        """A vector at norm 1; of a feature, its decoder row.

        Raises:
            UserError: the study has no such vector, or not at this layer.
        """
        if (name, layer) in self._units:
            return self._units[name, layer]
        study, number = self._study, self.feature(name)
        if number is not None:
            if layer != study.layer:
                raise UserError(f"`{name}`: the SAE is of layer {study.layer}; steer by it there")
            row = study.sae.decoder[number]
            return row / np.linalg.norm(row)
        if name not in self._directions:
            raise UserError(f"the study has no direction of `{name}`; {nearest(name, self._directions)}")
        if layer not in study.built.layers:
            there = ", ".join(map(str, study.built.layers))
            raise UserError(
                f"there are directions at layers {there}, not at {layer}; add it to `activations.pooled_layers`"
            )
        self._units |= {(each, layer): unit for each, unit in (study.directions(layer) | study.axes(layer)).items()}
        return self._units[name, layer]

    def edits(self, recipes: Sequence[Recipe]) -> list[Edit]:
        """What is done to a batch whose rows follow the recipes, at every position behind the begin token.

        Raises:
            UserError: as :meth:`unit`.
        """
        import torch

        added: dict[int, np.ndarray] = {}
        circuits: list[Any] = [{} for _ in recipes]
        others: list[Edit] = []
        for row, recipe in enumerate(recipes):
            generator = np.random.default_rng(recipe.random)
            ours = [push for push in recipe.pushes if push.name.startswith(CIRCUIT)]
            for push in ours:
                if push.action != "add":
                    raise UserError(f"`{push.name}`: a circuit is added, or taken away by a negative amount; use --add")
            drawn = None if recipe.random is None else generator
            circuits[row] = joined([self._circuits.push(push.name, push.amount, drawn) for push in ours])
            for push in (push for push in recipe.pushes if push not in ours):
                for layer in push.layers or (self._study.layer,):
                    vector = self.unit(push.name, layer)
                    if push.action == "add":
                        sums = added.setdefault(layer, np.zeros((len(recipes), len(vector))))
                        sums[row] += push.amount * vector
                    else:
                        along = None if recipe.random is None else _turned(vector, generator)
                        others.append(self._one(row, push, layer, vector, along))
            for sums in (sums for sums in added.values() if recipe.random is not None):
                sums[row] = _turned(sums[row], generator)
        device, lead = self._study.device, self._study.lead
        return [
            Edit(
                layer,
                partial(
                    steering.add,
                    direction=torch.tensor(sums, dtype=torch.float32, device=device),
                    strength=torch.ones(len(recipes), device=device),
                    unit=self._study.mean_norm(layer),
                ),
                span=Span.text(len(recipes), lead),
            )
            for layer, sums in added.items()
        ] + [*self._circuits.edits(circuits), *others]

    def _one(self, row: int, push: Push, layer: int, vector: np.ndarray, along: np.ndarray | None) -> Edit:
        """Whatever is not added, in one row."""
        import torch

        device, number = self._study.device, self.feature(push.name)
        tensor = partial(torch.tensor, dtype=torch.float32, device=device)
        share = tensor([push.amount if push.action == "out" else 1.0])
        value = 0.0 if push.action == "out" else push.amount
        delta: Any
        if number is not None:
            module = self._study.sae.load().to(device)
            length = float(np.linalg.norm(self._study.sae.decoder[number]))
            delta = partial(
                steering.set_features,
                encode=module.encode,
                features=torch.tensor([[number]], device=device),
                decoder=tensor((length * (vector if along is None else along))[None, None]),
                values=tensor([[value]]),
                strength=share,
                at_most=push.action == "cap",
                scale=partial(token_scale, module),
            )
        else:
            if layer not in self._centres:
                self._centres[layer] = tensor(self._study.built.centre(layer))
            delta = partial(
                steering.move_to,
                direction=tensor(vector[None]),
                centre=self._centres[layer],
                target=tensor([value * self._study.mean_norm(layer)]),
                strength=share,
                along=None if along is None else tensor(along[None]),
                at_most=push.action == "cap",
            )
        rows = torch.tensor([row], device=device)
        return Edit(layer, delta, rows=rows, span=Span.text(1, self._study.lead))


def _turned(vector: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A vector of the same norm in a random direction."""
    other = generator.normal(size=vector.shape)
    return other * (np.linalg.norm(vector) / np.linalg.norm(other))


@dataclass(frozen=True)
class Draws:
    """How answers are sampled.

    Attributes:
        tokens: most of an answer.
        samples: answers of each recipe.
        temperature: 0 takes the likeliest token.
        seed: of the draws. All recipes use the same, so what differs between their answers is the steering's doing.
        cached: keep keys and values; without, everything is read again for every token: slow, for checking.
    """

    tokens: int = 60
    samples: int = 1
    temperature: float = 0.8
    seed: int = 0
    cached: bool = True


class Answers:
    """Answers to one prompt under several recipes, all at once; filled while :meth:`stream` runs.

    Attributes:
        recipes: one a row.
        prompt: its token ids, begin token included.
        ids: by row and sample, the token ids of the answer.
        texts: likewise, spelled.
    """

    def __init__(self, study: Opened, prompt: str | Messages, recipes: Sequence[Recipe], draws: Draws) -> None:
        """Prepare.

        Raises:
            UserError: the prompt is empty, or a recipe asks for what the study does not have.
        """
        self._study, self._draws, self.recipes = study, draws, tuple(recipes)
        text = tokenised(study, prompt)
        self.prompt = [*text.lead, *text.ids.tolist()]
        self._edits = Vectors(study).edits(recipes)
        rows, samples = range(len(recipes)), range(draws.samples)
        self.ids: list[list[list[int]]] = [[[] for _ in samples] for _ in rows]
        self.texts = [["" for _ in samples] for _ in rows]

    def stream(self) -> Iterator[list[tuple[int, int, str]]]:
        """Sample: at every step (row, sample, text added) of the answers that go on."""
        study, draws = self._study, self._draws
        pieces = [[Pieces(study.tokenizer) for _ in range(draws.samples)] for _ in self.recipes]
        uniform = np.random.default_rng(draws.seed).random((1, draws.samples, draws.tokens))
        shared = np.broadcast_to(uniform, (len(self.recipes), draws.samples, draws.tokens))
        steps = stream(
            study.subject, [self.prompt], shared, self._edits,
            resume_at=self._resume_at,
            temperature=draws.temperature, cached=draws.cached,
        )  # fmt: skip
        for step in steps:
            said = []
            for (row, sample), token, ended in zip(step.entries, step.tokens, step.ended, strict=True):
                if not ended:
                    self.ids[row][sample].append(token)
                    said.append((row, sample, pieces[row][sample].add(token)))
                    self.texts[row][sample] += said[-1][2]
            yield said

    @property
    def _resume_at(self) -> int | None:
        lowest = min((edit.after for edit in self._edits), default=self._study.layer)
        return lowest if lowest >= 0 else None

    def run(self) -> Answers:
        """All steps."""
        for _ in self.stream():
            pass
        return self

    def perplexities(self) -> list[list[float]]:
        """Of every answer under the model without steering, by row and sample; NaN for an empty one."""
        flat = [ids for row in self.ids for ids in row]
        found = np.exp(losses(self._study.subject, self.prompt, flat, TOKENS_PER_BATCH))
        return found.reshape(len(self.ids), -1).tolist()

    def readings(self, readings: Readings) -> list[list[Float[np.ndarray, "tokens rows"]]]:
        """Values at every token of every answer, read behind the prompt by the model without steering.

        So the push itself is not in them: they say how the text reads, whoever wrote it.
        """
        from affectlens.model.reading import Site, read

        site, first = Site(readings.layer), len(self.prompt)
        flat = [[*self.prompt, *ids] for row in self.ids for ids in row]
        values: list[np.ndarray] = [np.empty(0)] * len(flat)
        for index, found in read(self._study.subject, flat, [site], lead=self._study.subject.lead):
            values[index] = readings.values(found[site][first:])
        samples = self._draws.samples
        return [values[start : start + samples] for start in range(0, len(values), samples)]


def pushes(
    add: Mapping[str, float],
    out: Sequence[str] = (),
    clamp: Mapping[str, float] | None = None,
    cap: Mapping[str, float] | None = None,
    layers: tuple[int, ...] = (),
) -> tuple[Push, ...]:
    """The pushes of one recipe: what is added, projected out, clamped and capped, by name."""
    return (
        *(Push(name, amount, "add", layers) for name, amount in add.items()),
        *(Push(name, 1.0, "out", layers) for name in out),
        *(Push(name, amount, "clamp", layers) for name, amount in (clamp or {}).items()),
        *(Push(name, amount, "cap", layers) for name, amount in (cap or {}).items()),
    )


def mean(values: Float[np.ndarray, "tokens rows"]) -> Float[np.ndarray, "rows"]:
    """Over the tokens of an answer; NaN for an empty one."""
    return values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)
