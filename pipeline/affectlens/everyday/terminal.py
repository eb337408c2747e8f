"""Readings and answers as a terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from affectlens.entry import printable
from affectlens.report.palette import LIGHT

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from affectlens.use.readings import Readings
    from affectlens.use.steering import Answers
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


def stream_answers(answers: Answers, labels: Sequence[str], table: bool) -> None:
    """Answers as they are sampled: side by side, one line a sample; those of a table of strengths below each other.

    Without a terminal they are shown once they are complete.
    """
    with Live(console=console, refresh_per_second=8, vertical_overflow="visible") as live:
        for _ in answers.stream():
            live.update(_side_by_side(answers, labels, table))
        live.update(_side_by_side(answers, labels, table))
    console.print()


def _side_by_side(answers: Answers, labels: Sequence[str], table: bool) -> Table:
    shown = Table(expand=True, show_lines=True)
    if table:
        shown.add_column("")
        shown.add_column("answer", ratio=1)
        for label, texts in zip(labels, answers.texts, strict=True):
            shown.add_row(label, Text(printable("\n\n".join(texts))))
        return shown
    for label in labels:
        shown.add_column(label, ratio=1)
    for texts in zip(*answers.texts, strict=True):
        shown.add_row(*(Text(printable(text)) for text in texts))
    return shown


def show_answers(
    labels: Sequence[str],
    answers: Answers,
    perplexities: Sequence[Sequence[float]],
    readings: Readings,
    values: Sequence[Sequence[Float[np.ndarray, "rows"]]],
    names: Sequence[str],
) -> None:
    """Perplexity of each row's answers, and how they read: what was steered by, then what leads."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    for name in ("perplexity", *names):
        table.add_column(name, justify="right")
    table.add_column("highest")
    concepts = [index for index, row in enumerate(readings.rows) if row.kind == "concept"]
    for label, perplexity, rows in zip(labels, perplexities, values, strict=True):
        means, shown = np.stack(rows), np.asarray(perplexity)
        known = np.isfinite(means).all(axis=1)
        if not known.any():
            table.add_row(label, *["empty"] * (len(names) + 2))
            continue
        mean = means[known].mean(axis=0)
        top = sorted(concepts, key=lambda index: -mean[index])[:3]
        table.add_row(
            label,
            f"{np.exp(np.log(shown[known]).mean()):.1f}",
            *(f"{mean[readings.index(name)]:+.2f}" for name in names),
            ", ".join(f"{readings.rows[index].name} {mean[index]:+.2f}" for index in top),
        )
    console.print(table)
    console.print(
        "Perplexity and readings are those of the model without steering, over each answer's tokens; of several "
        f"samples, their mean. Readings are in standard deviations of {readings.neutral_tokens:,} neutral tokens. What "
        f"the random vector does as well is not the concept's doing.\n{NOT}",
        style="dim",
    )


def show_scan(distribution: pd.DataFrame, contexts: pd.DataFrame, readings: Readings, show: str | None) -> None:
    """The distribution of every row, and the top passages of one.

    Args:
        show: the row; what has the highest token by default.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown = ("mean", "sd", "q50", "q95", "q99", "highest")
    table.add_column("")
    for name in shown:
        table.add_column(name, justify="right")
    for row in distribution.sort_values("highest", ascending=False).to_dict("records"):
        table.add_row(row["row"], *(f"{row[name]:+.2f}" for name in shown))
    console.print(table)
    if not len(contexts):
        return
    chosen = show or str(contexts.loc[contexts["value"].idxmax(), "row"])
    console.rule(Text(f"where {chosen} is highest"), align="left", style="dim")
    for row in contexts.query("row == @chosen").head(LEADING * 2).to_dict("records"):
        line = Text(f"{row['value']:+6.2f}  ", style="dim")
        line.append(printable(" ".join(row["before"].split())[-70:] + " "))
        line.append(printable(row["token"].strip() or repr(row["token"])), style=colour(row["value"]))
        line.append(printable(" " + " ".join(row["after"].split())[:70]))
        console.print(line)
    show_scale(readings)


def show_samples(samples: Sequence[Mapping[str, Any]], matching: int, every: int) -> None:
    """Sampled texts, each under what it was sampled by."""
    for row in samples:
        steered = f"{row['family']} {row['concept']}".strip() + f" at {row['strength']:g}"
        heading = f"{row['source']}: {'not steered' if row['family'] == 'none' else steered}"
        if row.get("grade") is not None:
            heading += f", graded {row['grade']}"
        console.rule(Text(printable(heading)), align="left", style="dim")
        line = Text(printable(row["prompt"]) + " ", style="dim")
        console.print(line.append(printable(row["text"]), style="not dim"))
    console.print(f"{len(samples)} of {matching} matching texts; {every} were sampled", style="dim")
