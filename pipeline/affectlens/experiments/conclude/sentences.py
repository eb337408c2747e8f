"""Sentences from templates: one sentence a line, written with the project's number formats."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from affectlens.results import format
from affectlens.results.figures import VERDICT_WORDS

_environment = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)
_environment.filters |= {
    "number": format.number,
    "measured": format.measured,
    "share": format.share,
    "percent": format.percent,
    "p": lambda p, floor=0.0: f"p {format.p_value(p, floor)}",
    "verdict": VERDICT_WORDS.__getitem__,
    "names": format.names,
    "plural": format.plural,
}
_environment.tests |= {"nan": math.isnan, "infinite": math.isinf}


@cache
def _compiled(template: str) -> Template:
    return _environment.from_string(template)


def render(template: str, **values: Any) -> tuple[str, ...]:
    """The sentences of a template; lines that come out empty are left out, indented ones belong to the line before.

    Args:
        template: jinja, one sentence a line. Filters: ``number``, ``measured`` (with unit and interval), ``share``,
            ``percent``, ``p``, ``verdict``, ``names``, ``plural``; tests: ``nan``, ``infinite``.
        values: what it names.
    """
    lines = re.sub(r"\n[ \t]+", " ", _compiled(template).render(values)).splitlines()
    return tuple(" ".join(line.split()).replace(" ,", ",") for line in lines if line.strip())
