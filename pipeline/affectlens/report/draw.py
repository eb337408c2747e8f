"""Charts of the page as plotly specifications: dots with intervals, lines and bars, labelled points, heat maps.

Colours are CSS variables (``var(--direction)``); the page's script puts in their values for the scheme in which it
draws. What all charts share is :data:`TEMPLATE`, which the page holds once. Numbers are rounded and NaN becomes null,
so that the same evidence gives the same bytes.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from affectlens.report.evidence import Row
from affectlens.results.figures import Series
from affectlens.results.format import finite, number

DIVERGING = [[0.0, "var(--low)"], [0.5, "var(--mid)"], [1.0, "var(--high)"]]
COLOURS = ("direction", "feature", "ink", "low", "high", "control")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
DASHES = ("solid", "dash", "dot", "dashdot")
_CLEAR = "rgba(0,0,0,0)"
_AXIS = {
    "title": {"standoff": 10, "font": {"size": 12.5}},
    **{"gridcolor": "var(--grid)", "linecolor": "var(--axis)", "zerolinecolor": "var(--axis)", "zeroline": False},
    **{"automargin": True, "fixedrange": True, "tickfont": {"size": 12}},
}
TEMPLATE = {
    **{"xaxis": _AXIS, "yaxis": _AXIS, "paper_bgcolor": _CLEAR, "plot_bgcolor": _CLEAR, "dragmode": False},
    **{"font": {"family": "var(--sans)", "size": 13, "color": "var(--ink)"}, "hovermode": "closest"},
    "legend": {"orientation": "h", "font": {"size": 12}, "x": 0, "xref": "container"}
    | {"y": 1, "yref": "container", "yanchor": "top"},
    "modebar": {"bgcolor": _CLEAR, "color": "var(--axis)", "activecolor": "var(--ink)"},
    "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--axis)", "align": "left"}
    | {"font": {"color": "var(--ink)", "family": "var(--sans)"}},
}
"""The layout that all charts share."""
BAR = {"thickness": 10, "len": 0.5, "outlinewidth": 0, "tickfont": {"size": 11}}
"""The scale beside a map, or beside points that are coloured by a number."""


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        spec: ``data`` and ``layout`` for plotly.
        wide: least width in pixels; on narrower screens the figure scrolls within its frame.
        name: id of its element; the page gives it, like ``words`` and ``caption``.
        words: what is drawn, for those who cannot see it.
        caption: below it.
    """

    spec: dict[str, Any]
    wide: int = 0
    name: str = ""
    words: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Marks:
    """A series and how it is drawn; colour and symbol may be one a point. ``marker`` and ``line`` are plotly's."""

    series: Series
    colour: str | Sequence[str] = "ink"
    symbol: str | Sequence[str] = "circle"
    size: float = 9
    marker: Mapping[str, Any] = field(default_factory=dict)
    line: Mapping[str, Any] = field(default_factory=dict)


def marks(
    name: str,
    rows: Sequence[Row],
    key: str,
    colour: str | Sequence[str] = "ink",
    symbol: str | Sequence[str] = "circle",
    size: float = 9,
    *,
    at: str = "concept",
    spread: bool = True,
    note: Callable[[Row], str] | None = None,
    **style: Any,
) -> Marks:
    """A column of rows as a series at their ``at``, with the interval of ``low`` and ``high``; ``note`` adds to what
    the pointer shows."""
    low, high = ([row.get(end) for row in rows] if spread else None for end in ("low", "high"))
    labels = [note(row) for row in rows] if note else None
    series = Series(name, [row[at] for row in rows], [row.get(key) for row in rows], low, high, labels)
    return Marks(series, colour, symbol, size, **style)


def label(text: Any) -> str:
    """Text as plotly shall show it: its labels read a subset of HTML."""
    return html.escape(str(text), quote=False)


def folded(text: Any, letters: int) -> str:
    """A label over several lines."""
    return "<br>".join(map(label, textwrap.wrap(str(text), letters) or [""]))


def ranked(rows: Sequence[Row], key: str) -> list[Row]:
    """Highest first; rows without a number last, in their order."""
    return sorted(rows, key=lambda row: (finite(row.get(key)) is None, -(finite(row.get(key)) or 0.0)))


def reach(values: Sequence[Any], *, around: float) -> list[float] | None:
    """The span of all numbers and ``around``, with a little air; None when there are none."""
    known = [number for value in values if (number := finite(value)) is not None]
    if not known:
        return None
    low, high = min(*known, around), max(*known, around)
    air = 0.05 * (high - low or 1.0)
    return [low - air, high + air]


def rule(axis: Literal["x", "y"], value: float) -> dict[str, Any]:
    """A dashed rule at a value of an axis."""
    other = "y" if axis == "x" else "x"
    ends = {f"{axis}0": value, f"{axis}1": value, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {"type": "line", "layer": "below", "line": {"color": "var(--soft)", "width": 1.3, "dash": "dash"}} | ends


def bands(rows: Sequence[Row], low: str, high: str, name: str) -> dict[str, Any]:
    """A thick bar from one number to another in each row of a dot plot; from 0 where ``low`` is empty."""
    ends = [(row["concept"], finite(row.get(low)) if low else 0.0, finite(row.get(high))) for row in rows]
    spans = [(label(concept), min(a, b), abs(b - a)) for concept, a, b in ends if a is not None and b is not None]
    y, base, x = ([span[part] for span in spans] for part in range(3))
    marker = {"color": "var(--band)", "line": {"color": "var(--axis)", "width": 1}}
    trace = {"type": "bar", "orientation": "h", "name": name, "width": 0.62, "marker": marker, "hoverinfo": "skip"}
    return {**trace, "y": y, "base": base, "x": x}


def dots(
    marks: Sequence[Marks],
    order: Sequence[str] | None = None,
    *,
    title: str,
    zero: float,
    behind: Sequence[dict[str, Any]] = (),
    row: int = 22,
    limits: Sequence[float] | None = None,
) -> Chart:
    """Rows of dots with intervals and a rule at ``zero``.

    Args:
        marks: their ``x`` are of ``order``.
        order: the rows, first on top; those of the first marks where left out.
        title: of the axis.
        zero: where nothing is.
        behind: traces below the dots, such as :func:`bands`.
        row: height of one in pixels.
        limits: of the axis.
    """
    order = list(marks[0].series.x) if order is None else order
    traces = [*behind, *(_trace(each, "markers", across=True) for each in marks)]
    # On a phone the axis is as wide as some 30 letters, and a label in two lines leaves room for the dots.
    xaxis = {"title": {"text": folded(title, 30)}, "side": "top"} | ({"range": list(limits)} if limits else {})
    yaxis = {"type": "category", "range": [len(order) - 0.4, -0.6], "showgrid": True, "ticklabelstandoff": 6}
    yaxis |= {"categoryorder": "array", "categoryarray": [label(item) for item in order]}
    if len(order) <= 60:
        names = [folded(item, 26) for item in order]
        yaxis |= {"tickvals": list(range(len(order))), "ticktext": names}
        row = max(row, 15 * max((name.count("<br>") + 1 for name in names), default=1) + 5)
    keyed = len(traces) > 1
    layout = {"xaxis": xaxis, "yaxis": yaxis, "shapes": [rule("x", zero)], "showlegend": keyed, "barmode": "overlay"}
    top = 52 + 30 * keyed + 14 * (len(title) > 30)
    return _chart(traces, layout, top + 30 + row * max(len(order), 1), top=top, bottom=12)


def lines(
    kind: Literal["line", "bar", "scatter"], marks: Sequence[Marks], x: str, y: str, height: int = 340, **layout: Any
) -> Chart:
    """Series against a number or category; ``layout`` holds further keys of plotly's, its axes are added to."""
    traces = [_trace(each, {"line": "lines+markers", "bar": "bar", "scatter": "markers"}[kind]) for each in marks]
    axes: dict[str, Any] = {"xaxis": {"title": {"text": label(x)}}, "yaxis": {"title": {"text": label(y)}}}
    if any(isinstance(value, str) for each in marks for value in each.series.x):
        axes["xaxis"]["type"] = "category"
    axes = {axis: found | layout.pop(axis, {}) for axis, found in axes.items()}
    keyed = layout.setdefault("showlegend", len(traces) > 1)
    return _chart(
        traces, axes | {"barmode": "group"} | layout, height, top=40 + 18 * (len(traces) // 5) if keyed else 14
    )


def points(
    marks: Sequence[Marks],
    x: str,
    y: str,
    *,
    height: int,
    wide: int,
    room: tuple[float, float] = (100, 26),
    avoid: Sequence[tuple[float, float]] = (),
    **layout: Any,
) -> Chart:
    """Points with their names beside them where there is room (letters, lines) and away from the places to ``avoid``;
    all names appear under the pointer.

    The series' ``labels`` are the name of the point, a line break, and what else the pointer shows.
    """
    said = [[text.partition("\n")[::2] for text in each.series.labels or ()] for each in marks]
    places = {
        name: (at, value or 0.0)
        for each, texts in zip(marks, said, strict=True)
        for (name, _), at, value in zip(texts, each.series.x, each.series.y, strict=True)
    }
    sides, traces = label_sides(places, room, avoid), []
    for each, texts in zip(marks, said, strict=True):
        shown = {
            "text": [label(name) if name in sides else "" for name, _ in texts],
            "textposition": [sides.get(name, "top center") for name, _ in texts],
            "customdata": [f"<b>{label(name)}</b><br>{label(more)}" for name, more in texts],
        }
        fixed = {"showlegend": False, "cliponaxis": False, "hovertemplate": "%{customdata}<extra></extra>"}
        font = {"color": "var(--ink)", "size": 11.5}
        traces.append(_trace(each, "markers+text") | shown | fixed | {"textfont": font})
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    axes = {axis: found | layout.pop(axis, {}) for axis, found in axes.items()}
    return _chart(traces, axes | layout, height, wide=wide)


def heat(
    cells: Mapping[tuple[str, str], Any],
    order: Sequence[str],
    quantity: str,
    limit: float,
    columns: Sequence[str] | None = None,
) -> Chart:
    """Cells by (row, column), their scale centred on zero and cut at ``limit``; a square in one order without
    ``columns``."""
    across = order if columns is None else columns
    gap = 1 if len(order) <= 60 else 0
    names = [label(item) for item in order]
    trace = {
        **{
            "type": "heatmap",
            "x": [label(item) for item in across],
            "y": names,
            "xgap": gap,
            "ygap": gap,
            "hoverongaps": False,
        },
        **{"colorscale": DIVERGING, "zmin": -limit, "zmax": limit},
        "z": [[cells.get((row, column)) for column in across] for row in order],
        "hovertemplate": f"%{{y}} → %{{x}}<br>{quantity} %{{z:.2f}}<extra></extra>",
        "colorbar": BAR | {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"},
    }
    ticks: dict[str, Any] = {"type": "category", "showgrid": False, "tickfont": {"size": 10.5}}
    ticks |= {"tickmode": "linear", "dtick": 1} if gap else {}
    layout = {"xaxis": ticks | {"tickangle": -60}, "yaxis": ticks | {"autorange": "reversed"}}
    side = min(max(len(order), 6), 60)
    return _chart([trace], layout, 130 + 16 * side, wide=min(140 + 11 * side, 800), top=8, bottom=8)


def _trace(marks: Marks, mode: str, *, across: bool = False) -> dict[str, Any]:
    one, value, place = marks.series, *(("x", "y") if across else ("y", "x"))
    many = not isinstance(marks.colour, str)
    colour = [f"var(--{each})" for each in marks.colour] if many else f"var(--{marks.colour})"
    trace: dict[str, Any] = {
        "name": label(one.name),
        place: [label(each) if isinstance(each, str) else each for each in one.x],
        value: list(one.y),
        "text": [_hover(one, index) for index in range(len(one.x))],
        "hovertemplate": "%{text}<extra>" + label(one.name) + "</extra>",
        "marker": {"color": colour, **marks.marker},
    }
    if one.low is not None and one.high is not None:
        arms = {"array": one.high, "arrayminus": one.low}
        trace[f"error_{value}"] = {
            **{
                "type": "data",
                "symmetric": False,
                "thickness": 1.6,
                "width": 0,
                "color": "var(--ink)" if many else colour,
            },
            **{arm: [_arm(y, end) for y, end in zip(one.y, ends, strict=True)] for arm, ends in arms.items()},
        }
    if mode == "bar":
        return trace | {"type": "bar", "textposition": "none"}
    outline = {"line": {"width": 1.8}} if "open" in marks.symbol else {}
    trace["marker"] = {"symbol": marks.symbol, "size": marks.size} | outline | trace["marker"]
    if "lines" in mode:
        trace["line"] = {"color": colour, **marks.line}
    return trace | {"type": "scatter", "mode": mode}


def _arm(value: Any, end: Any) -> float | None:
    a, b = finite(value), finite(end)
    return None if a is None or b is None else abs(b - a)


def _hover(one: Series, index: int) -> str:
    text = f"<b>{label(one.x[index])}</b><br>{number(one.y[index], 3)}"
    if one.low is not None and one.high is not None and finite(one.low[index]) is not None:
        text += f" [{number(one.low[index], 3)}, {number(one.high[index], 3)}]"
    return f"{text}<br>{label(one.labels[index])}" if one.labels else text


def _chart(
    traces: Sequence[Any], layout: Mapping[str, Any], height: int, *, wide: int = 0, top: int = 14, bottom: int = 44
) -> Chart:
    margin = {"l": 12, "r": 12, "t": top, "b": bottom}
    return Chart(_rounded({"data": traces, "layout": {"margin": margin, "height": height, **layout}}), wide)


def _rounded(value: Any) -> Any:
    """Numbers to five significant digits, NaN and infinities to None, all the way down."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    found = finite(value)
    return None if found is None else float(f"{found:.5g}")


def label_sides(
    points: Mapping[str, tuple[float, float]],
    room: tuple[float, float] = (100, 26),
    avoid: Sequence[tuple[float, float]] = (),
) -> dict[str, str]:
    """On which side of its point each label goes so that none overlaps another; those without room are left out.

    Greedy from left to right over four sides, with boxes estimated from the number of letters.

    Args:
        points: places by name.
        room: width of the plot in letters and height in lines.
        avoid: places that labels shall not cover.
    """
    if not points:
        return {}
    spans = [max(p[i] for p in points.values()) - min(p[i] for p in points.values()) or 1.0 for i in (0, 1)]
    scaled = {name: (x / spans[0] * room[0], y / spans[1] * room[1]) for name, (x, y) in points.items()}
    others = [(x / spans[0] * room[0], y / spans[1] * room[1]) for x, y in avoid]
    taken = [(x - 0.9, y - 0.35, x + 0.9, y + 0.35) for x, y in [*scaled.values(), *others]]
    chosen = {}
    for name, (x, y) in sorted(scaled.items(), key=lambda item: (item[1], item[0])):
        half = len(name) / 2 + 0.5
        boxes = {
            "top center": (x - half, y + 0.45, x + half, y + 1.45),
            "bottom center": (x - half, y - 1.45, x + half, y - 0.45),
            "middle right": (x + 1.2, y - 0.5, x + 1.2 + 2 * half, y + 0.5),
            "middle left": (x - 1.2 - 2 * half, y - 0.5, x - 1.2, y + 0.5),
        }
        covered = {side: sum(_overlap(box, other) for other in taken) for side, box in boxes.items()}
        side = min(covered, key=covered.__getitem__)
        if covered[side] < 0.1 * len(name):
            taken.append(boxes[side])
            chosen[name] = side
    return chosen


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
