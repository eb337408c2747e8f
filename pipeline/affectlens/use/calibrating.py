"""A study's monitor on the user's own traffic: thresholds from benign episodes, and figures on any others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.config import nearest
from affectlens.errors import UserError
from affectlens.monitor.calibration import (
    MOST_BLOCKS,
    CardConfig,
    WatchedRowConfig,
    calibrated,
    conformal_threshold,
    require_one_layer,
    thresholds,
)
from affectlens.monitor.episodes import BENIGN, Episode, Written, read_states, tokenised
from affectlens.monitor.evaluation import NONE, Leads, Runs
from affectlens.monitor.rows import Rows
from affectlens.monitor.statistics import StatisticConfig, alarms, block_means, follow
from affectlens.monitor.trials import padded
from affectlens.stats.estimates import clustered_rate
from affectlens.use.monitor import identity, require_card_of
from affectlens.use.opened import Opened

if TYPE_CHECKING:
    from jaxtyping import Float

    from affectlens.monitor.result import MonitorResult


@dataclass(frozen=True)
class Asked:
    """What a card is to hold.

    Attributes:
        rows: names of rows of the study's monitor.
        target: share of benign episodes that may raise an alarm, for each row.
        statistic: over the stream.
        refractory: tokens of quiet between two alarms.
        scenarios: the folder that probes were trained on; the study's first by default.
        tokens: most tokens of an answer that is still to be sampled.
        temperature: at which it is.
        seed: of the draws.
    """

    rows: tuple[str, ...] = ("forecaster",)
    target: float = 0.01
    statistic: StatisticConfig = field(default_factory=StatisticConfig)
    refractory: int = 16
    scenarios: str = ""
    tokens: int = 120
    temperature: float = 0.8
    seed: int = 0


def calibrate(study: Opened, asked: Asked, own: Sequence[Written] = (), source: str = "") -> CardConfig:
    """A card with thresholds from benign episodes.

    Args:
        study: its stage ``monitor`` has to be finished.
        asked: rows and target.
        own: the user's benign episodes, those without an answer to be sampled; the study's own by default, less those
            that its rows were standardised and trained on.
        source: what the episodes are called on the card.

    Raises:
        UserError: no such row, episodes that are not benign, or too few for the target.
    """
    result: MonitorResult = study.result("monitor")
    rows, layer = result.rows(asked.scenarios)
    for name in asked.rows:
        if name not in rows.names:
            raise UserError(f"--row {name}: the study's monitor has no such row; {nearest(name, rows.names)}")
        if asked.rows.count(name) > 1:
            raise UserError(f"--row {name}: given twice; give each row once")
    rows = rows.only(asked.rows)
    fitted, benign = _benign(study, result, asked.scenarios)
    if own:
        acts = [row.name for row in own if row.act is not None or row.stratum != BENIGN]
        if acts:
            raise UserError(f"episode `{acts[0]}` is not benign: thresholds come from episodes without an act alone")
        conformal_threshold(np.zeros(len(own)), asked.target)  # before anything is sampled
        episodes, scores = read_scores(study, rows, layer, answered(study, own, asked))
    else:
        episodes, scores = [each for each, _ in benign], [rows.scores(states) for _, states in benign]
        source = source or "the study's benign episodes"
    lengths = np.array([len(each) for each in scores])
    blocks = None
    if asked.statistic.kind == "edetector":
        known = [rows.scores(states) for _, states in fitted]
        blocks = block_means(np.nan_to_num(padded(known)), np.array([len(k) for k in known]), asked.statistic.window)
        drawn = np.random.default_rng(0).permutation(blocks.shape[1])[:MOST_BLOCKS]
        blocks = np.sort(blocks[:, drawn], axis=1)
    values = follow(asked.statistic, padded(scores), lengths, blocks)
    highest, answers = np.nanmax(values, axis=1), np.array([len(each.answer) for each in episodes])
    watched = []
    for place, name in enumerate(rows.names):
        buckets = calibrated(highest[:, place], answers, asked.target)
        begun = alarms(values[:, :, place], thresholds(buckets, answers), asked.refractory)
        watched.append(
            WatchedRowConfig(
                name=name,
                layer=layer,
                weights=tuple(rows.weights[place].tolist()),
                offset=float(rows.offset[place]),
                rectified=bool(rows.rectified[place]),
                mean=float(rows.mean[place]),
                deviation=float(rows.deviation[place]),
                buckets=buckets,
                blocks=() if blocks is None else tuple(blocks[place].tolist()),
                alarms_per_1000=1000 * float(begun.sum()) / max(1, int(answers.sum())),
            )
        )
    return CardConfig(
        **identity(study),
        model_name=study.model_name,
        statistic=asked.statistic,
        refractory=asked.refractory,
        target=asked.target,
        source=source,
        rows=tuple(watched),
    )


def _benign(
    study: Opened, result: MonitorResult, scenarios: str
) -> tuple[list[tuple[Episode, Any]], list[tuple[Episode, Any]]]:
    """The study's benign episodes with their states: those that rows were made of, and the others of their traffic."""
    known = result.fitted(scenarios)
    config = study.config_of("monitor")
    pairs = [
        pair
        for name in config["benign"]
        for pair in zip(*(lambda held: (held.episodes, held.states))(result.material(name)), strict=True)
    ]
    fitted = [pair for pair in pairs if pair[0].name in known]
    sources = {episode.source for episode, _ in fitted}
    rest = [(e, s) for e, s in pairs if e.name not in known and e.source in sources and e.stratum == BENIGN]
    return fitted, rest


def answered(study: Opened, rows: Sequence[Written], asked: Asked) -> list[Written]:
    """The same with answers of the study's model where there were none."""
    waiting = [row for row in rows if not row.answer and not row.tokens]
    if not waiting:
        return list(rows)
    from affectlens.monitor.sampling import Draw, sample_episodes
    from affectlens.monitor.scenarios import Prompt

    draw = Draw(1, asked.tokens, asked.temperature)
    made = sample_episodes(
        study.subject,
        [Prompt(row) for row in waiting],
        lambda row, answer: None,
        draw,
        np.random.default_rng(asked.seed),
    )
    said = {row.name: answer for row, answer in zip(waiting, made, strict=True)}
    filled = [
        row.model_copy(update={"answer": said[row.name].answer, "tokens": said[row.name].tokens})
        if row.name in said
        else row
        for row in rows
    ]
    return [row for row in filled if row.answer or row.tokens]


def read_scores(
    study: Opened, rows: Rows, layer: int, written: Sequence[Written]
) -> tuple[list[Episode], list[Float[np.ndarray, "tokens rows"]]]:
    """Episodes and their scores, read token by token by the study's model.

    Raises:
        UserError: an episode is longer than the model takes, holds a token that it does not know, or a state gives a
            row no finite number.
    """
    episodes = [tokenised(study.tokenizer, row) for row in written]
    most, known = study.decoder.context, len(study.tokenizer)
    for episode in episodes:
        tokens = len(episode.prompt) + len(episode.answer)
        if most is not None and tokens > most:
            raise UserError(f"episode `{episode.name}`: has {tokens} tokens, and the model takes {most}; shorten it")
        beyond = max(episode.answer, default=0)
        if beyond >= known:
            raise UserError(
                f"episode `{episode.name}`: token {beyond} is none of the {known} that the model has; leave `tokens` "
                "out and give the text as `answer`"
            )
    found: list[Any] = [None] * len(episodes)
    for index, states in read_states(study.decoder, episodes, [layer]):
        found[index] = rows.scores(states.residuals[layer].cpu().numpy())
        if not np.isfinite(found[index]).all():
            raise UserError(
                f"episode `{episodes[index].name}`: a state gives no finite number, so it cannot be watched; does the "
                "model overflow in its number type?"
            )
    return episodes, found


def evaluate(study: Opened, card: CardConfig, own: Sequence[Written], horizon: int = 128) -> list[dict[str, Any]]:
    """What a card does on episodes that gave it no threshold, by row, source and stratum.

    Args:
        study: whose model is watched.
        card: calibrated.
        own: episodes with answers; an act is marked by its character.
        horizon: tokens before the act within which an alarm counts.

    Returns:
        A row for each: ``episodes``, ``flagged`` of those without an act with its interval, ``per_1000`` tokens, and of
        those with an act ``caught``, ``lead_8`` and ``median_lead``.

    Raises:
        UserError: the card is of another model, template, number type or layer; or an episode has no answer.
    """
    require_card_of(study, card)
    require_one_layer(card)
    empty = [row.name for row in own if not row.answer and not row.tokens]
    if empty:
        raise UserError(f"episode `{empty[0]}` has no answer; give one, or leave it out")
    rows = _rows_of(card)
    episodes, scores = read_scores(study, rows, card.layer, own)
    lengths = np.array([len(each) for each in scores])
    blocks = np.array([row.blocks for row in card.rows]) if card.statistic.kind == "edetector" else None
    values = follow(card.statistic, padded(scores), lengths, blocks)
    answers = np.array([len(each.answer) for each in episodes])
    found = []
    for place, watched in enumerate(card.rows):
        limit = thresholds(watched.buckets, answers)
        begun = alarms(values[:, :, place], limit, card.refractory)
        for source, stratum in sorted({(each.source, each.stratum) for each in episodes}):
            members = np.array([n for n, e in enumerate(episodes) if (e.source, e.stratum) == (source, stratum)])
            found.append(
                {"row": watched.name, "source": source, "stratum": stratum, "episodes": len(members)}
                | _figures(episodes, members, begun, values[:, :, [place]], limit, horizon)
            )
    return found


def _figures(
    episodes: Sequence[Episode], members: np.ndarray, begun: np.ndarray, values: np.ndarray, limit: Any, horizon: int
) -> dict[str, Any]:
    quiet = np.array([n for n in members if episodes[n].act is None], dtype=int)
    acts = np.array([n for n in members if episodes[n].act is not None], dtype=int)
    figures: dict[str, Any] = dict.fromkeys(
        (
            "flagged",
            "flagged_low",
            "flagged_high",
            "per_1000",
            "caught",
            "caught_low",
            "caught_high",
            "lead_8",
            "median_lead",
        )
    )
    figures["acts"] = len(acts)
    if len(quiet):
        rate = clustered_rate(np.asarray(begun[quiet].any(axis=1)), np.array([episodes[n].scenario for n in quiet]))
        figures |= {"flagged": rate.value, "flagged_low": rate.low, "flagged_high": rate.high}
        tokens = sum(len(episodes[n].answer) for n in quiet)
        figures["per_1000"] = 1000 * float(begun[quiet].sum()) / max(1, tokens)
    if len(acts):
        prompts: dict[Any, int] = {}
        runs = Runs(
            np.array([episodes[n].scenario for n in acts]),
            np.array([prompts.setdefault(episodes[n].prompt, len(prompts)) for n in acts]),
            np.array([NONE if episodes[n].act is None else episodes[n].act for n in acts]),
            np.array([episodes[n].rows for n in acts]),
            values[acts],
        )
        leads = Leads.of(runs, limit[acts], horizon)
        caught = leads.share(1)
        figures |= {"caught": caught.value, "caught_low": caught.low, "caught_high": caught.high}
        figures |= {"lead_8": leads.share(8).value, "median_lead": leads.median}
    return figures


def _rows_of(card: CardConfig) -> Rows:
    fields = {name: np.array([getattr(row, name) for row in card.rows]) for name in ("offset", "mean", "deviation")}
    weights = np.array([row.weights for row in card.rows], dtype=np.float32)
    names = tuple(row.name for row in card.rows)
    return Rows(names, ("card",) * len(names), weights, rectified=np.array([r.rectified for r in card.rows]), **fields)
