"""How studies differ: in what was set, in what came out, and in what of it is more than its own uncertainty.

The first study is what the others are held against. A difference of a metric is marked by one of two rules:

``paired``: the metric is the mean of one value a concept, and both studies have values for at least
:data:`LEAST_SHARED` concepts in common. The difference is the mean over these concepts of the second study's value
minus the first's, with a 95% t interval in which concepts are the sample and both studies' values stay together; it is
marked when 0 lies outside. What the studies share (words, texts, topics) cancels; what varies is the concepts,
not the topics.

``intervals``: otherwise, where both studies give the metric an interval, the difference is marked when these do not
overlap. For two independent means with sound intervals that is strict: 95% intervals that only just touch differ at p
of about 0.006.

Other metrics have no interval, and their differences no mark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from affectlens.compare.findings import Findings, Row, Value
from affectlens.errors import UserError

Rule = Literal["paired", "intervals", "none"]
UNKNOWN = "not known"
LEAST_SHARED = 4
"""Concepts in common below which per-concept values are not paired."""


@dataclass(frozen=True)
class Difference:
    """Of one metric between a study and the first.

    Attributes:
        value: this study's minus the first's; under the paired rule over the concepts they share.
        low: end of the paired interval, or NaN.
        high: the other end.
        rule: how it was judged.
        exceeds: whether it is more than its uncertainty; None where that is not known.
        concepts: how many were paired, 0 under the other rules.
    """

    value: float
    low: float
    high: float
    rule: Rule
    exceeds: bool | None
    concepts: int = 0


@dataclass(frozen=True)
class Metric:
    """One metric in all studies; both lists are in their order, with None where there is nothing."""

    name: str
    values: Sequence[Value | None]
    differences: Sequence[Difference | None]

    @property
    def marked(self) -> bool:
        """Whether some study differs from the first by more than its uncertainty."""
        return any(each is not None and each.exceeds for each in self.differences)

    @property
    def varies(self) -> bool:
        """Whether the values are not all the same."""
        known = [each.value for each in self.values if each is not None]
        return any(not math.isclose(value, known[0], rel_tol=1e-12, abs_tol=1e-12) for value in known[1:])


@dataclass(frozen=True)
class Setting:
    """What differs, by dotted key; :data:`UNKNOWN` where a study does not say."""

    key: str
    values: Sequence[Any]


@dataclass(frozen=True)
class Comparison:
    """Studies side by side.

    Attributes:
        studies: in the order given; the first is the one the others are held against.
        settings: that differ.
        circumstances: files, code and packages that differ.
        metrics: all that at least two studies have.
        concepts: concept -> one row a study, empty where it has none.
        shared: stages that are one and the same result in all studies.
        notes: what is missing, and what to mind.
    """

    studies: Sequence[Findings]
    settings: Sequence[Setting]
    circumstances: Sequence[Setting]
    metrics: Sequence[Metric]
    concepts: Mapping[str, Sequence[Row]]
    shared: Sequence[str]
    notes: Sequence[str]


def compare(studies: Sequence[Findings]) -> Comparison:
    """Hold studies against the first of them.

    Args:
        studies: at least two; equal names are told apart by a number.

    Raises:
        UserError: there is one study only, or no metric that two of them have.
    """
    if len(studies) < 2:
        raise UserError("compare: one study is nothing to compare with; name two, or write sae.k=16,32 after one")
    studies = _named_apart(studies)
    metrics = [metric for name in _in_order(each.metrics for each in studies) if (metric := _metric(name, studies))]
    if not metrics:
        have = "; ".join(f"{each.name} has {_stages(each)}" for each in studies)
        raise UserError(f"compare: no two of these studies have a finished stage in common ({have}); run them first")
    concepts = _in_order(each.matched for each in studies)
    return Comparison(
        studies,
        _differing([each.settings for each in studies]),
        _differing([each.circumstances for each in studies]),
        metrics,
        {concept: [each.matched.get(concept, {}) for each in studies] for concept in concepts},
        _shared(studies),
        _notes(studies),
    )


def _named_apart(studies: Sequence[Findings]) -> list[Findings]:
    from dataclasses import replace

    seen: dict[str, int] = {}
    found = []
    for each in studies:
        seen[each.name] = seen.get(each.name, 0) + 1
        found.append(each if seen[each.name] == 1 else replace(each, name=f"{each.name} ({seen[each.name]})"))
    return found


def _in_order(groups: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _differing(groups: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """Keys whose known values are not all the same."""
    found = []
    for key in sorted(_in_order(groups)):
        values = [group.get(key, UNKNOWN) for group in groups]
        known = [group[key] for group in groups if key in group]
        if any(value != known[0] for value in known[1:]):
            found.append(Setting(key, values))
    return found


def _metric(name: str, studies: Sequence[Findings]) -> Metric | None:
    """One metric, or None when fewer than two studies have a value of it."""
    values = [each.metrics.get(name) for each in studies]
    values = [None if value is None or math.isnan(value.value) else value for value in values]
    if sum(value is not None for value in values) < 2:
        return None
    first = values[0]
    differences: list[Difference | None] = [None]
    for each, value in zip(studies[1:], values[1:], strict=True):
        known = first is not None and value is not None
        differences.append(_difference(name, studies[0], each, first, value) if known else None)  # pyright: ignore[reportArgumentType]
    return Metric(name, values, differences)


def _difference(name: str, first: Findings, other: Findings, a: Value, b: Value) -> Difference:
    old, new = first.per_concept.get(name, {}), other.per_concept.get(name, {})
    shared = [concept for concept in old if concept in new]
    if len(shared) >= LEAST_SHARED:
        import numpy as np

        from affectlens.stats import t_interval

        found = t_interval(np.array([new[concept] - old[concept] for concept in shared]))
        exceeds = found.low > 0 or found.high < 0
        return Difference(found.value, found.low, found.high, "paired", exceeds, len(shared))
    if a.bounded and b.bounded:
        exceeds = a.high < b.low or b.high < a.low
        return Difference(b.value - a.value, math.nan, math.nan, "intervals", exceeds)
    return Difference(b.value - a.value, math.nan, math.nan, "none", None)


def _shared(studies: Sequence[Findings]) -> list[str]:
    def prints(stage: str) -> set[Any]:
        return {each.results[stage].record.get("fingerprint") if stage in each.results else None for each in studies}

    stages = _in_order(each.results for each in studies)
    return [stage for stage in stages if len(found := prints(stage)) == 1 and None not in found]


def _stages(study: Findings) -> str:
    return ", ".join(name for name, result in study.results.items() if result.metrics) or "nothing yet"


def _notes(studies: Sequence[Findings]) -> list[str]:
    lacking: dict[tuple[str, ...], list[str]] = {}
    for each in studies:
        lacking.setdefault(each.missing, []).append(each.name)
    notes = [f"{', '.join(names)}: without {', '.join(missing)}" for missing, names in lacking.items() if missing]
    for each in studies:
        notes += [f"{each.name}: {note}" for note in each.notes]
        notes += [f"{each.name}: {result.note}" for result in each.results.values() if result.note]
    return notes
