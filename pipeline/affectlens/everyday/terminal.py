"""Readings and answers as a terminal shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from affectlens.entry import printable
from affectlens.report.palette import LIGHT

if TYPE_CHECKING:
    from jaxtyping import Float

    from affectlens.use.readings import Readings
    from affectlens.use.texts import TextReading

FULL = 4.0
"""Standard deviations at which a colour is full."""
FAINT = 0.5
"""Below, a token has no colour."""
LEADING = 5
"""Concepts that are listed of each message."""
NOT = (
    "A value says how far the representation of a concept is active at a token, against neutral text. It does not say "
    "what anybody feels, nor that the model will act on it."
)
"""What a reading is not, said once wherever readings are shown."""

console = Console(highlight=False)


def colour(standard: float) -> str:
    """The style of a token: green above neutral text, purple below, on white so that it reads on any terminal."""
    share = min(abs(standard) / FULL, 1.0)
    if abs(standard) < FAINT or not np.isfinite(standard):
        return ""
    full = LIGHT["high" if standard > 0 else "low"]
    red, green, blue = (round(255 - 0.8 * share * (255 - int(full[at : at + 2], 16))) for at in (1, 3, 5))
    return f"black on #{red:02x}{green:02x}{blue:02x}"


def coloured(tokens: list[str], standard: Float[np.ndarray, "tokens"]) -> Text:
    """Tokens on their colours."""
    line = Text()
    for token, value in zip(tokens, standard, strict=True):
        line.append(printable(token), style=colour(float(value)))
    return line


def show_text(reading: TextReading, shown: int | None) -> None:
    """One text: its messages' tokens coloured by one row, and the rows that lead in each.

    Args:
        shown: the row; the concept that leads over the whole text by default.
    """
    names = [row.name for row in reading.rows]
    concepts = [index for index, row in enumerate(reading.rows) if row.kind == "concept"]
    if shown is None:
        shown = max(concepts, key=lambda index: reading.standard[:, index].mean())
    console.rule(Text(f"{printable(reading.name)[:60]}, coloured by {names[shown]}"), align="left", style="dim")
    for message, means in zip(reading.messages, reading.means(), strict=True):
        if message.role:
            console.print(Text(printable(message.role), style="bold"))
        stretch = slice(message.start, message.end)
        console.print(coloured(reading.tokens[stretch], reading.standard[stretch, shown]), soft_wrap=False)
        console.print(leading(reading, stretch, means, concepts, shown))


def leading(
    reading: TextReading, stretch: slice, means: Float[np.ndarray, "rows"], concepts: list[int], shown: int
) -> Table:
    """The concepts that lead in a message, then what is no concept, and where each is highest."""
    others = [index for index in range(len(reading.rows)) if index not in concepts]
    listed = sorted(concepts, key=lambda index: -means[index])[:LEADING]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "mean", "highest", "at"):
        table.add_column(name, justify="left" if name in ("", "at") else "right")
    for index in dict.fromkeys([*listed, shown, *others]):
        values = reading.standard[stretch, index]
        top = int(values.argmax())
        token = printable(reading.tokens[stretch][top]).strip() or repr(reading.tokens[stretch][top])
        table.add_row(reading.rows[index].name, f"{means[index]:+.2f}", f"{values[top]:+.2f}", Text(token), style=None)
    return table


def show_scale(readings: Readings) -> None:
    """The unit of what was shown, and what it is not."""
    console.print(
        f"Layer {readings.layer}. Unit: standard deviations of {readings.neutral_tokens:,} tokens of the study's "
        f"neutral texts; 0 is their mean. Colours are full at {FULL:g}.\n{NOT}",
        style="dim",
    )
