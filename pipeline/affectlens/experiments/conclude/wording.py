"""How findings put numbers into words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from affectlens.experiments.results import Finding
from affectlens.stats import Estimate


def number(value: float, digits: int = 2) -> str:
    """A number, without a sign where it rounds to nothing."""
    if not math.isfinite(value):
        return "undefined"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def estimate(found: Estimate, unit: str = "", digits: int = 2) -> str:
    """``0.42 nats (95% interval 0.30 to 0.54)``."""
    value = number(found.value, digits) + (f" {unit}" if unit else "")
    return f"{value} ({interval(found, digits)})"


def interval(found: Estimate, digits: int = 2) -> str:
    """``95% interval 0.30 to 0.54``, or why there is none."""
    if math.isnan(found.low) or math.isnan(found.high):
        return "too few groups for an interval"
    return f"95% interval {number(found.low, digits)} to {number(found.high, digits)}"


def rate(found: Estimate) -> str:
    """``42% (95% interval 30% to 54%)``."""
    if math.isnan(found.value):
        return "undefined"
    if math.isnan(found.low):
        return f"{percent(found.value)} (too few groups for an interval)"
    return f"{percent(found.value)} (95% interval {percent(found.low)} to {percent(found.high)})"


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.0f}%" if math.isfinite(share) else "undefined"


def p(value: float) -> str:
    """A p-value, never rounded to nothing."""
    return "p undefined" if not math.isfinite(value) else f"p {value:.2f}" if value >= 0.1 else f"p {value:.2g}"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def counted(count: int, noun: str) -> str:
    """``1 group``, ``8 groups``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def untestable(reason: str, *more: str) -> Finding:
    """A finding that says why there is none."""
    return Finding("untestable", (f"This could not be tested: {reason}.", *more), {})


def cell(found: Estimate) -> tuple[float, float, float]:
    """As tables hold it."""
    return (found.value, found.low, found.high)
