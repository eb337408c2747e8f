"""Planted onsets: which shift of the state a row finds at its threshold, and how many tokens after it sets in.

An answer was steered from a random token on. A row finds the onset where its statistic is above the threshold at a
token from the onset on. At strength 0 nothing was added: what is found there is what is found by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.monitor.config import MonitorSettings
from affectlens.monitor.episodes import Episode, Written, tokenised
from affectlens.monitor.sampling import Draw, Steering, planted
from affectlens.monitor.scenarios import Prompt
from affectlens.monitor.trials import Material, Trial, followed, limit
from affectlens.stats.estimates import clustered_rate

if TYPE_CHECKING:
    from affectlens.model.subject import Subject

PLANTED = "planted"
"""The stratum of answers that were steered from some token on."""


def planted_episodes(
    subject: Subject,
    folder: str,
    prompts: Sequence[Prompt],
    pushes: Mapping[tuple[str, float], Steering],
    after: tuple[int, int],
    draw: Draw,
    generator: np.random.Generator,
) -> list[tuple[Written, Episode, Steering]]:
    """An answer to every prompt under every push, each steered from a token of its own on.

    Args:
        subject: the model.
        folder: of the scenarios.
        prompts: of them.
        pushes: by concept and strength, as a share of the mean residual norm; all after one block.
        after: between which tokens of the answer steering sets in, both included.
        draw: most tokens, temperature and rows.
        generator: gives onsets and draws.

    Returns:
        Each answer as its file has it; the same in tokens, with the onset as its act and the push as its version
        (``concept@strength``); and what was added at every row behind the onset.
    """
    vectors = [(concept, strength, push.vector) for (concept, strength), push in pushes.items()]
    asked = [prompt for prompt in prompts for _ in pushes]
    layer = next(iter(pushes.values())).layer
    found = []
    for number, onset in enumerate(planted(subject, asked, vectors, layer, after, draw, generator)):
        twin = f"{onset.concept}@{onset.strength:g}"
        name = f"{folder}/{onset.written.scenario}.{twin}.{number}"
        # The act in tokens is the onset itself: a character does not tell tokens of half a letter apart.
        row = onset.written.model_copy(update={"name": name, "twin": twin, "stratum": PLANTED, "act": None})
        episode = replace(tokenised(subject.tokenizer, row), act=onset.token)
        found.append((row, episode, pushes[onset.concept, onset.strength]))
    return found


def sensitivity(
    trial: Trial, planted: Material, kind: str, shown: Sequence[int], config: MonitorSettings
) -> Iterator[dict[str, Any]]:
    """Rows of the table ``planted``.

    Args:
        trial: whose rows, trained on all its scenarios, read the answers; its benign episodes give the thresholds.
        planted: answers whose ``act`` is the first token under the push, and whose ``twin`` names the push.
        kind: the statistic.
        shown: columns.
        config: targets and horizon.
    """
    if trial.whole is None or not planted.episodes:
        return
    scorer, base, held = trial.whole
    scores, calibration, fitted = (
        [scorer.scores(each, n) for n in range(len(each.episodes))] for each in (planted, held, base)
    )
    statistic = config.statistic.model_copy(update={"kind": kind})
    values, highest, lengths = followed(statistic, scores, calibration, fitted)
    asked = np.array([len(each.answer) for each in planted.episodes])
    onset = np.array([-1 if each.act is None else each.act for each in planted.episodes])
    scenario = np.array([each.scenario for each in planted.episodes])
    versions = np.array([each.twin for each in planted.episodes])
    for target in config.targets:
        threshold = limit(highest, lengths, asked, target)
        for column in shown:
            if np.isnan(threshold[:, column]).all():
                continue
            with np.errstate(invalid="ignore"):
                above = values[:, :, column] > threshold[:, column, None]
            # The first row that was read under the push is the one behind the onset.
            delays = [_delay(row[at + 1 : at + 1 + config.horizon]) for row, at in zip(above, onset, strict=True)]
            early = np.array([row[: at + 1].any() for row, at in zip(above, onset, strict=True)])
            for name in dict.fromkeys(versions):
                concept, _, strength = str(name).rpartition("@")
                own = np.flatnonzero(versions == name)
                delay = np.array([delays[n] for n in own])
                caught = clustered_rate(np.isfinite(delay), scenario[own])
                middle = float(np.median(delay))
                yield {
                    "row": trial.columns.names[column],
                    "family": trial.columns.families[column],
                    "statistic": kind,
                    "target": target,
                    "concept": concept,
                    "strength": float(strength),
                    "onsets": len(own),
                    "caught": caught.value,
                    "caught_low": caught.low,
                    "caught_high": caught.high,
                    "delay": middle if math.isfinite(middle) else math.nan,
                    "early": float(early[own].mean()),
                }


def _delay(above: np.ndarray) -> float:
    """Tokens read under the push up to the first above the threshold; infinite where there is none."""
    return float(above.argmax() + 1) if above.any() else math.inf
