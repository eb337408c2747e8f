"""Colours of the page, for light and dark surroundings, written as CSS variables.

Directions and features keep their colour everywhere; what is shown by colour is also shown by shape or by words.
The diverging scale (purple to green) can be told apart with the common forms of colour blindness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Name = Literal["paper", "contrast"]
Theme = Literal["auto", "light", "dark"]

LIGHT = {
    "bg": "#fbfaf7",
    "card": "#ffffff",
    "ink": "#1d2127",
    "soft": "#5a616b",
    "line": "#e2dfd6",
    "grid": "#eceae3",
    "axis": "#8a877d",
    "direction": "#1f5fa8",
    "feature": "#b54d08",
    "control": "#77746d",
    "band": "#d8d4c9",
    "good": "#176b3c",
    "bad": "#a0322b",
    "mark": "#ffd666",
    "low": "#762a83",
    "mid": "#f3f0e9",
    "high": "#1b7837",
}
DARK = {
    "bg": "#14171b",
    "card": "#1c2026",
    "ink": "#e8e6e1",
    "soft": "#a5abb4",
    "line": "#30353d",
    "grid": "#272c33",
    "axis": "#7b828c",
    "direction": "#7db4f0",
    "feature": "#f2a35e",
    "control": "#9a9fa7",
    "band": "#3b414a",
    "good": "#6fcf97",
    "bad": "#f0938c",
    "mark": "#8a6a10",
    "low": "#c79adf",
    "mid": "#2b3037",
    "high": "#6cc48a",
}
PALETTES: Mapping[Name, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "paper": (LIGHT, DARK),
    "contrast": (
        {**LIGHT, "bg": "#ffffff", "ink": "#000000", "soft": "#3d3d3d", "axis": "#555555", "mid": "#ffffff"},
        {**DARK, "bg": "#000000", "card": "#0b0b0b", "ink": "#ffffff", "soft": "#d0d0d0", "axis": "#a0a0a0"},
    ),
}


def stylesheet(name: Name) -> str:
    """The variables of a palette: light by default and on paper, dark where the reader or the page asks for it."""
    light, dark = (_variables(colours) for colours in PALETTES[name])
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f'@media screen and (prefers-color-scheme:dark){{:root[data-theme="auto"]{{color-scheme:dark;{dark}}}}}\n'
        f'@media screen{{:root[data-theme="dark"]{{color-scheme:dark;{dark}}}}}\n'
    )


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())
