"""``affectlens steer``: the model answers plainly, steered, and under a random vector of the same norm."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affectlens.entry import Changes, Config, Debug, writable
from affectlens.errors import ConfigError
from affectlens.everyday.reading import load, opened, refuse_change

if TYPE_CHECKING:
    import numpy as np

    from affectlens.use.opened import Opened
    from affectlens.use.readings import Readings
    from affectlens.use.steering import Answers, Recipe
    from affectlens.use.texts import Messages

MOST_ROWS = 64
"""Rows of a table of strengths, the plain one included."""
Values = Mapping[str, Sequence[float]]
"""By name, one amount, or those of a range."""


@dataclass(frozen=True)
class Line:
    """One row of the batch as it is shown.

    Attributes:
        label: what was done.
        random: whether along a random direction.
        recipe: the same for the engine.
    """

    label: str
    random: bool
    recipe: Recipe


def steer(
    config: Config,
    prompt: Annotated[
        str, typer.Argument(help="What is answered: a text, a file (text, or a chat as JSON), or -.", metavar="PROMPT")
    ],
    strengths: Annotated[
        list[str] | None,
        typer.Argument(
            help="desperate=0.1 calm=-0.05 feature:123=0.1 circuit:sad=0.3: how far to push, as a share of the mean "
            "residual norm; "
            "0.05 to 0.2 is usual. A range from:to:count makes a table: desperate=0:0.2:5.",
            metavar="[NAME=AMOUNT]...",
        ),
    ] = None,
    out: Annotated[list[str] | None, typer.Option(help="Project this out; may be given again.")] = None,
    clamp: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: hold the reading at a value (or a range of them).")
    ] = None,
    cap: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: hold the reading at most at a value (or a range of them).")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="After these blocks, each the whole amount: 10,12-14. The study's by default.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers of each sort.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 60,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws and of the random direction.")] = 0,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Continue the text instead of answering it as a user's message.")
    ] = False,
    to_json: Annotated[
        str | None,
        typer.Option(
            "--json", callback=writable, metavar="PATH|-", help="Write answers, perplexities and readings as JSON."
        ),
    ] = None,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Steer the model by concepts: plain answer, steered answer, and one under a random vector, with the same draws.

    The push acts on every token of the prompt and of the answer. Beside each answer stand its perplexity to the
    unsteered model, and how its text reads to that model.

    Examples: [bold]affectlens steer quickstart "I lost my key." desperate=0.1[/bold], [bold]affectlens steer quickstart
    "I lost my key." desperate=0:0.2:5[/bold], [bold]affectlens steer quickstart "I lost my key." --cap desperate=0
    --samples 3[/bold]
    """
    from affectlens.use import texts
    from affectlens.use.steering import Answers, Draws

    given = {"add": amounts(strengths, "NAME=AMOUNT"), "clamp": amounts(clamp, "--clamp"), "cap": amounts(cap, "--cap")}
    lines = planned(given, tuple(out or ()), numbers(layers), seed)
    study = opened(config, changes)
    (_, content), *_ = texts.from_source(prompt, sys.stdin)
    asked = as_chat(study, content, go_on=go_on)
    answers = Answers(study, asked, [line.recipe for line in lines], Draws(tokens, samples, temperature, seed))
    load(study, "subject")
    names = list(dict.fromkeys([*given["add"], *(out or ()), *given["clamp"], *given["cap"]]))
    if to_json is None:
        from affectlens.everyday import terminal

        labels = [line.label for line in lines]
        terminal.stream_answers(answers, labels, len(lines) > 3)
        readings, values = read_answers(study, answers, names)
        terminal.show_answers(labels, answers, answers.perplexities(), readings, values, names)
        return
    answers.run()
    readings, values = read_answers(study, answers, names)
    text = json.dumps(as_json(lines, answers, readings, values), ensure_ascii=False, indent=1)
    if to_json == "-":
        print(text)
    else:
        Path(to_json).expanduser().write_text(text + "\n", encoding="utf-8")
        print(to_json)


def amounts(given: Sequence[str] | None, where: str) -> dict[str, list[float]]:
    """``name=0.1`` and ``name=0:0.2:5`` as the amounts of each name.

    Raises:
        ConfigError: it is neither.
    """
    found: dict[str, list[float]] = {}
    for text in given or ():
        refuse_change(text)
        name, equals, value = text.rpartition("=")
        parts = value.split(":")
        try:
            numbers = [float(part) for part in parts]
            if not equals or len(numbers) not in (1, 3) or not all(abs(number) < 1e6 for number in numbers):
                raise ValueError
            if len(numbers) == 3:
                start, end, count = numbers[0], numbers[1], int(parts[2])
                if not 2 <= count < MOST_ROWS:
                    raise ValueError
                numbers = [round(start + (end - start) * step / (count - 1), 9) for step in range(count)]
        except ValueError:
            raise ConfigError(f"{where} {text}: write desperate=0.1, or a range desperate=0:0.2:5") from None
        found[name] = numbers
    return found


def numbers(given: str | None) -> tuple[int, ...]:
    """``10,12-14`` as numbers.

    Raises:
        ConfigError: it is something else.
    """
    found: list[int] = []
    for part in (given or "").split(",") if given is not None else ():
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"--layers {given}: write 10, or 10,12-14")
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))


def planned(given: Mapping[str, Values], out: tuple[str, ...], layers: tuple[int, ...], seed: int) -> list[Line]:
    """The plain row, then every combination of amounts, steered and along a random direction.

    Raises:
        ConfigError: nothing is asked for, or too many rows.
    """
    from affectlens.use.steering import Recipe, pushes

    keys = [(action, name) for action, values in given.items() for name in values]
    if not keys and not out:
        raise ConfigError("steer: say by what, for example desperate=0.1, --out desperate or --cap desperate=0")
    lines = [Line("plain", False, Recipe())]
    grid = list(itertools.product(*(given[action][name] for action, name in keys)))
    if 1 + 2 * len(grid) > MOST_ROWS:
        raise ConfigError(f"steer: {1 + 2 * len(grid)} rows; ask for {MOST_ROWS} at most")
    for combination in grid:
        chosen: dict[str, dict[str, float]] = {action: {} for action in given}
        for (action, name), amount in zip(keys, combination, strict=True):
            chosen[action][name] = amount
        label = ", ".join(
            [f"{'' if action == 'add' else action + ' '}{name} {chosen[action][name]:g}" for action, name in keys]
            + [f"without {name}" for name in out]
        )
        done = pushes(chosen["add"], out, chosen["clamp"], chosen["cap"], layers)
        if any(push.amount or push.action != "add" for push in done):
            lines += [Line(label, False, Recipe(done)), Line(f"random for {label}", True, Recipe(done, random=seed))]
    return lines


def as_chat(study: Opened, content: str | Messages, *, go_on: bool) -> str | Messages:
    """What is asked: a plain text as a user's message, where the model has a chat template."""
    if isinstance(content, str) and not go_on and getattr(study.tokenizer, "chat_template", None):
        return [{"role": "user", "content": content}]
    return content


def read_answers(study: Opened, answers: Answers, names: Sequence[str]) -> tuple[Readings, list[list[np.ndarray]]]:
    """How every answer reads, in standard deviations of neutral tokens: means by row and sample."""
    from affectlens.use.readings import FEATURE, Readings
    from affectlens.use.steering import mean

    readings = Readings.of(study, [int(name.removeprefix(FEATURE)) for name in names if name.startswith(FEATURE)])
    values = [[readings.standard(mean(each)) for each in row] for row in answers.readings(readings)]
    return readings, values


def as_json(
    lines: Sequence[Line], answers: Answers, readings: Readings, values: Sequence[Sequence[np.ndarray]]
) -> dict[str, Any]:
    """Answers with all that is known of them; what is no number becomes null."""

    def plain(value: float) -> float | None:
        return round(value, 6) if value == value else None

    rows = zip(lines, answers.texts, answers.perplexities(), values, strict=True)
    return {
        "unit": "standard deviations of neutral tokens, read by the model without steering",
        "answers": [
            {
                "condition": line.label,
                "random": line.random,
                "sample": sample,
                "text": text,
                "perplexity": plain(perplexity),
                "readings": {name: plain(float(v)) for name, v in zip(readings.names, reading, strict=True)},
            }
            for line, texts, perplexities, means in rows
            for sample, (text, perplexity, reading) in enumerate(zip(texts, perplexities, means, strict=True))
        ],
    }
