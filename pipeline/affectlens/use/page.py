"""The page of read texts: one HTML file that holds its style, its script and its values, and asks for nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.report import palette, policy

if TYPE_CHECKING:
    from jaxtyping import Float

    from affectlens.use.readings import Readings
    from affectlens.use.texts import TextReading

HERE = Path(__file__).parent
MOST = 8_000_000
"""Values that a page holds at most: 21 MB."""
HUNDREDTHS = 100
"""Values are kept as whole hundredths of a standard deviation."""


def render(readings_of: Sequence[TextReading], readings: Readings, *, model: str, first: str | None = None) -> str:
    """The page.

    Args:
        readings_of: the texts; those beyond ``MOST`` values are counted, not shown.
        readings: what was read of them.
        model: its name.
        first: the row that is shown first; the concept that leads the first text by default.
    """
    held = np.cumsum([reading.values.size for reading in readings_of]) <= MOST
    shown = [reading for reading, fits in zip(readings_of, held, strict=True) if fits]
    return fill(
        [{"name": row.name, "kind": row.kind} for row in readings.rows],
        [_text(reading) for reading in shown],
        first=first or _leading(shown, readings),
        model=model,
        layer=readings.layer,
        neutral_tokens=readings.neutral_tokens,
        left_out=len(readings_of) - len(shown),
    )


def fill(
    rows: Sequence[Mapping[str, str]],
    texts: Sequence[Mapping[str, Any]],
    *,
    first: str,
    model: str,
    layer: int,
    neutral_tokens: int = 0,
    left_out: int = 0,
    monitor: str = "",
) -> str:
    """The page of any texts with values.

    Args:
        rows: name and kind of each row.
        texts: each with its name, tokens, messages (role, start, end) and :func:`packed` values.
        first: the row that is shown first.
        model: its name.
        layer: that was read.
        neutral_tokens: on which values were standardised.
        left_out: texts that are not shown.
        monitor: what values and alarms mean, where the texts were watched by one.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        style=palette.stylesheet("paper") + (HERE / "page.css").read_text(encoding="utf-8"),
        policy=policy.inside(script),
        script=script,
        data=_inside_script({"rows": rows, "first": first, "texts": texts}),
        model=model,
        layer=layer,
        neutral_tokens=neutral_tokens,
        left_out=left_out,
        monitor=monitor,
    )


def _leading(shown: Sequence[TextReading], readings: Readings) -> str:
    concepts = [index for index, row in enumerate(readings.rows) if row.kind == "concept"]
    if not shown:
        return readings.rows[0].name
    means = shown[0].standard.mean(axis=0)
    return readings.rows[max(concepts, key=lambda index: means[index])].name


def _text(reading: TextReading) -> dict[str, Any]:
    return {
        "name": reading.name,
        "tokens": reading.tokens,
        "messages": [[each.role, each.start, each.end] for each in reading.messages],
        "values": packed(reading.standard),
    }


def packed(values: Float[np.ndarray, "tokens rows"]) -> str:
    """Values as whole hundredths in 16 bits, as base64."""
    limit = np.iinfo(np.int16).max
    whole = np.nan_to_num(values * HUNDREDTHS, posinf=limit, neginf=-limit).round().clip(-limit, limit)
    return base64.b64encode(whole.astype("<i2").tobytes()).decode()


def _inside_script(value: Any) -> str:
    """JSON that may stand inside a script element: it holds no ``<``."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
