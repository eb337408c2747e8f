"""Charts of the page as plotly specifications: dots with intervals, lines and bars, labelled points, heat maps.

Colours are CSS variables (``var(--direction)``); the page's script puts in their values for the scheme in which it
draws.
What all charts share is :data:`TEMPLATE`, which the page holds once. Numbers are rounded and NaN becomes null, so that
the same evidence gives the same bytes.
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
_AXIS = {
    "title": {"standoff": 10, "font": {"size": 12.5}},
    "gridcolor": "var(--grid)",
    "linecolor": "var(--axis)",
    "zeroline": False,
    "zerolinecolor": "var(--axis)",
    "automargin": True,
    "fixedrange": True,
    "tickfont": {"size": 12},
}
TEMPLATE = {
    "xaxis": _AXIS,
    "yaxis": _AXIS,
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "var(--sans)", "size": 13, "color": "var(--ink)"},
    "hovermode": "closest",
    "barmode": "overlay",
    "legend": {"orientation": "h", "font": {"size": 12}, "x": 0, "xref": "container"}
    | {"y": 1, "yref": "container", "yanchor": "top"},
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--axis)", "activecolor": "var(--ink)"},
    "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--axis)", "align": "left"}
    | {"font": {"color": "var(--ink)", "family": "var(--sans)"}},
}
"""The layout that all charts share."""


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        name: id of its element.
        spec: ``data`` and ``layout`` for plotly.
        height: in pixels.
        words: what is drawn, for those who cannot see it.
        wide: least width in pixels; on narrower screens the figure scrolls within its frame.
    """

    name: str
    spec: dict[str, Any]
    height: int
    words: str
    wide: int = 0


@dataclass(frozen=True)
class Marks:
    """A series and how it is drawn.

    Attributes:
        series: the points; ``x`` are categories in a dot plot.
        colour: of the palette, or one a point.
        symbol: plotly's, or one a point.
        size: of the marks.
        dash: of the line.
        width: of the line.
        more: further keys of plotly's ``marker``.
    """

    series: Series
    colour: str | Sequence[str] = "ink"
    symbol: str | Sequence[str] = "circle"
    size: float = 9
    dash: str = "solid"
    width: float = 2
    more: Mapping[str, Any] = field(default_factory=dict)


def label(text: Any) -> str:
    """Text as plotly shall show it: its labels read a subset of HTML."""
    return html.escape(str(text), quote=False)


def series(
    name: str,
    rows: Sequence[Row],
    key: str,
    *,
    x: str = "concept",
    spread: bool = True,
    note: Callable[[Row], str] = str,
) -> Series:
    """A column of rows as a series at their ``x``, with the interval of ``low`` and ``high``; ``note`` adds to the
    hover."""
    given = note is not str
    return Series(
        name,
        [row[x] for row in rows],
        [row.get(key) for row in rows],
        [row.get("low") for row in rows] if spread else None,
        [row.get("high") for row in rows] if spread else None,
        [note(row) for row in rows] if given else None,
    )


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
    spans = [(concept, a, b) for concept, a, b in ends if a is not None and b is not None]
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [label(concept) for concept, _, _ in spans],
        "base": [min(a, b) for _, a, b in spans],
        "x": [abs(b - a) for _, a, b in spans],
        "width": 0.62,
        "marker": {"color": "var(--band)", "line": {"color": "var(--axis)", "width": 1}},
        "hoverinfo": "skip",
    }


def dots(
    name: str,
    marks: Sequence[Marks],
    order: Sequence[str],
    *,
    title: str,
    zero: float,
    words: str,
    behind: Sequence[dict[str, Any]] = (),
    row: int = 22,
    limits: Sequence[float] | None = None,
) -> Chart:
    """Rows of dots with intervals, first of ``order`` on top, with a rule at ``zero``; ``row`` is a row's height in
    pixels.

    The series' ``x`` are of ``order``. Traces ``behind`` the dots may be :func:`bands`.
    """
    traces = [*behind, *(_trace(each, "markers", across=True) for each in marks)]
    xaxis = {"title": {"text": title}, "side": "top"} | ({"range": list(limits)} if limits else {})
    # A long label takes two lines, so that on a phone there is room for the dots.
    yaxis = {"type": "category", "range": [len(order) - 0.4, -0.6], "showgrid": True, "ticklabelstandoff": 6}
    yaxis |= {"categoryorder": "array", "categoryarray": [label(item) for item in order]}
    if len(order) <= 60:
        lines = [[label(line) for line in textwrap.wrap(str(item), 26)] or [""] for item in order]
        yaxis |= {"tickvals": list(range(len(order))), "ticktext": ["<br>".join(each) for each in lines]}
        row = max(row, 15 * max((len(each) for each in lines), default=1) + 5)
    keyed = len(traces) > 1
    layout = {"xaxis": xaxis, "yaxis": yaxis, "shapes": [rule("x", zero)], "showlegend": keyed}
    return _chart(name, traces, layout, 100 + row * max(len(order), 1), words, top=82 if keyed else 52, bottom=12)


def lines(
    name: str,
    kind: Literal["line", "bar", "scatter"],
    marks: Sequence[Marks],
    *,
    x: str,
    y: str,
    words: str,
    height: int = 340,
    **layout: Any,
) -> Chart:
    """Series against a number or category; ``layout`` holds further keys of plotly's, its axes are added to."""
    traces = [_trace(each, {"line": "lines+markers", "bar": "bar", "scatter": "markers"}[kind]) for each in marks]
    named = [trace for trace in traces if trace.get("showlegend", True)]
    xaxis = {"title": {"text": label(x)}} | layout.pop("xaxis", {})
    if any(isinstance(value, str) for each in marks for value in each.series.x):
        xaxis["type"] = "category"
    yaxis = {"title": {"text": label(y)}} | layout.pop("yaxis", {})
    layout = {"xaxis": xaxis, "yaxis": yaxis, "showlegend": len(named) > 1, "barmode": "group"} | layout
    return _chart(name, traces, layout, height, words, top=40 + 18 * (len(named) // 5) if len(named) > 1 else 14)


def points(
    name: str,
    marks: Sequence[Marks],
    *,
    x: str,
    y: str,
    words: str,
    height: int,
    wide: int,
    room: tuple[float, float] = (100, 26),
    **layout: Any,
) -> Chart:
    """Points with their names beside them where there is room (letters, lines); all names appear under the pointer.

    The series' ``labels`` are the name of the point, a line break, and what else the pointer shows.
    """
    places = {
        text.partition("\n")[0]: (at, value or 0.0)
        for each in marks
        for text, at, value in zip(each.series.labels or (), each.series.x, each.series.y, strict=True)
    }
    sides, traces = label_sides(places, room), []
    for each in marks:
        names = [text.partition("\n")[0] for text in each.series.labels or ()]
        traces.append(
            _trace(each, "markers+text")
            | {
                "showlegend": False,
                "text": [label(item) if item in sides else "" for item in names],
                "textposition": [sides.get(item, "top center") for item in names],
                "textfont": {"color": "var(--ink)", "size": 11.5},
                "customdata": [
                    "<b>{}</b><br>{}".format(*map(label, text.partition("\n")[::2]))
                    for text in each.series.labels or ()
                ],
                "cliponaxis": False,
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    layout["xaxis"] = {"title": {"text": x}} | layout.get("xaxis", {})
    layout["yaxis"] = {"title": {"text": y}} | layout.get("yaxis", {})
    return _chart(name, traces, layout, height, words, wide=wide)


def heat(
    name: str,
    cells: Mapping[tuple[str, str], Any],
    rows: Sequence[str],
    columns: Sequence[str],
    quantity: str,
    limit: float,
) -> Chart:
    """A square of cells by (row, column), its scale centred on zero and cut at ``limit``."""
    gap = 1 if len(rows) <= 60 else 0
    bar = {"thickness": 10, "len": 0.5, "outlinewidth": 0, "tickfont": {"size": 11}, "orientation": "h"}
    trace = {
        "type": "heatmap",
        "z": [[cells.get((row, column)) for column in columns] for row in rows],
        "x": [label(item) for item in columns],
        "y": [label(item) for item in rows],
        "colorscale": DIVERGING,
        "zmin": -limit,
        "zmax": limit,
        "hoverongaps": False,
        "hovertemplate": f"%{{y}} → %{{x}}<br>{quantity} %{{z:.2f}}<extra></extra>",
        "colorbar": bar | {"x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"},
        "xgap": gap,
        "ygap": gap,
    }
    ticks: dict[str, Any] = {"type": "category", "showgrid": False, "tickfont": {"size": 10.5}}
    if gap:
        ticks |= {"tickmode": "linear", "dtick": 1}
    layout = {"xaxis": ticks | {"tickangle": -60}, "yaxis": ticks | {"autorange": "reversed"}}
    side = min(max(len(rows), 6), 60)
    words = f"Heat map: {quantity} for every pair of {len(rows)} names."
    return _chart(name, [trace], layout, 130 + 16 * side, words, wide=min(140 + 11 * side, 800), top=8, bottom=8)


def colour_bar(title: str) -> dict[str, Any]:
    """The scale beside points that are coloured by a number."""
    heading = {"text": title, "side": "top", "font": {"size": 12}}
    return {"title": heading, "thickness": 10, "len": 0.5, "outlinewidth": 0, "tickfont": {"size": 11}}


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
        "marker": {"color": colour, **marks.more},
    }
    if one.low is not None and one.high is not None:
        trace[f"error_{value}"] = {
            "type": "data",
            "symmetric": False,
            "array": [_arm(y, high) for y, high in zip(one.y, one.high, strict=True)],
            "arrayminus": [_arm(y, low) for y, low in zip(one.y, one.low, strict=True)],
            "color": "var(--ink)" if many else colour,
            "thickness": 1.6,
            "width": 0,
        }
    if mode == "bar":
        return trace | {"type": "bar", "textposition": "none"}
    trace["marker"] = {"symbol": marks.symbol, "size": marks.size} | trace["marker"]
    if "lines" in mode:
        trace["line"] = {"color": colour, "width": marks.width, "dash": marks.dash}
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
    name: str,
    traces: Sequence[dict[str, Any]],
    layout: Mapping[str, Any],
    height: int,
    words: str,
    *,
    wide: int = 0,
    top: int = 14,
    bottom: int = 44,
) -> Chart:
    margin = {"l": 12, "r": 12, "t": top, "b": bottom}
    layout = {"dragmode": False, "margin": margin, "height": height} | dict(layout)
    return Chart(name, _rounded({"data": list(traces), "layout": layout}), height, words, wide)


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


def label_sides(points: Mapping[str, tuple[float, float]], room: tuple[float, float] = (100, 26)) -> dict[str, str]:
    """On which side of its point each label goes so that none overlaps another; those without room are left out.

    Greedy from left to right over four sides, with boxes estimated from the number of letters.

    Args:
        points: places by name.
        room: width of the plot in letters and height in lines.
    """
    if not points:
        return {}
    spans = [max(p[i] for p in points.values()) - min(p[i] for p in points.values()) or 1.0 for i in (0, 1)]
    scaled = {concept: (x / spans[0] * room[0], y / spans[1] * room[1]) for concept, (x, y) in points.items()}
    taken = [(x - 0.9, y - 0.35, x + 0.9, y + 0.35) for x, y in scaled.values()]
    chosen = {}
    for concept, (x, y) in sorted(scaled.items(), key=lambda item: (item[1], item[0])):
        half = len(concept) / 2 + 0.5
        boxes = {
            "top center": (x - half, y + 0.45, x + half, y + 1.45),
            "bottom center": (x - half, y - 1.45, x + half, y - 0.45),
            "middle right": (x + 1.2, y - 0.5, x + 1.2 + 2 * half, y + 0.5),
            "middle left": (x - 1.2 - 2 * half, y - 0.5, x - 1.2, y + 0.5),
        }
        covered = {name: sum(_overlap(box, other) for other in taken) for name, box in boxes.items()}
        side = min(covered, key=lambda name: covered[name])
        if covered[side] < 0.2 * len(concept):
            taken.append(boxes[side])
            chosen[concept] = side
    return chosen


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
