"""``affectlens read``: texts of the user's own, token by token."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from affectlens.entry import Changes, Config, Debug, writable
from affectlens.errors import ConfigError, MissingResult, UserError
from affectlens.startup import uncollected

if TYPE_CHECKING:
    from affectlens.use.opened import Opened
    from affectlens.use.readings import Readings

Features = Annotated[
    str | None,
    typer.Option(
        help="SAE features to read as well: numbers separated by commas, or best: that of each concept.",
        metavar="12,34|best",
    ),
]


def read(
    config: Config,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="A text in quotes; a file: plain text, a chat as JSON, or JSONL with text or messages a line; or - "
            "for standard input. Several are read one after the other.",
            metavar="TEXT|FILE|-",
        ),
    ],
    show: Annotated[
        str | None, typer.Option(help="Colour tokens by this concept, valence, arousal, or feature:<number>.")
    ] = None,
    features: Features = None,
    to_json: Annotated[
        str | None,
        typer.Option(
            "--json", callback=writable, metavar="PATH|-", help="Write all values as JSON; - for standard output."
        ),
    ] = None,
    parquet: Annotated[Path | None, typer.Option(callback=writable, help="Write a table with a row a token.")] = None,
    page: Annotated[Path | None, typer.Option(callback=writable, help="Write a self-contained HTML page.")] = None,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Read texts: how the representation of each concept is active, token by token and message by message.

    The study's stage [bold]directions[/bold] has to be finished. Values are in standard deviations of neutral tokens,
    from their mean.

    Examples: [bold]affectlens read quickstart "Nobody came, and the lamp is still on."[/bold], [bold]affectlens read
    quickstart chats.jsonl --page chats.html[/bold], [bold]affectlens read quickstart - --json - < letter.txt[/bold]
    """
    from affectlens.everyday import terminal
    from affectlens.use import texts
    from affectlens.use.writing import Outputs

    if sum(source == "-" for source in sources) > 1:
        raise ConfigError("read: standard input (-) can be read once")
    for source in sources:
        refuse_change(source)
    study = opened(config, changes)
    readings = chosen(study, features)
    shown = None if show is None else readings.index(show)
    given = (each for source in sources for each in texts.from_source(source, sys.stdin))
    with Outputs(study, readings, to_json=to_json, parquet=parquet, page=page, first=show) as outputs:
        load(study, "reader")
        for reading in texts.read_texts(study, readings, given):
            outputs.add(reading)
            if not outputs.any:
                terminal.show_text(reading, shown)
        if not outputs.count:
            raise UserError(f"{', '.join(sources)}: holds no texts")
        if not outputs.any:
            terminal.show_scale(readings)
    for path in outputs.paths:
        print(path)


def refuse_change(argument: str) -> None:
    """Say that ``key=value``, which commands without texts take as it is, needs ``--set`` here.

    Raises:
        ConfigError: the argument names a key of study files.
    """
    from affectlens.study import StudyConfig

    key = re.match(r"([a-z_]+)(\.[a-z_]+)*=\S*$", argument)
    if key and key[1] in StudyConfig.model_fields and not Path(argument).exists():
        raise ConfigError(f"{argument}: changes the study; write --set {argument}")


def opened(config: Path, changes: Sequence[str] | None) -> Opened:
    """A study whose directions are finished.

    Raises:
        UserError: they are not.
    """
    with uncollected():
        from affectlens.use.opened import Opened, finished

        study = Opened(*finished(config, *(changes or ())))
        if "directions" not in study.folders:
            raise MissingResult(
                f"the directions of {config} are not there yet; run `affectlens run {config} --stage directions`"
            )
        if study.study is not None:
            import torch

            torch.set_num_threads(study.study.config.compute.threads)
    return study


def load(study: Opened, what: Literal["reader", "subject"]) -> None:
    """Load the model that a command is about to use: its first blocks to read, or all of it to steer.

    Raises:
        UserError: the model cannot be loaded.
    """
    with uncollected():
        getattr(study, what)


def chosen(study: Opened, features: str | None) -> Readings:
    """The rows of a study with the features that the user names.

    Raises:
        UserError: they are no features of the study.
    """
    from affectlens.use.readings import Readings

    return Readings.of(study) if features is None else Readings.of(study, feature_numbers(study, features))


def feature_numbers(study: Opened, features: str) -> list[int]:
    """The features that `--features` names: numbers, or ``best``, that of each concept.

    Raises:
        ConfigError: they are neither.
    """
    from affectlens.use.readings import FEATURE

    if features == "best":
        return list(dict.fromkeys(int(number) for number in study.result("match").best))
    names = [name.strip().removeprefix(FEATURE) for name in features.split(",")]
    wrong = [name for name in names if not name.isdecimal()]
    if wrong:
        raise ConfigError(f"--features {wrong[0]}: give numbers separated by commas, or best")
    return [int(name) for name in dict.fromkeys(names)]
