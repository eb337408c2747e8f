"""What pages with figures stand in: one HTML file with its style, script, data and plotly, which asks for nothing."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from affectlens.report import draw, palette, policy
from affectlens.report.sentences import HERE

if TYPE_CHECKING:
    from jinja2 import Template


def whole(
    template: Template, charts: Iterable[draw.Chart], /, *, colours: palette.Name = "paper", **values: Any
) -> str:
    """A page.

    Args:
        template: extends ``frame.html.j2``.
        charts: that stand on it.
        colours: name of the palette.
        values: of the template, ``theme`` and ``sections`` (headings by id, in order) among them.

    Returns:
        The HTML. The same values give the same bytes.
    """
    script = saving_script() + (HERE / "page.js").read_text(encoding="utf-8")
    figures = {each.name: each.spec for each in charts}
    return template.render(
        style=palette.stylesheet(colours) + (HERE / "page.css").read_text(encoding="utf-8"),
        policy=policy.inside(script, _plotly()),
        script=script,
        plotly=_packed(_plotly()),
        specifications=as_json({"template": {"layout": draw.TEMPLATE}, "figures": figures}),
        **values,
    )


def saving_script() -> str:
    """``saveTable(name, rows)``: a table as a CSV file."""
    return (HERE / "saving.js").read_text(encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element: it holds no ``<``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


@cache
def _packed(script: str) -> str:
    """A script compressed to a third, as text; the page unpacks it without asking anybody."""
    return base64.b64encode(gzip.compress(script.encode(), compresslevel=9, mtime=0)).decode()
