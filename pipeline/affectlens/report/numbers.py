"""How the page writes numbers; the rules are those of :mod:`affectlens.results.format`."""

from affectlens.results.format import (
    MINUS,
    MISSING,
    NOT_SHOWN,
    count,
    estimate,
    finite,
    general,
    interval,
    names,
    number,
    p_value,
    percent,
    plural,
)

__all__ = [
    "MINUS",
    "MISSING",
    "NOT_SHOWN",
    "count",
    "estimate",
    "finite",
    "general",
    "interval",
    "names",
    "number",
    "p_value",
    "percent",
    "plural",
]
