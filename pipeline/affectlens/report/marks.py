"""What the figures are made of: plain plotly specifications, put together from dots, bars, bands and axes.

Colours are written as CSS variables (``var(--direction)``); the page's script puts in their values for the light or
the dark scheme when it draws. Numbers are rounded and NaN becomes null, so that the same evidence gives the same bytes.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectlens.report.evidence import Row
from affectlens.report.numbers import finite, number

SYMBOL = {"direction": "circle", "feature": "diamond"}
ROW = 22
"""Height of one row of a dot plot, in pixels."""
DIVERGING = [[0.0, "var(--low)"], [0.5, "var(--mid)"], [1.0, "var(--high)"]]


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


def label(text: str) -> str:
    """Text as plotly shall show it: its labels read a subset of HTML."""
    return html.escape(str(text), quote=False)


def rounded(value: Any) -> Any:
    """Numbers to five significant digits, NaN and infinities to None, all the way down."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    found = finite(value)
    return None if found is None else float(f"{found:.5g}")


def ranked(rows: Sequence[Row], key: str) -> list[Row]:
    """Highest first; rows without a number last, in their order."""
    return sorted(rows, key=lambda row: (finite(row.get(key)) is None, -(finite(row.get(key)) or 0.0)))


def dots(
    rows: Sequence[Row], key: str, colour: str, name: str, quantity: str, *, spread: bool = True
) -> dict[str, Any]:
    """One dot a row, with its interval; rows without a number draw nothing."""

    def said(row: Row) -> str:
        text = f"<b>{label(row['concept'])}</b><br>{quantity} {number(row.get(key), 3)}"
        if spread and finite(row.get("low")) is not None:
            text += f" [{number(row['low'], 3)}, {number(row.get('high'), 3)}]"
        return text + (f" (n = {row['n']})" if "n" in row else "")

    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [row.get(key) for row in rows],
        "y": [label(row["concept"]) for row in rows],
        "text": [said(row) for row in rows],
        "hovertemplate": "%{text}<extra>" + name + "</extra>",
        "marker": {"color": f"var(--{colour})", "symbol": SYMBOL.get(colour, "circle"), "size": 9},
    }
    if spread:
        trace["error_x"] = bars(rows, key, colour)
    return trace


def reach(values: Sequence[Any], *, around: float) -> list[float] | None:
    """The span of all known numbers and ``around``, with a little air; None when there are none."""
    known = [number for value in values if (number := finite(value)) is not None]
    if not known:
        return None
    low, high = min(*known, around), max(*known, around)
    air = 0.05 * (high - low or 1.0)
    return [low - air, high + air]


def bars(rows: Sequence[Row], key: str, colour: str) -> dict[str, Any]:
    """Interval bars, from each row's ``low`` to its ``high``."""

    def arm(row: Row, end: str) -> float | None:
        value, other = finite(row.get(key)), finite(row.get(end))
        return None if value is None or other is None else abs(other - value)

    return {
        "type": "data",
        "symmetric": False,
        "array": [arm(row, "high") for row in rows],
        "arrayminus": [arm(row, "low") for row in rows],
        "color": f"var(--{colour})",
        "thickness": 1.6,
        "width": 0,
    }


def bands(rows: Sequence[Row], ends: Callable[[Row], tuple[Any, Any]], name: str) -> dict[str, Any]:
    """A thick bar from one number to another in each row."""
    found = [(row["concept"], finite(ends(row)[0]), finite(ends(row)[1])) for row in rows]
    spans = [(concept, a, b) for concept, a, b in found if a is not None and b is not None]
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [label(concept) for concept, _, _ in spans],
        "base": [min(a, b) for _, a, b in spans],
        "x": [abs(b - a) for _, a, b in spans],
        "width": 0.62,
        "marker": {"color": "var(--band)", "line": {"width": 0}},
        "hoverinfo": "skip",
    }


def dot_plot(
    name: str,
    traces: list[dict[str, Any]],
    order: Sequence[str],
    *,
    title: str,
    zero: float,
    words: str,
    row: int = ROW,
    limits: Sequence[float] | None = None,
) -> Chart:
    """Rows of dots, first of ``order`` on top, with a rule at ``zero``."""
    plan = layout(
        xaxis=axis(title, side="top") | ({"range": list(limits)} if limits else {}),
        yaxis=axis("")
        | {"type": "category", "categoryorder": "array", "categoryarray": [label(item) for item in order]}
        | {"range": [len(order) - 0.4, -0.6], "showgrid": True, "ticklabelstandoff": 6},
    )
    plan["shapes"] = [rule("x", zero)]
    keyed = len([trace for trace in traces if trace.get("showlegend", True)]) > 1
    plan["margin"] |= {"t": 82 if keyed else 52, "b": 12}
    plan["showlegend"] = keyed
    plan["yaxis"].pop("title")
    if len(order) <= 60:
        plan["yaxis"] |= {"tickmode": "linear", "dtick": 1}
    return chart(name, traces, plan, 100 + row * max(len(order), 1), words)


def heat(
    name: str,
    values: Sequence[Sequence[Any]],
    rows: Sequence[str],
    columns: Sequence[str],
    quantity: str,
    limit: float,
) -> Chart:
    """A square of cells, its scale centred on zero and cut at ``limit``."""
    hover = f"%{{y}} → %{{x}}<br>{quantity} %{{z:.2f}}<extra></extra>"
    trace = {
        "type": "heatmap",
        "z": [list(row) for row in values],
        "x": [label(item) for item in columns],
        "y": [label(item) for item in rows],
        "colorscale": DIVERGING,
        "zmin": -limit,
        "zmax": limit,
        "hoverongaps": False,
        "hovertemplate": hover,
        "colorbar": colour_bar("") | {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"},
        "xgap": 1 if len(rows) <= 60 else 0,
        "ygap": 1 if len(rows) <= 60 else 0,
    }
    ticks = {"type": "category", "showgrid": False, "tickfont": {"size": 10.5}}
    if len(rows) <= 60:
        ticks |= {"tickmode": "linear", "dtick": 1}
    plan = layout(xaxis=axis("") | ticks | {"tickangle": -60}, yaxis=axis("") | ticks | {"autorange": "reversed"})
    plan["margin"] |= {"t": 8, "b": 8}
    side = min(max(len(rows), 6), 60)
    words = f"Heat map: {quantity} for every pair of {len(rows)} concepts."
    return chart(name, [trace], plan, 130 + 16 * side, words, wide=min(140 + 11 * side, 800))


def line(name: str, x: Sequence[Any], y: Sequence[Any], colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": f"var(--{colour})", "width": 2},
        "marker": {"color": f"var(--{colour})", "size": 8},
        "hovertemplate": "%{x}: %{y:.3f}<extra>" + name + "</extra>",
    }


def rule(axis: str, value: float) -> dict[str, Any]:
    other = "y" if axis == "x" else "x"
    place = {f"{axis}0": value, f"{axis}1": value, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {
        "type": "line",
        "layer": "below",
        "line": {"color": "var(--soft)", "width": 1.3, "dash": "dash"},
        **place,
    }


def note(text: str, x: float, y: float, xanchor: str, yanchor: str) -> dict[str, Any]:
    place = {"x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": xanchor, "yanchor": yanchor}
    return {"text": text, "showarrow": False, "font": {"color": "var(--soft)", "size": 12}, **place}


def colour_bar(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "side": "top", "font": {"size": 12}},
        "thickness": 10,
        "len": 0.5,
        "outlinewidth": 0,
        "tickfont": {"size": 11},
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 12.5}},
        "gridcolor": "var(--grid)",
        "linecolor": "var(--axis)",
        "zeroline": False,
        "zerolinecolor": "var(--axis)",
        "automargin": True,
        "fixedrange": True,
        "tickfont": {"size": 12},
        **{key: value for key, value in more.items() if value is not None},
    }


def layout(xaxis: dict[str, Any], yaxis: dict[str, Any]) -> dict[str, Any]:
    return {
        "xaxis": xaxis,
        "yaxis": yaxis,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "var(--sans)", "size": 13, "color": "var(--ink)"},
        "margin": {"l": 12, "r": 12, "t": 14, "b": 44},
        "hovermode": "closest",
        "dragmode": False,
        "barmode": "overlay",
        "legend": {"orientation": "h", "font": {"size": 12}}
        | {"x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--axis)", "activecolor": "var(--ink)"},
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--axis)",
            "font": {"color": "var(--ink)", "family": "var(--sans)"},
            "align": "left",
        },
    }


def chart(
    name: str, data: list[dict[str, Any]], layout: dict[str, Any], height: int, words: str, *, wide: int = 0
) -> Chart:
    return Chart(name, rounded({"data": data, "layout": {**layout, "height": height}}), height, words, wide)
