"""The scores of all units, context by context, and what is concluded of single units."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.circuits.design import Cell
from affectlens.results import Average, Heatmap, Table, bounded, integer, number, text

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int

    from affectlens import stats

ARRAYS, CARD = "scores.safetensors", "scores.json"
SHOWN = 12
"""Heads, and neurons, of a concept in the table of writers."""

WRITERS = Table(
    "writers",
    "What writes the reading of one concept, as the difference between its stories and the topic's mean.",
    (
        text("concept", "the emotion"),
        text("kind", "embedding, heads, MLPs, biases, reading; head and neuron for single ones"),
        text("unit", "the unit; `all` for a whole kind"),
        integer("layer", "of the unit"),
        *bounded(
            "direct",
            "what it has along the concept's direction, mean over topics",
            "mean residual norms",
            "its interval over topics",
            ends="",
        ),
        number("share", "of the reading", "share"),
        number("total", "what it is behind, by integrated gradients", "mean residual norms"),
    ),
    key=("concept", "kind", "unit"),
)
HEADS = Table(
    "heads",
    "One attention head: what its ablation costs a concept's own words against the others, mean over contexts.",
    (
        integer("layer", "of the head"),
        integer("head", "within the layer"),
        *bounded(
            "effect",
            "loss of the contrast when it has its reference values: exact",
            "nats",
            "its interval over topics",
            ends="",
        ),
        number("gradient", "the same by integrated gradients", "nats"),
        number("activation", "how far its output lies from its reference values", "residual units"),
        number("others", "what its ablation costs words of the other concepts, most affected one", "nats"),
        number("p", "sign flips, those of a concept's contexts together", "p"),
        number("p_floor", "least possible p", "p"),
        number("p_adjusted", "after Benjamini-Hochberg over heads", "p"),
    ),
    key=("layer", "head"),
    averages=(Average("head_effect", "effect"),),
    charts=(Heatmap("heads", "layer", "head", "effect"),),
)
CONCEPT_HEADS = Table(
    "concept_heads",
    "One attention head and one concept.",
    (
        text("concept", "the emotion"),
        integer("layer", "of the head"),
        integer("head", "within the layer"),
        number("effect", "loss of the contrast of its words in its stories", "nats"),
        number("elsewhere", "the same of its words in the other concepts' stories, mean", "nats"),
        number("p", "sign flips over contexts", "p"),
        number("p_adjusted", "after Benjamini-Hochberg over heads and concepts", "p"),
    ),
    key=("concept", "layer", "head"),
)
FEATURES = Table(
    "features",
    "SAE features of the study's layer by what they add to a concept's words, and the SAE's error.",
    (
        text("unit", "`feature`, `other features` or `error`"),
        integer("feature", "its number"),
        *bounded("effect", "mean over contexts, by integrated gradients", "nats", "its interval over topics", ends=""),
        number("p", "sign flips, those of a concept's contexts together", "p"),
        number("p_adjusted", "after Benjamini-Hochberg over features", "p"),
    ),
    key=("unit", "feature"),
)
TABLES = (WRITERS, HEADS, CONCEPT_HEADS, FEATURES)


@dataclass(frozen=True)
class Scores:
    """The finished scores.

    Attributes:
        folder: of the result; without scores where the study looks for no circuits.
    """

    folder: Path

    @cached_property
    def card(self) -> dict[str, Any]:
        """Layers, heads and the contexts that were scored."""
        return json.loads((self.folder / CARD).read_text(encoding="utf-8"))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load_file

        return load_file(self.folder / ARRAYS)

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The contexts, in the order of every "contexts" axis."""
        return tuple(Cell(*each) for each in self.card["cells"])

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(self.card["concepts"])

    def rows(self, cells: Sequence[Cell]) -> Int[np.ndarray, " rows"]:
        """Where these contexts stand."""
        import numpy as np

        at = {cell: index for index, cell in enumerate(self.cells)}
        return np.array([at[cell] for cell in cells], dtype=int)

    @cached_property
    def own(self) -> Int[np.ndarray, " contexts"]:
        """The concept of each context."""
        import numpy as np

        return np.array([self.concepts.index(cell.concept) for cell in self.cells])

    @cached_property
    def effects(self) -> Float[np.ndarray, "contexts units"]:
        """Exact effect of each head on the own words."""
        import numpy as np

        return np.take_along_axis(self.arrays["effect"], self.own[:, None, None], axis=2)[..., 0]


def sign_flip_p(
    values: Float[np.ndarray, "contexts units"],
    flips: int,
    generator: np.random.Generator,
    groups: Int[np.ndarray, " contexts"] | None = None,
) -> tuple[Float[np.ndarray, " units"], float]:
    """Two-sided p of each unit's mean, and its floor: contexts change their sign together for all scores.

    Contexts of one group change it together, too: those of a concept share their words, so that they are no independent
    sample of what happens to words. Where there are fewer sign patterns than flips are asked for, flips repeat; p stays
    valid, its floor is that of the patterns.
    """
    import numpy as np

    from affectlens import stats

    values = values.astype(np.float64)  # in float32 the pattern of no flips would not tie with what was observed
    _, member = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    count = int(member.max()) + 1
    signs = generator.choice((-1.0, 1.0), size=(flips, count))[:, member]
    null = np.abs(signs @ values) / len(values)
    p, floor = stats.permutation_p(np.abs(values.mean(axis=0)), null)
    return p, max(floor, 2.0 ** (1 - count))


def over_topics(values: Float[np.ndarray, "contexts units"], cells: Sequence[Cell]) -> list[stats.Estimate]:
    """Each unit's mean over topics with its interval."""
    import numpy as np

    from affectlens import stats

    names = np.array([cell.topic for cell in cells])
    by_topic = np.stack([values[names == topic].mean(axis=0) for topic in sorted(set(names))], axis=1)
    return [stats.t_interval(row) for row in by_topic]


def writer_rows(
    concepts: Sequence[str], arrays: dict[str, np.ndarray], layers: int, d_mlp: int
) -> list[dict[str, Any]]:
    """The table of writers.

    Args:
        concepts: of the arrays' second axis.
        arrays: of the parts, topics first.
        layers: up to the study's one.
        d_mlp: neurons of a layer.
    """
    import numpy as np

    from affectlens import stats

    rows = []
    for at, concept in enumerate(concepts):
        reading = float(arrays["reading"][:, at].mean())

        def row(kind: str, unit: str, layer: int | None, values: np.ndarray, total: float | None) -> dict[str, Any]:
            mean = stats.t_interval(values)
            return {
                "concept": concept,  # noqa: B023
                "kind": kind,
                "unit": unit,
                "layer": layer,
                "direct": mean.value,
                "low": mean.low,
                "high": mean.high,
                "share": mean.value / reading if reading else None,  # noqa: B023
                "total": total,
            }

        rows.append(row("reading", "all", None, arrays["reading"][:, at], None))
        rows.append(row("embedding", "all", None, arrays["embedding"][:, at], None))
        for kind, name in (("heads", "heads"), ("MLPs", "mlp"), ("biases", "bias")):
            values = arrays[name][:, at].reshape(len(arrays[name]), -1).sum(axis=1)
            rows.append(row(kind, "all", None, values, None))
        heads, total = arrays["heads"][:, at], arrays["heads_total"][:, at].mean(axis=0)
        order = np.argsort(-np.abs(heads.mean(axis=0)).reshape(-1), kind="stable")[:SHOWN]
        for flat in order:
            layer, head = divmod(int(flat), heads.shape[2])
            rows.append(row("head", f"L{layer}H{head}", layer, heads[:, layer, head], float(total[layer, head])))
        # A neuron outside a topic's list counts as 0 there: its share is below those of the list.
        neurons = np.zeros((len(heads), layers * d_mlp), np.float32)
        behind = np.zeros(layers * d_mlp, np.float32)
        for topic in range(len(heads)):
            index = arrays["neuron"][topic, at]
            neurons[topic, index] = arrays["neuron_value"][topic, at]
            behind[index] += arrays["neuron_total"][topic, at] / len(heads)
        for flat in np.argsort(-np.abs(neurons.mean(axis=0)), kind="stable")[:SHOWN]:
            layer, neuron = divmod(int(flat), d_mlp)
            rows.append(row("neuron", f"L{layer}N{neuron}", layer, neurons[:, flat], float(behind[flat])))
    return rows


def head_rows(scores: Scores, flips: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    """The table of heads, over all scored contexts."""
    import numpy as np

    from affectlens import stats

    effects, heads = scores.effects, scores.card["heads"]
    p, floor = sign_flip_p(effects, flips, generator, scores.own)
    adjusted = stats.benjamini_hochberg(p)
    mean = scores.arrays["effect"].copy()
    np.put_along_axis(mean, scores.own[:, None, None], np.nan, axis=2)
    others = np.nanmean(mean, axis=0)
    largest = np.take_along_axis(others, np.abs(others).argmax(axis=1)[:, None], axis=1)[:, 0]
    gradient, size = scores.arrays["gradient"].mean(axis=0), scores.arrays["activation"].mean(axis=0)
    return [
        {
            "layer": flat // heads,
            "head": flat % heads,
            "effect": float(effects[:, flat].mean()),
            "low": each.low,
            "high": each.high,
            "gradient": float(gradient[flat]),
            "activation": float(size[flat]),
            "others": float(largest[flat]),
            "p": float(p[flat]),
            "p_floor": floor,
            "p_adjusted": float(adjusted[flat]),
        }
        for flat, each in enumerate(over_topics(effects, scores.cells))
    ]


def concept_head_rows(scores: Scores, flips: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    """The table of heads by concept."""
    import numpy as np

    from affectlens import stats

    heads, rows = scores.card["heads"], []
    for at, concept in enumerate(scores.concepts):
        mine = scores.own == at
        if not mine.any():
            continue
        effects = scores.effects[mine]
        p = sign_flip_p(effects, flips, generator)[0] if len(effects) > 1 else np.full(effects.shape[1], np.nan)
        elsewhere = scores.arrays["effect"][~mine][:, :, at].mean(axis=0)
        rows += [
            {
                "concept": concept,
                "layer": flat // heads,
                "head": flat % heads,
                "effect": float(effects[:, flat].mean()),
                "elsewhere": float(elsewhere[flat]),
                "p": float(p[flat]),
            }
            for flat in range(effects.shape[1])
        ]
    adjusted = stats.benjamini_hochberg(np.array([row["p"] for row in rows], dtype=float)) if rows else []
    return [{**row, "p_adjusted": float(each)} for row, each in zip(rows, adjusted, strict=True)]


def feature_rows(
    features: Float[np.ndarray, "contexts features"],
    errors: Float[np.ndarray, " contexts"],
    cells: Sequence[Cell],
    flips: int,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """The table of features: the 50 of largest effect, all others together, and the error."""
    import numpy as np

    from affectlens import stats

    _, own = np.unique([cell.concept for cell in cells], return_inverse=True)
    p, _ = sign_flip_p(features, flips, generator, own)
    adjusted = stats.benjamini_hochberg(p)
    order = np.argsort(-np.abs(features.mean(axis=0)), kind="stable")
    groups: list[tuple[str, int | None, np.ndarray]] = [
        ("feature", int(each), features[:, each]) for each in order[:50]
    ]
    groups += [("other features", None, features[:, order[50:]].sum(axis=1)), ("error", None, errors)]
    rows = []
    for unit, feature, values in groups:
        (mean,) = over_topics(values[:, None], cells)
        rows.append(
            {
                "unit": unit,
                "feature": feature,
                "effect": float(values.mean()),
                "low": mean.low,
                "high": mean.high,
                "p": float(p[feature]) if feature is not None else None,
                "p_adjusted": float(adjusted[feature]) if feature is not None else None,
            }
        )
    return rows
