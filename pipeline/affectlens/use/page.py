"""The page of read texts: one HTML file that holds its style, its script and its values, and asks for nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.report import palette, policy

if TYPE_CHECKING:
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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    held = np.cumsum([reading.values.size for reading in readings_of]) <= MOST
    shown = [reading for reading, fits in zip(readings_of, held, strict=True) if fits]
    data: dict[str, Any] = {
        "rows": [{"name": row.name, "kind": row.kind} for row in readings.rows],
        "first": first or _leading(shown, readings),
        "texts": [_text(reading) for reading in shown],
    }
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        style=palette.stylesheet("paper") + (HERE / "page.css").read_text(encoding="utf-8"),
        policy=policy.inside(script),
        script=script,
        data=_inside_script(data),
        model=model,
        layer=readings.layer,
        neutral_tokens=readings.neutral_tokens,
        left_out=len(readings_of) - len(shown),
        features=bool(readings.features),
    )


def _leading(shown: Sequence[TextReading], readings: Readings) -> str:
    concepts = [index for index, row in enumerate(readings.rows) if row.kind == "concept"]
    if not shown:
        return readings.rows[0].name
    means = shown[0].standard.mean(axis=0)
    return readings.rows[max(concepts, key=lambda index: means[index])].name


def _text(reading: TextReading) -> dict[str, Any]:
    limit = np.iinfo(np.int16).max
    whole = np.nan_to_num(reading.standard * HUNDREDTHS, posinf=limit, neginf=-limit).round().clip(-limit, limit)
    return {
        "name": reading.name,
        "tokens": reading.tokens,
        "messages": [[each.role, each.start, each.end] for each in reading.messages],
        "values": base64.b64encode(whole.astype("<i2").tobytes()).decode(),
    }


def _inside_script(value: Any) -> str:
    """JSON that may stand inside a script element: it holds no ``<``."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
