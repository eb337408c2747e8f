"""What is said of a circuit, by rule, with the figures that the rule asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from affectlens.circuits.tables import ALL
from affectlens.results.format import estimate, number, p_value

if TYPE_CHECKING:
    from affectlens.circuits.config import CircuitsConfig, Verdict


STOPS = ("enough contexts", "contrast", "stable")
"""Questions after which, answered no, none of the others is asked."""


@dataclass(frozen=True)
class Question:
    """One question of the rule: whether it is answered yes, and the figures that answer it, in a sentence."""

    name: str
    met: bool
    figures: str


def questions(row: Mapping[str, Any], config: CircuitsConfig) -> dict[str, Question]:
    """What the rule asks of a circuit, by name, with the answers."""

    def value(key: str) -> float:
        return math.nan if row[key] is None else float(row[key])

    known = not (math.isnan(value("contrast_low")) or math.isnan(value("stability")))
    found = [
        Question(
            "enough contexts",
            known,
            "The contrast needs an interval over topics, and two samples of the contexts an overlap.",
        ),
        Question(
            "contrast",
            value("contrast_low") > 0,
            f"{estimate(row['contrast'], row['contrast_low'], row['contrast_high'])} nats; the interval has to lie "
            "above 0.",
        ),
        Question(
            "stable",
            value("stability") >= config.stable and value("stability") > value("stability_chance"),
            f"Two bootstrap samples share {number(row['stability'])} of their heads; at least {config.stable:g} and "
            f"more than the {number(row['stability_chance'])} of random sets.",
        ),
        Question(
            "necessary",
            value("left") <= config.necessary and value("left") < value("random_left"),
            f"{number(row['left'])} of the contrast is left without it; at most {config.necessary:g}, and less than "
            f"the {number(row['random_left'])} left without the most hurtful random circuit.",
        ),
        Question(
            "sufficient",
            value("ratio") >= config.sufficient
            and value("slope") >= config.sufficient / 2
            and value("ratio") > value("random_ratio"),
            f"Alone it gives {number(row['ratio'])} of the contrast, with a slope of {number(row['slope'])} over "
            f"contexts; at least {config.sufficient:g} with a slope of {config.sufficient / 2:g}, and more than the "
            f"{number(row['random_ratio'])} of the best random circuit.",
        ),
    ]
    if row["concept"] != ALL:
        found.append(
            Question(
                "specific",
                value("p_adjusted") <= config.level,
                "That its own heads hurt its words no more than other concepts' heads do has a corrected p of "
                f"{p_value(row['p_adjusted'])}; at most {config.level:g}.",
            )
        )
    return {each.name: each for each in found}


def answers(row: Mapping[str, Any], config: CircuitsConfig) -> list[dict[str, str]]:
    """The questions for readers: ``name``, ``answer`` (yes, no, not asked) and ``figures``."""
    found, stopped = [], False
    for name, each in questions(row, config).items():
        answer = "not asked" if stopped else "yes" if each.met else "no"
        found.append({"name": name, "answer": answer, "figures": each.figures})
        stopped = stopped or (name in STOPS and not each.met)
    return found


def verdict(row: Mapping[str, Any], config: CircuitsConfig) -> Verdict:
    """What is said of a circuit, by rule.

    In this order: fewer than two topics or selection contexts, so that neither interval nor overlap is known. The
    contrast's interval reaches 0 or below: there is nothing to explain. Its heads are not the same
    over bootstraps of the contexts. Nothing is lost without it beyond what random circuits lose. A concept's circuit
    that hurts its words no more than other concepts' circuits do is shared. Then it is necessary, and sufficient too
    where it alone gives the contrast, over contexts as well as on average, and no random circuit does.
    """
    asked = {name: each.met for name, each in questions(row, config).items()}
    said: tuple[Verdict, ...] = ("too few contexts", "no contrast to explain", "not stable")
    for name, stopped in zip(STOPS, said, strict=True):
        if not asked[name]:
            return stopped
    necessary, sufficient = asked["necessary"], asked["sufficient"]
    if not (necessary or sufficient):
        return "neither necessary nor sufficient"
    if not asked.get("specific", True):
        return "not concept-specific"
    return (
        "necessary and sufficient" if necessary and sufficient else "necessary only" if necessary else "sufficient only"
    )
