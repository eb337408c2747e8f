"""What is concluded of circuits, from all reported contexts: curves, verdicts by rule, specificity, checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens import stats
from affectlens.circuits import curves
from affectlens.circuits.tables import ALL
from affectlens.circuits.trials import RANKINGS, Selected, Size
from affectlens.circuits.verdicts import verdict

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from affectlens.circuits.config import CircuitsConfig
    from affectlens.circuits.design import Cell
    from affectlens.circuits.scores import Scores

NAMES = ("signed effect", "size of effect", "activation")
"""Of the rankings whose circuits are kept."""
RANDOM = "random"
BOOTSTRAPS = 50


@dataclass(frozen=True)
class Turn:
    """The results of one rotation.

    Attributes:
        cells: its reported contexts.
        select: its selection contexts.
        arrays: by name, contexts first, as :func:`~affectlens.circuits.trials.try_context` gives them.
        selected, size: what the other topics chose.
    """

    cells: tuple[Cell, ...]
    select: tuple[Cell, ...]
    arrays: Mapping[str, np.ndarray]
    selected: Selected
    size: Size


@dataclass(eq=False)
class Judge:
    """All rotations of a study.

    Attributes:
        turns: their results.
        scores: of single units.
        config: sizes and thresholds.
        generator: gives the random generator of a name.
    """

    turns: Sequence[Turn]
    scores: Scores
    config: CircuitsConfig
    generator: Callable[[str], np.random.Generator]

    def over(self, take: Callable[[Turn], np.ndarray]) -> np.ndarray:
        """A figure of every reported context, rotation by rotation, less that without heads."""
        return np.concatenate([(take(turn).T - turn.arrays["empty"]).T for turn in self.turns])

    @cached_property
    def cells(self) -> list[Cell]:
        return [cell for turn in self.turns for cell in turn.cells]

    @cached_property
    def topics(self) -> list[str]:
        return [cell.topic for cell in self.cells]

    @cached_property
    def whole(self) -> Float[np.ndarray, " contexts"]:
        """The contrast to be explained."""
        return self.over(lambda turn: turn.arrays["full"])

    def padded(self, turn: Turn, name: str) -> np.ndarray:
        """Removals, with NaN for sizes that were not taken out."""
        values = turn.arrays[name]
        more = len(self.config.sizes) - values.shape[-1]
        return np.concatenate([values, np.full((*values.shape[:-1], more), np.nan, values.dtype)], axis=-1)

    def interval(self, values: Float[np.ndarray, " contexts"], name: str, rows: Any = slice(None)) -> stats.Estimate:
        """A ratio with its interval over topics."""
        topics = np.asarray(self.topics)[rows]
        return curves.ratio_interval(values[rows], self.whole[rows], topics.tolist(), self.generator(name))

    def curve_rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The curves of every ranking, and their areas."""
        rows, areas = [], []
        kept, removed = self.over(lambda t: t.arrays["kept"]), self.over(lambda t: self.padded(t, "removed"))
        chosen = {RANKINGS[turn.size.ranking] for turn in self.turns}
        units = len(self.turns[0].selected.signed)
        sizes = curves.counts(self.config.sizes, units)
        for at, name in enumerate(NAMES):
            ratios = []
            for place, share in enumerate(self.config.sizes):
                values = kept[:, at, place]
                found, ends = curves.faithfulness(values, self.whole), self.interval(values, f"curve {name} {share}")
                left = stats.Estimate(math.nan, math.nan, math.nan, 0)
                # What is taken out is ranked as the circuit is; it stands with that ranking where all rotations agree.
                if at < len(RANKINGS) and chosen == {RANKINGS[at]}:
                    left = self.interval(removed[:, place], f"left {name} {share}")
                rows.append(
                    {
                        "ranking": name,
                        "share": share,
                        "heads": sizes[place],
                        "ratio": found.ratio,
                        "low": ends.low,
                        "high": ends.high,
                        "slope": found.slope,
                        "correlation": found.correlation,
                        "left": left.value,
                        "left_low": left.low,
                        "left_high": left.high,
                    }
                )
                ratios.append(found.ratio)
            areas.append({"ranking": name, **curves.curve_areas(self.config.sizes, ratios)})
        ratios = []
        for place, share in enumerate(self.config.sizes):
            each, left = self.random_kept[:, place], self.random_left[:, place]
            means = self.over(lambda t: t.arrays["random_kept"])[:, :, place].mean(axis=1)
            found = curves.faithfulness(means, self.whole)
            rows.append(
                {
                    "ranking": RANDOM,
                    "share": share,
                    "heads": sizes[place],
                    "ratio": float(each.mean()),
                    "low": float(each.min()),
                    "high": float(each.max()),
                    "slope": found.slope,
                    "correlation": found.correlation,
                    "left": float(left.mean()),
                    "left_low": float(left.min()),
                    "left_high": float(left.max()),
                }
            )
            ratios.append(float(each.mean()))
        return rows, [*areas, {"ranking": RANDOM, **curves.curve_areas(self.config.sizes, ratios)}]

    def _random(self, values: Float[np.ndarray, "contexts draws sizes"]) -> Float[np.ndarray, "draws sizes"]:
        run = np.isfinite(values[:, 0, 0])
        whole = self.whole[run].sum()
        return values[run].sum(axis=0) / (whole if whole else np.nan)

    @cached_property
    def random_kept(self) -> Float[np.ndarray, "draws sizes"]:
        """Ratio of each random circuit over the contexts in which they were run."""
        return self._random(self.over(lambda t: t.arrays["random_kept"]))

    @cached_property
    def random_left(self) -> Float[np.ndarray, "draws sizes"]:
        """What is left without it."""
        return self._random(self.over(lambda t: self.padded(t, "random_removed")))

    def at_size(self, name: str) -> np.ndarray:
        """A figure at each rotation's chosen size and ranking."""

        def take(turn: Turn) -> np.ndarray:
            values = turn.arrays[name]
            return values[:, turn.size.ranking, turn.size.place] if name == "kept" else values[..., turn.size.place]

        return self.over(take)

    def random_at_size(self, name: str) -> Float[np.ndarray, " draws"]:
        """Ratio of each random circuit of the chosen sizes."""
        return self._random(self.at_size(name)[:, :, None])[:, 0]

    @cached_property
    def losses(self) -> Float[np.ndarray, "contexts concepts"]:
        """What each context's own words lose without each concept's own heads."""
        return np.concatenate([t.arrays["full"][:, None] - t.arrays["specific"] for t in self.turns])

    def _of(self, concept: str) -> Bool[np.ndarray, " contexts"]:
        return np.array([cell.concept == concept for cell in self.cells])

    @cached_property
    def specificity(self) -> Float[np.ndarray, "concepts concepts"]:
        """The same, mean over each concept's contexts; NaN rows where it has none."""
        concepts = self.scores.concepts
        found = np.full((len(concepts), len(concepts)), np.nan)
        for at, concept in enumerate(concepts):
            if (mine := self._of(concept)).any():
                found[at] = self.losses[mine].mean(axis=0)
        return found

    def own_excess(self, at: int) -> Float[np.ndarray, " contexts"]:
        """By how much more a concept's own heads hurt its words than the other concepts' heads do, in its contexts.

        Some concepts' heads hurt all words. So of each loss there is first taken off what the same heads cost, on
        average, the words of third concepts; where there is none, nothing is.
        """
        concepts = len(self.scores.concepts)
        of = np.array([self.scores.concepts.index(cell.concept) for cell in self.cells])
        base = np.zeros(concepts)
        for circuit in range(concepts):
            third = (of != at) & (of != circuit)
            if third.any():
                base[circuit] = self.losses[third, circuit].mean()
        mine = self.losses[of == at] - base
        own = mine[:, at]
        return own - (mine.sum(axis=1) - own) / max(1, concepts - 1)

    def _own_p(self, at: int) -> float:
        """Is that more than nothing? Sign flips over the concept's contexts, one-sided."""
        more = self.own_excess(at).astype(np.float64)
        if len(more) < 2 or len(self.scores.concepts) < 2:
            return math.nan
        generator = self.generator(f"own {at}")
        signs = generator.choice((-1.0, 1.0), size=(self.config.permutations, len(more)))
        return float(stats.permutation_p(float(more.mean()), signs @ more / len(more))[0])

    def verdict_rows(self) -> list[dict[str, Any]]:
        """The pooled circuit and every concept's."""
        concepts = self.scores.concepts
        known = np.isfinite(self.specificity[:, 0])
        square = self.specificity[np.ix_(known, known)]
        _, p, ranks = curves.label_permutation(square, self.config.permutations, self.generator("labels"))
        own_p = np.array([self._own_p(int(at)) for at in np.flatnonzero(known)])
        adjusted = stats.benjamini_hochberg(own_p)
        heads = float(np.mean([turn.size.circuit.sum() for turn in self.turns]))
        random = float(self.random_at_size("random_kept").max())
        random_left = float(self.random_at_size("random_removed").min())
        named, without = (self.over(lambda t, name=name: t.arrays[name]) for name in ("own_kept", "own_removed"))
        pooled, pooled_left = self.at_size("kept"), self.at_size("removed")
        place = {at: row for row, at in enumerate(np.flatnonzero(known))}
        rows = []
        for at, concept in [(None, ALL), *enumerate(concepts)]:
            mine = np.array([at is None or cell.concept == concept for cell in self.cells])
            if not mine.any():
                continue
            kept, left = (pooled, pooled_left) if at is None else (named[:, 0], without[:, 0])
            names = np.asarray(self.topics)[mine]
            by_topic = [self.whole[mine][names == topic].mean() for topic in sorted(set(names))]
            contrast = stats.t_interval(np.array(by_topic))
            found = curves.faithfulness(kept[mine], self.whole[mine])
            ratio, rest = self.interval(kept, f"kept {concept}", mine), self.interval(left, f"left {concept}", mine)
            stable, apart, chance = self._stability(at)
            row: dict[str, Any] = {
                "concept": concept,
                "contrast": contrast.value,
                "contrast_low": contrast.low,
                "contrast_high": contrast.high,
                "heads": heads,
                "ratio": found.ratio,
                "low": ratio.low,
                "high": ratio.high,
                "slope": found.slope,
                "correlation": found.correlation,
                "left": rest.value,
                "left_low": rest.low,
                "left_high": rest.high,
                "random_ratio": random,
                "random_left": random_left,
                "stability": stable,
                "halves": apart,
                "stability_chance": chance,
            }
            wrong = slice(1, None)
            for key, values in (("wrong_ratio", named[:, wrong]), ("wrong_left", without[:, wrong])):
                row[key] = float(values[mine].mean() / self.whole[mine].mean()) if self.whole[mine].mean() else None
            row["any_ratio"] = curves.faithfulness(pooled[mine], self.whole[mine]).ratio
            row["any_left"] = curves.faithfulness(pooled_left[mine], self.whole[mine]).ratio
            if at is None:
                diagonal = np.diag(square)
                others = (square.sum(axis=1) - diagonal) / max(1, len(square) - 1)
                row |= {"own_loss": float(diagonal.mean()), "other_loss": float(others.mean()), "rank": None}
                row |= {"p": p, "p_adjusted": p}
            else:
                line = place[at]
                rest_of = (square[line].sum() - square[line, line]) / max(1, len(square) - 1)
                row |= {"own_loss": float(square[line, line]), "other_loss": float(rest_of)}
                row |= {"rank": int(ranks[line]), "p": float(own_p[line]), "p_adjusted": float(adjusted[line])}
            rows.append({**row, "verdict": verdict(row, self.config)})
        return rows

    def _stability(self, at: int | None) -> tuple[float, float, float]:
        """Overlap over bootstraps of the selection contexts, over halves of their topics, and chance, mean over
        rotations."""
        found = []
        for number, turn in enumerate(self.turns):
            rows = self.scores.rows(turn.select)
            if at is not None:
                rows = rows[self.scores.own[rows] == at]
            if len(rows) < 2:
                return math.nan, math.nan, math.nan
            signed = at is not None or RANKINGS[turn.size.ranking] == "signed"
            count, generator = int(turn.size.circuit.sum()), self.generator(f"stability {number} {at}")
            effects = self.scores.effects[rows]
            stable, chance = curves.stability(effects, count, BOOTSTRAPS, generator, signed=signed)
            topics = [self.scores.cells[row].topic for row in rows]
            apart = curves.halves(
                effects, topics, count, BOOTSTRAPS, self.generator(f"halves {number} {at}"), signed=signed
            )
            found.append((stable, apart, chance))
        return tuple(np.mean(found, axis=0).tolist())  # pyright: ignore[reportReturnType]

    def member_rows(self) -> list[dict[str, Any]]:
        """The heads of the pooled circuit, and whether the circuit needs each of them.

        A head is needed where the circuit loses more without it than 95 of 100 heads add to random circuits of the
        size (Shi et al. 2024, "Hypothesis testing the circuit hypothesis in LLMs").
        """
        heads = self.scores.card["heads"]
        chosen = np.stack([turn.size.circuit for turn in self.turns])
        effects = np.stack([turn.selected.signed for turn in self.turns])
        # Contrasts become ratios by the contexts in which heads were left out.
        thin = np.concatenate([turn.arrays["without"] for turn in self.turns])
        wider = np.concatenate([turn.arrays["wider"] for turn in self.turns])
        run = np.isfinite(wider).all(axis=1)
        scale = abs(self.whole[run].mean()) if run.any() else math.nan
        null = float(np.quantile(np.abs(wider[run].mean(axis=0)), 0.95) / scale) if scale else math.nan
        rows = []
        for flat in np.flatnonzero(chosen.any(axis=0)):
            turns = chosen[:, flat]
            values = thin[run][:, flat]
            without = float(np.nanmean(values) / scale) if np.isfinite(values).any() and scale else math.nan
            rows.append(
                {
                    "layer": int(flat) // heads,
                    "head": int(flat) % heads,
                    "rotations": int(turns.sum()),
                    "effect": float(effects[turns, flat].mean()),
                    "without": without,
                    "null": null,
                    "needed": bool(without > null) if math.isfinite(without) and math.isfinite(null) else None,
                }
            )
        return rows

    def complete_rows(self) -> list[dict[str, Any]]:
        """Completeness: what taking out random halves of the circuit does to the model and to the circuit alone."""
        out = self.over(lambda t: t.arrays["subset_removed"]).mean(axis=0)
        left = self.over(lambda t: t.arrays["subset_left"]).mean(axis=0)
        scale = self.whole.mean()
        rows = []
        for measure, values in (
            ("left of the whole model without a half", out / scale),
            ("left of the circuit without a half", left / scale),
            ("difference of the two, its size", np.abs(out - left) / abs(scale)),
        ):
            rows.append(check("completeness", measure, float(values.mean()), None, len(self.cells)))
        return rows


def check(
    name: str, measure: str, value: float | None, control: np.ndarray | float | None, contexts: int
) -> dict[str, Any]:
    """A row of the table of checks."""
    values = None if control is None else np.atleast_1d(np.asarray(control, dtype=float))
    return {
        "check": name,
        "measure": measure,
        "value": value,
        "control": None if values is None else float(values.mean()),
        "control_low": None if values is None else float(values.min()),
        "control_high": None if values is None else float(values.max()),
        "contexts": contexts,
    }
