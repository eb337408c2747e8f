"""What a model prefers, what goes with it, and what steering makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from affectlens.experiments.conclude import bradley_terry, claims, intervals, selection, wording
from affectlens.experiments.conclude.bradley_terry import ELO, Strengths
from affectlens.experiments.conclude.config import PreferenceConfig
from affectlens.experiments.conclude.correlations import Related, aligned, correlations, fisher, read_scores
from affectlens.experiments.conclude.intervals import LEVEL
from affectlens.experiments.experiment import TournamentConfig
from affectlens.experiments.results import Chart, Finding, Measured, Series, Table
from affectlens.stats import Estimate

FITS = 200
"""Bootstrap fits behind the intervals of strengths."""
MATTERS_R = 0.4
"""Mean correlation within categories whose absence is worth stating."""
MATTERS_ELO = 100.0
"""Elo points a side; the reference reports more than 200."""


@dataclass(frozen=True)
class _Fit:
    """The unsteered tournament: strengths with intervals, and the position bias."""

    strengths: Strengths
    items: tuple[Estimate, ...]
    position: Estimate
    by_position: float
    tied: float


def analyse(measured: Measured, config: PreferenceConfig, generator: np.random.Generator) -> Finding:
    """Fit strengths, correlate them with every reading, and see whether steering some items moves these."""
    if measured.tournament is None or not measured.items:
        return wording.untestable("no tournament was held")
    if 0 not in measured.tournament_cells:
        return wording.untestable("no tournament was held without steering")
    readings = _readings(measured, selection.reading(measured, config.reading))
    base = np.asarray(measured.tournament[measured.tournament_cells.index(0)], dtype=float)
    compared = np.isfinite(base) & ~np.eye(len(base), dtype=bool)
    known = np.asarray(np.isfinite(readings).all(axis=1) & (compared.any(axis=0) | compared.any(axis=1)))
    if known.sum() < 4:
        return wording.untestable(f"{known.sum()} items were compared and read, and at least four are needed")
    outcome = measured.experiment.config.outcome(TournamentConfig)
    tie = outcome.tie if outcome else 0.0
    fitted = _fitted(base, tie, generator)
    texts, kinds = np.array([text for text, _ in measured.items]), np.array([kind for _, kind in measured.items])
    elo = fitted.strengths.elo
    related = correlations(
        texts[known].tolist(),
        kinds[known].tolist(),
        elo[known],
        dict(zip(measured.concepts, readings[known].T, strict=True)),
        leave_out=[kind for kind in config.leave_out if kind in kinds[known]],
        generator=generator,
    )
    signs = _signs(measured)
    together, p, used = aligned(elo[known], readings[known], kinds[known], signs, generator)
    words = _words(measured, elo, kinds, known, signs, generator)
    effects = _steering(measured, tie)
    named = [cell.vector for cell in measured.cells if cell.family == "concept"]
    claimed = [(name, int(sign)) for name in dict.fromkeys(named) if (sign := signs[measured.concepts.index(name)])]
    found = claims.judge(measured, effects, claimed, generator) if effects is not None else []
    smallest = intervals.smallest_of(together)
    verdict = _verdict(together, p, smallest, found)
    sentences = [
        *_answer(related, together, p, int(used.sum()), words, smallest),
        *_steered(found, related),
        *_tournament(fitted, len(base)),
    ]
    metrics = intervals.flat("within_aligned", together) | intervals.defined({"p_within_aligned": p})
    metrics |= intervals.flat("position_bias_elo", fitted.position) | _metrics(related, found, fitted)
    tables = (_strengths_table(measured, fitted), _related_table(related), _steering_table(found))
    return Finding(verdict, sentences, metrics, tables, _charts(measured, fitted, readings, related))


def _readings(
    measured: Measured, values: Float[np.ndarray, "scenarios concepts"]
) -> Float[np.ndarray, "items concepts"]:
    """The reading of each item: of the scenario of the same text, or in order where there are as many."""
    if len(values) == len(measured.items):
        return values
    places = {scenario.text: index for index, scenario in enumerate(measured.scenarios)}
    missing = np.full(values.shape[1], np.nan)
    return np.stack([values[places[text]] if text in places else missing for text, _ in measured.items])


def _words(
    measured: Measured,
    elo: Float[np.ndarray, " items"],
    kinds: np.ndarray,
    known: np.ndarray,
    signs: Float[np.ndarray, " concepts"],
    generator: np.random.Generator,
) -> Estimate:
    """The same mean correlation of what the items' words alone say of the concepts."""
    values = np.nan_to_num(_readings(measured, np.asarray(measured.words, dtype=float)))
    return aligned(elo[known], values[known], kinds[known], signs, generator)[0]


def _signs(measured: Measured) -> Float[np.ndarray, " concepts"]:
    """1 for concepts that are rated more pleasant than the median one, -1 for less; 0 where nobody rated them."""
    valence = np.asarray(measured.ratings["valence"], dtype=float)
    rated = np.isfinite(valence)
    centre = np.median(valence[rated]) if rated.any() else 0.0
    return np.where(rated, np.sign(np.where(rated, valence, centre) - centre), 0.0)


def _fitted(odds: Float[np.ndarray, "items items"], tie: float, generator: np.random.Generator) -> _Fit:
    seen = bradley_terry.outcomes(odds, tie)
    strengths = bradley_terry.fit(seen)
    items, position = bradley_terry.bootstrap(seen, strengths, FITS, generator)
    count = len(odds)
    pairs = np.triu_indices(count, 1)
    both = np.isfinite(odds[pairs]) & np.isfinite(odds.T[pairs])
    same = (odds[pairs] * odds.T[pairs] > 0)[both]
    compared = seen.won + seen.tied + seen.lost
    return _Fit(
        strengths,
        tuple(
            intervals.from_draws(float(value), ELO * drawn, count)
            for value, drawn in zip(strengths.elo, items.T, strict=True)
        ),
        intervals.from_draws(ELO * strengths.position, ELO * position, count),
        float(same.mean()) if len(same) else math.nan,
        float(seen.tied.sum() / max(compared.sum(), 1)),
    )


def _steering(measured: Measured, tie: float) -> claims.Effects | None:
    """Per cell and item, values whose mean is how far the steered items rose above the others, in Elo points."""
    if measured.steered is None or measured.tournament is None or len(measured.tournament_cells) < 2:
        return None
    steered = np.asarray(measured.steered, dtype=bool)
    if steered.all() or not steered.any():
        return None
    elo = np.full((len(measured.cells), len(steered)), np.nan)
    for cell, odds in zip(measured.tournament_cells, measured.tournament, strict=True):
        if np.isfinite(odds).any():
            elo[cell] = bradley_terry.fit(bradley_terry.outcomes(odds, tie)).elo
    # Strengths have mean 0, so a rise of some is a fall of the others: both halves tell of the same difference.
    sides = np.where(steered, len(steered) / steered.sum(), -len(steered) / (~steered).sum())
    groups = np.array([f"{index:05d}" for index in range(len(steered))])
    return claims.Effects((elo - elo[0]) * sides, groups, MATTERS_ELO)


def _verdict(together: Estimate, p: float, smallest: float, found: Sequence[claims.Claim]) -> claims.Verdict:
    goes_with = together.low > 0 and p <= LEVEL
    if not goes_with:
        return "not shown" if smallest <= MATTERS_R else "untestable"
    moved = [each.verdict for each in found]
    if not moved or "shown" in moved:
        return "shown"
    return "untestable" if "untestable" in moved else "not shown"


def _answer(related: Related, together: Estimate, p: float, rated: int, words: Estimate, smallest: float) -> list[str]:
    within, raw = related.p["within"], related.p["raw"]
    order = np.argsort([-abs(each.value) if math.isfinite(each.value) else 0.0 for each in related.raw])[:3]
    strongest = "; ".join(
        f"{related.concepts[i]} raw {wording.estimate(related.raw[i])}, without {wording.listed(related.left_out)} "
        f"{wording.estimate(related.free[i])}, within categories {wording.estimate(related.within[i])}"
        for i in order
    )
    return [
        f"Within categories, readings of pleasant concepts go with preference and those of unpleasant ones "
        f"against it by a mean r of {wording.estimate(together)} over {rated} rated concepts (items shuffled "
        f"within categories {wording.p(p)}; the items' words alone {wording.estimate(words)}).",
        f"{int((raw <= LEVEL).sum())} of {len(raw)} concepts correlate with preference over all items, "
        f"{int((within <= LEVEL).sum())} within categories (Benjamini-Hochberg, floor {related.floor:.2g}); the "
        f"strongest are {strongest}.",
        f"A mean r of {wording.number(smallest)} would be found with 80% power.",
    ]


def _steered(found: Sequence[claims.Claim], related: Related) -> list[str]:
    if not found:
        return ["No tournament was held under steering, so that readings go with preference is a correlation only."]
    moved = "move the Elo of the items they are put on against the others, up where pleasant and down where not"
    sentences = [*claims.answer(found, moved, "Elo points"), claims.power(found, "Elo points")]
    effect = agreement(found, related)
    if math.isfinite(effect.value):
        sentences.append(
            f"Over {effect.n} vectors, the effect of steering and the raw correlation agree by r "
            f"{wording.estimate(effect)}."
        )
    return sentences


def agreement(found: Sequence[claims.Claim], related: Related) -> Estimate:
    """Correlation over vectors of what steering does with how the reading correlates with preference."""
    pairs = [(claims.as_measured(each).value, related.raw[related.concepts.index(each.vector)].value) for each in found]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if len(pairs) < 3:
        return intervals.undefined(len(pairs))
    x, y = np.array(pairs).T
    if x.std() == 0 or y.std() == 0:
        return intervals.undefined(len(pairs))
    return fisher(float(np.corrcoef(x, y)[0, 1]), len(pairs))


def _tournament(fitted: _Fit, count: int) -> list[str]:
    return [
        f"Standing first is worth {wording.estimate(fitted.position, 'Elo points', 0)}: in "
        f"{wording.percent(fitted.by_position)} of the pairs the same place wins in both orders; "
        f"{wording.percent(fitted.tied)} of the comparisons of {count} items are ties."
    ]


def _metrics(related: Related, found: Sequence[claims.Claim], fitted: _Fit) -> dict[str, float]:
    metrics = intervals.defined({"decided_by_position": fitted.by_position, "tied": fitted.tied})
    for name in ("raw", "free", "within"):
        metrics[f"concepts_{name}"] = float((related.p[name] <= LEVEL).sum())
        for concept, each in zip(related.concepts, getattr(related, name), strict=True):
            metrics |= intervals.flat(f"r_{name}_{concept}", each)
    for each in found:
        metrics |= intervals.flat(f"elo_{each.vector}", claims.as_measured(each))
        metrics |= intervals.defined({f"p_adjusted_{each.vector}": each.adjusted})
    if found:
        metrics |= intervals.flat("steering_agreement", agreement(found, related))
    return metrics


def _strengths_table(measured: Measured, fitted: _Fit) -> Table:
    order = np.argsort(-fitted.strengths.items)
    rows = [(*measured.items[i], wording.cell(fitted.items[i])) for i in order]
    return Table("Strengths", ("item", "category", "Elo"), rows, "Intervals: pairs of items drawn anew.")


def _related_table(related: Related) -> Table:
    rows = [
        (
            concept,
            wording.cell(related.raw[i]),
            wording.cell(related.free[i]),
            wording.cell(related.within[i]),
            *(float(related.p[name][i]) for name in ("raw", "free", "within")),
        )
        for i, concept in enumerate(related.concepts)
    ]
    free = f"without {wording.listed(related.left_out)}" if related.left_out else "all categories"
    columns = ("concept", "raw r", f"r {free}", "r within categories", "p raw", "p without", "p within")
    return Table("Readings and preference", columns, rows, "p by permutation, Benjamini-Hochberg over the concepts.")


def _steering_table(found: Sequence[claims.Claim]) -> Table:
    rows = [
        (each.vector, wording.cell(claims.as_measured(each)), each.against.p, each.adjusted, each.verdict, each.reason)
        for each in found
    ]
    columns = ("vector", "change of Elo", "p, controls", "corrected p", "verdict", "why")
    return Table("Steering some of the items", columns, rows)


def _charts(
    measured: Measured, fitted: _Fit, readings: Float[np.ndarray, "items concepts"], related: Related
) -> tuple[Chart, ...]:
    raw = [abs(each.value) if math.isfinite(each.value) else -1.0 for each in related.raw]
    best = int(np.argmax(raw))
    kinds = [kind for _, kind in measured.items]
    series = [
        Series(
            kind,
            [float(readings[i, best]) for i in range(len(kinds)) if kinds[i] == kind],
            [fitted.items[i].value for i in range(len(kinds)) if kinds[i] == kind],
            labels=[measured.items[i][0] for i in range(len(kinds)) if kinds[i] == kind],
        )
        for kind in dict.fromkeys(kinds)
    ]
    return (Chart("Preference by reading", "scatter", f"reading of {related.concepts[best]}", "Elo", series),)


def print_table(path: Path, leave_out: Sequence[str] = ()) -> None:
    """Print the correlations of a table of items, categories, scores and readings, each with its interval.

    Args:
        path: a CSV with the columns item, category, elo and one of readings for each concept.
        leave_out: categories that count as extreme; by default the two whose means lie farthest out.

    Raises:
        UserError: the file or a column is missing, or a cell is no number.
    """
    items, categories, elo, readings = read_scores(path)
    generator = np.random.default_rng(0)
    related = correlations(items, categories, elo, readings, leave_out=leave_out, generator=generator)
    width = max(len("concept"), *map(len, related.concepts))
    print(
        f"{len(items)} items in {len(set(categories))} categories; p by permutation, Benjamini-Hochberg over concepts"
    )
    free = f"without {wording.listed(related.left_out) or 'any'}"
    print(f"{'concept':<{width}}  {'raw r':<30}  {free:<30}  within categories")
    for index, concept in enumerate(related.concepts):
        cells = [
            f"{wording.number(each.value)} [{wording.number(each.low)}, {wording.number(each.high)}] "
            + wording.p(float(related.p[name][index]))
            for name in ("raw", "free", "within")
            for each in (getattr(related, name)[index],)
        ]
        print(f"{concept:<{width}}  {cells[0]:<30}  {cells[1]:<30}  {cells[2]}")
