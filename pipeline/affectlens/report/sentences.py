"""Findings in plain words, from templates: what is shown, what loses, and what is not shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from affectlens.report.evidence import SIGNIFICANT, Figure, Tally
from affectlens.results import format

if TYPE_CHECKING:
    from jinja2 import Environment, Template

Standing = Literal["shown", "partly shown", "not shown"]


@dataclass(frozen=True)
class Finding:
    """One result in words.

    Attributes:
        section: the part of the page that holds the figures.
        title: a claim in a few words.
        text: one to three sentences, for the head of the page and for the section.
        standing: what became of the claim.
        more: what only the section adds.
    """

    section: str
    title: str
    text: str
    standing: Standing = "not shown"
    more: str = ""


def standing(tally: Tally, *, level: float | None = None, p: float | None = None) -> Standing:
    """What a count of concepts shows, beside the count to be expected where nothing is there.

    Args:
        tally: of the concepts.
        level: of each concept's test, where the tests are not corrected: the count is held against a binomial one.
            Corrected tests (Benjamini-Hochberg) need none: that a single one passes has at most the corrected level.
        p: of all concepts together, where the stage tests them so; it then decides instead.
    """
    if p is None and level is not None and tally.total:
        from scipy.stats import binom

        p = float(binom.sf(len(tally.shown) - 1, tally.total, level))
    if (p is not None and p > SIGNIFICANT) or (p is None and not tally.shown):
        return "not shown"
    return "partly shown" if tally.missing or tally.unknown or not tally.shown else "shown"


def equip(environment: Environment) -> Environment:
    """Give a jinja environment the project's number formats."""
    environment.filters |= {
        "number": format.number,
        "count": format.count,
        "percent": format.percent,
        "general": format.general,
        "names": format.names,
        "p": format.p_value,
        "figure": _figure,
    }
    environment.globals |= {"plural": format.plural, "len": len}
    return environment


def _figure(figure: Figure, *, sign: bool = False) -> str:
    return format.estimate(*figure, sign=sign)


@cache
def _compiled(template: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    return equip(Environment(undefined=StrictUndefined)).from_string(MACROS + template)


MACROS = """
{%- macro counted(tally, what) -%}
{{ len(tally.shown) }} of {{ plural(tally.total, "concept") }} {{ "has" if len(tally.shown) == 1 else "have" }} {{
what }}.
{% if tally.missing %}Not shown for: {{ tally.missing | names }}.{% endif %}
{%- endmacro -%}
"""


def say(template: str, **values: Any) -> str:
    """A template as running text.

    Args:
        template: jinja with the project's number formats as filters; line breaks are blanks.
        values: what it names.
    """
    return " ".join(_compiled(template).render(values).split()).replace(" .", ".").replace(" ,", ",")
