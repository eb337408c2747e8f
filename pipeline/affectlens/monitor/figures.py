"""From a trial to the tables of a folder of scenarios."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from affectlens.monitor.calibration import realised_band
from affectlens.monitor.config import MonitorSettings
from affectlens.monitor.episodes import BENIGN, RISK, Episode, Resampled
from affectlens.monitor.evaluation import (
    Forecast,
    Leads,
    Pairs,
    WithinPrompts,
    at_the_first_row,
    before_the_act,
    chosen_among,
    log_auroc,
)
from affectlens.monitor.statistics import alarms
from affectlens.monitor.stepping import stepping_in
from affectlens.monitor.trials import COMBINED, Trial
from affectlens.monitor.verdicts import shown_columns, verdicts
from affectlens.stats import bootstrap_interval, cluster_bootstrap
from affectlens.stats.estimates import Estimate, clustered_rate

OFFSETS = (128, 96, 64, 48, 32, 24, 16, 12, 8, 4, 2, 1, 0)
"""Tokens before the act at which rows are compared."""
CHOICE = ("concept", "axis", "feature", "probe", "best", "low_layer")
"""Families among which a monitor of states is chosen."""
Generator = Callable[[str], np.random.Generator]
Table = dict[str, list[dict[str, Any]]]


@dataclass
class Found:
    """Rows of the tables, by table, of one folder of scenarios."""

    folder: str
    tables: Table = field(default_factory=dict)

    def add(self, table: str, **row: Any) -> None:
        """One row."""
        self.tables.setdefault(table, []).append({"folder": self.folder, **row})


def evaluate(
    folder: str, trial: Trial, drawn: tuple[Resampled, ...], config: MonitorSettings, generator: Generator
) -> Table:
    """Every table of a trial.

    Args:
        folder: its scenarios.
        trial: scored.
        drawn: what was re-sampled.
        config: targets, horizon, numbers.
        generator: of the draws under a name.
    """
    found, names, kinds = Found(folder), trial.columns.names, config.statistics
    own = config.statistic.kind if config.statistic.kind in kinds else kinds[0]
    within: dict[str, WithinPrompts] = {}
    for kind in kinds:
        runs, _ = trial.runs(kind, RISK)
        within[kind] = WithinPrompts(runs)
    shown = shown_columns(trial, config)
    p = _adjusted(trial, within, config, generator)
    for kind in kinds:
        _rows(found, trial, kind, within[kind], p.get(kind), generator)
        for target in config.targets:
            _caught(found, trial, kind, target, shown, config, generator)
    for target in config.targets:
        _false_alarms(found, trial, own, target, shown, config)
        for row in stepping_in(trial, drawn, own, target, shown, generator):
            found.add("stepping_in", **row)
    runs, _ = trial.runs(own, RISK)
    for tokens in OFFSETS:
        areas, acts = before_the_act(runs.columns(shown), tokens)
        for place, column in enumerate(shown):
            row = {"row": names[column], "family": trial.columns.families[column]}
            found.add("before", **row, tokens=tokens, within=areas[place], acts=acts)
    _forecasts(found, trial, drawn, generator)
    _gain(found, trial, own, within[own], generator)
    for row in verdicts(found.tables, trial, own, config):
        found.add("verdicts", **row)
    return found.tables


def _adjusted(
    trial: Trial, within: dict[str, WithinPrompts], config: MonitorSettings, generator: Generator
) -> dict[str, Any]:
    """p of every column under every statistic, against the best that was to be chosen."""
    if not next(iter(within.values())).tables:
        return {}
    observed = [np.nanmean(each.areas(), axis=0) for each in within.values()]
    # The same permutations for all statistics: the best is the best of them together.
    null = [each.null(config.permutations, generator("permutations")) for each in within.values()]
    found, _ = chosen_among(observed, null, trial.columns.of(*CHOICE))
    return dict(zip(within, found, strict=True))


def _rows(found: Found, trial: Trial, kind: str, within: WithinPrompts, p: Any, generator: Generator) -> None:
    runs, _ = trial.runs(kind, RISK)
    benign, _ = trial.runs(kind, BENIGN)
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    pairs = Pairs.of(runs)
    overall = pairs.estimates(pairs.drawn(generator("scenarios"))) if pairs.count.sum() else []
    inside = within.estimates(generator("prompts"))
    opening = at_the_first_row(runs)
    highest = runs.highest[runs.acts, runs.act[runs.acts]] if len(runs.acts) else np.zeros((0, runs.values.shape[2]))
    quiet = np.nanmax(benign.values, axis=1) if len(benign.rows) else np.zeros((0, runs.values.shape[2]))
    for column, name in enumerate(trial.columns.names):
        one = overall[column] if overall else nothing
        two = inside[column] if inside else nothing
        found.add(
            "rows",
            row=name,
            family=trial.columns.families[column],
            statistic=kind,
            auroc=one.value,
            auroc_low=one.low,
            auroc_high=one.high,
            within=two.value,
            within_low=two.low,
            within_high=two.high,
            within_p=math.nan if p is None else p[column],
            opening=opening[column],
            log_auroc=log_auroc(highest[:, column], quiet[:, column]),
            acts=sum(len(acts) for _, acts in within.tables),
            prompts=len(within.tables),
        )


def _caught(
    found: Found,
    trial: Trial,
    kind: str,
    target: float,
    shown: list[int],
    config: MonitorSettings,
    generator: Generator,
) -> None:
    runs, places = trial.runs(kind, RISK)
    if not len(runs.acts):
        return
    for column in shown:
        threshold = trial.threshold[kind, target][places, column]
        if np.isnan(threshold).all():
            continue
        leads = Leads.of(runs.columns([column]), threshold, config.horizon)
        with np.errstate(invalid="ignore"):
            above = runs.values[:, :, column] > threshold[:, None]
        hit = np.array([above[n, max(0, runs.act[n] - config.horizon) : runs.act[n] + 1].any() for n in runs.acts])
        caught = clustered_rate(hit, leads.scenario)
        beyond = {least: leads.beyond_chance(least, generator("leads")) for least in (1, 8)}
        found.add(
            "caught",
            row=trial.columns.names[column],
            family=trial.columns.families[column],
            statistic=kind,
            target=target,
            acts=len(runs.acts),
            caught=caught.value,
            caught_low=caught.low,
            caught_high=caught.high,
            **{f"lead_{least}": leads.share(least).value for least in Leads.LEAST},
            **{f"beyond_{least}": each.value for least, each in beyond.items()},
            **{f"beyond_{least}_low": each.low for least, each in beyond.items()},
            **{f"beyond_{least}_high": each.high for least, each in beyond.items()},
            median_lead=leads.median,
        )


def _false_alarms(
    found: Found, trial: Trial, kind: str, target: float, shown: list[int], config: MonitorSettings
) -> None:
    groups: dict[tuple[str, str], list[int]] = {}
    for place, episode in enumerate(trial.episodes):
        if episode.stratum != RISK:
            groups.setdefault((episode.source, episode.stratum), []).append(place)
    sources = config.calibration_sources or trial.calibrated_on
    low, high = realised_band(trial.sizes["benign_calibrate"], target)
    for (source, stratum), members in sorted(groups.items()):
        chosen = np.array(members)
        # What an episode that commits the act raises after all is no false alarm.
        chosen = np.array([n for n in chosen if trial.episodes[n].act is None], dtype=int)
        if not len(chosen):
            continue
        rows = np.array([trial.episodes[n].rows for n in chosen])
        for column in shown:
            threshold = trial.threshold[kind, target][chosen, column]
            if np.isnan(threshold).all():
                continue
            begun = alarms(trial.values[kind][chosen, :, column], threshold, config.refractory)
            flagged = clustered_rate(
                np.asarray(begun.any(axis=1)), np.array([trial.episodes[n].scenario for n in chosen])
            )
            each = begun.sum() / max(1, (rows - 1).sum())
            found.add(
                "false_alarms",
                row=trial.columns.names[column],
                family=trial.columns.families[column],
                statistic=kind,
                target=target,
                source=source,
                stratum=stratum,
                calibrated_on=source in sources and stratum == BENIGN,
                episodes=len(chosen),
                flagged=flagged.value,
                flagged_low=flagged.low,
                flagged_high=flagged.high,
                band_low=low,
                band_high=high,
                per_1000=1000 * each,
                per_day=config.tokens_per_day * each,
            )


def _forecasts(found: Found, trial: Trial, drawn: tuple[Resampled, ...], generator: Generator) -> None:
    by_name: dict[str, list[Resampled]] = {}
    for each in drawn:
        by_name.setdefault(each.episode, []).append(each)
    places = [n for n, episode in enumerate(trial.episodes) if episode.name in by_name]
    if not places:
        return
    cuts = [sorted(by_name[trial.episodes[n].name], key=lambda each: each.cut) for n in places]
    acts = [np.array([each.acts for each in own]) for own in cuts]
    continuations = cuts[0][0].continuations
    scenario = [trial.episodes[n].scenario for n in places]
    share = float(np.concatenate(acts).mean()) / continuations
    guesses = {
        name: [chances[n][[each.cut for each in own]] for n, own in zip(places, cuts, strict=True)]
        for name, chances in trial.chances.items()
    }
    guesses["constant"] = [np.full(len(own), share) for own in cuts]
    for name, predicted in guesses.items():
        figure = Forecast.of(predicted, acts, continuations, scenario, generator("forecasts"))
        found.add(
            "forecasts",
            forecast=name,
            error=figure.error.value,
            error_low=figure.error.low,
            error_high=figure.error.high,
            floor=figure.floor,
            opening=figure.opening,
            direction=math.nan if name in ("constant", "prompt_only") else figure.direction.value,
            direction_low=math.nan if name in ("constant", "prompt_only") else figure.direction.low,
            direction_high=math.nan if name in ("constant", "prompt_only") else figure.direction.high,
            moves=figure.moves,
            cuts=figure.cuts,
        )


def _gain(found: Found, trial: Trial, kind: str, within: WithinPrompts, generator: Generator) -> None:
    """The text with a row against the text alone, the same scenarios drawn for both."""
    names = trial.columns.names
    runs, _ = trial.runs(kind, RISK)
    text = names.index("text")
    pairs = Pairs.of(runs.columns([text, *(names.index(each) for each in COMBINED if each in names)]))
    drawn = pairs.drawn(generator("gain")) if pairs.count.sum() else None
    area = pairs.area()
    inside = within.areas()
    for place, name in enumerate([each for each in COMBINED if each in names], start=1):
        column = names.index(name)
        one = all_pairs = Estimate(math.nan, math.nan, math.nan, 0)
        both = alone = math.nan
        if len(inside):
            known = np.isfinite(inside[:, column]) & np.isfinite(inside[:, text])
            difference = (inside[:, column] - inside[:, text])[known]
            both, alone = (float(np.nanmean(inside[:, each])) for each in (column, text))
            if len(difference):
                one = cluster_bootstrap(difference, np.array(within.scenario)[known], rng=generator("gain within"))
        if drawn is not None:
            gap = float(area[place] - area[0])
            all_pairs = bootstrap_interval(gap, drawn[:, place] - drawn[:, 0], len(pairs.count))
        found.add(
            "gain",
            row=COMBINED[name],
            text=alone,
            both=both,
            gain=one.value,
            low=one.low,
            high=one.high,
            all_gain=all_pairs.value,
            all_low=all_pairs.low,
            all_high=all_pairs.high,
        )


def acts(folder: str, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Rows of the table ``acts``: how often each version of the scenarios ends in the act."""
    cells: dict[tuple[str, str, str], list[Episode]] = {}
    for episode in episodes:
        cells.setdefault((episode.stratum, episode.source, episode.twin), []).append(episode)
    found = []
    for (stratum, source, twin), own in sorted(cells.items()):
        placed = [each.act for each in own if each.act is not None]
        rate = clustered_rate(
            np.array([float(each.act is not None) for each in own]), np.array([each.scenario for each in own])
        )
        found.append(
            {
                "folder": folder,
                "stratum": stratum,
                "source": source,
                "twin": twin,
                "scenarios": len({each.scenario for each in own}),
                "answers": len(own),
                "acts": len(placed),
                "rate": rate.value,
                "low": rate.low,
                "high": rate.high,
                "token": float(np.median(placed)) if placed else math.nan,
                "tokens": float(np.median([len(each.answer) for each in own])),
            }
        )
    return found


def metrics(found: Table) -> dict[str, float]:
    """The headline figures of a folder: forecaster, text and best concept, under the card's statistic."""
    values: dict[str, float] = {}
    kind = next((row["statistic"] for row in found.get("false_alarms", [])), None) or "rolling"
    for row in found.get("rows", []):
        if row["statistic"] == kind and row["row"] in ("forecaster", "text", "best_concept", "combined"):
            for name in ("within", "within_low", "within_high"):
                values[f"{row['row']}_{name}"] = float(row[name])
    for row in found.get("caught", []):
        if row["statistic"] == kind and row["row"] == "forecaster":
            values[f"forecaster_caught_at_{row['target']:g}"] = float(row["caught"])
    return values
