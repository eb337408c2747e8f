"""How figures are written, everywhere: numbers, shares, p-values, intervals, counts and lists.

A figure that is not defined is a dash, never a zero. Minus signs are true minus signs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

MINUS = "\u2212"
MISSING = "\u2013"
"""What a cell shows where a number is not defined."""
NOT_SHOWN = "not shown"
"""What a sentence says where a number is not defined."""


class Interval(Protocol):
    """A figure with the ends of its interval, such as :class:`affectlens.stats.Estimate`."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def finite(value: Any) -> float | None:
    """The number, or None where there is none (None, NaN, infinite, not a number at all)."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def number(value: Any, digits: int = 2, *, sign: bool = False) -> str:
    """Fixed decimals with a true minus sign; a dash for what is not finite."""
    found = finite(value)
    if found is None:
        return MISSING
    text = f"{found:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def count(value: Any) -> str:
    """A whole number with a comma every three digits."""
    found = finite(value)
    return MISSING if found is None else f"{found:,.0f}"


def general(value: Any, *, sign: bool = False) -> str:
    """Any finite number at a fitting precision: whole as such, otherwise three significant digits."""
    found = finite(value)
    if found is None:
        return MISSING
    plus = "+" if sign and found != 0 else ""
    if found == int(found) and abs(found) < 1e15:
        return f"{int(found):{plus},}".replace("-", MINUS)
    style = ".1e" if abs(found) < 1e-4 else ".3g" if abs(found) < 999.5 else ",.0f"
    return f"{found:{plus}{style}}".replace("-", MINUS)


def percent(share: Any) -> str:
    """A share as a percentage: whole, or with a decimal below ten."""
    found = finite(share)
    if found is None:
        return MISSING
    return f"{100 * found:.{0 if abs(found) >= 0.0995 or found == 0 else 1}f}%".replace("-", MINUS)


def p_value(p: Any, floor: float = 0.0) -> str:
    """A p-value with two significant digits, never rounded to zero.

    Args:
        p: the value.
        floor: the least that the test can give; a p that reaches it is written ``<= floor``.
    """
    found = finite(p)
    if found is None:
        return MISSING
    text = "1" if found >= 0.995 else f"{found:.2f}" if found >= 0.1 else f"{found:.2g}"
    return f"<= {text}" if found <= floor * (1 + 1e-9) else text


def interval(low: Any, high: Any, digits: int = 2, *, sign: bool = False) -> str:
    """``[low, high]``, or the words that there is none."""
    if finite(low) is None or finite(high) is None:
        return "[no interval]"
    return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"


def estimate(value: Any, low: Any, high: Any, digits: int = 2, *, sign: bool = False) -> str:
    """A value with its interval, or ``not shown``."""
    if finite(value) is None:
        return NOT_SHOWN
    return f"{number(value, digits, sign=sign)} {interval(low, high, digits, sign=sign)}"


def measured(figure: Interval, unit: str = "", digits: int = 2) -> str:
    """``0.42 nats [0.30, 0.54]``: a figure with its unit and interval."""
    if finite(figure.value) is None:
        return "undefined"
    return f"{number(figure.value, digits)}{' ' * bool(unit)}{unit} {interval(figure.low, figure.high, digits)}"


def share(figure: Interval) -> str:
    """``42% [30%, 54%]``: a share with its interval."""
    if finite(figure.value) is None:
        return "undefined"
    if finite(figure.low) is None or finite(figure.high) is None:
        return f"{percent(figure.value)} [no interval]"
    return f"{percent(figure.value)} [{percent(figure.low)}, {percent(figure.high)}]"


def names(items: Sequence[str], limit: int = 12) -> str:
    """``a, b and c``; beyond ``limit`` the rest is counted."""
    if not items:
        return "none"
    if len(items) > limit:
        return f"{', '.join(items[:limit])} and {len(items) - limit} more"
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def plural(quantity: int, one: str, many: str = "") -> str:
    """``1 topic``, ``3 topics``."""
    return f"{quantity:,} {one if quantity == 1 else many or one + 's'}"


def cell(text: str) -> str:
    """A text as a cell of a CSV file: a spreadsheet would take one that begins like a formula for one, and run it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
