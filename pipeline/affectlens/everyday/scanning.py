"""``affectlens scan``: which texts of a corpus light a concept up."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from affectlens.entry import Changes, Config, Debug
from affectlens.errors import ConfigError
from affectlens.everyday.reading import Features, chosen, load, opened

if TYPE_CHECKING:
    from affectlens.use.scanning import State

TELL_EVERY_S = 10.0
"""Seconds between two lines of progress."""


def scan(
    config: Config,
    corpus: Annotated[
        str, typer.Argument(help="JSONL with text or messages a line, or a folder that `datasets` saved.")
    ],
    out: Annotated[Path, typer.Option(help="The folder that gets the tables and the state of every part.")],
    part: Annotated[
        str, typer.Option(help="i/n: only the i-th of n parts; the last one to end merges them.", metavar="I/N")
    ] = "1/1",
    show: Annotated[
        str | None, typer.Option(help="Print the top passages of this; of what is highest by default.")
    ] = None,
    features: Features = None,
    top: Annotated[int, typer.Option(min=1, help="Passages that are kept of a concept or feature.")] = 20,
    first_token: Annotated[
        int, typer.Option(min=0, help="Tokens before this one of a text are not counted: models park attention there.")
    ] = 4,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Read a corpus of any size: the passages at which each concept is highest, and its distribution over tokens.

    The same command goes on where an earlier one was stopped. Tables lie in OUT/tables as Parquet: distribution and
    contexts. On a cluster: [bold]sbatch --array=1-16 --wrap 'affectlens scan my.yaml texts.jsonl --out scan --part
    $SLURM_ARRAY_TASK_ID/16'[/bold].
    """
    from affectlens.use import texts
    from affectlens.use.scanning import Scan, identity

    number, slash, parts = part.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ConfigError(f"--part {part}: write i/n, for example 3/16")
    path = Path(corpus).expanduser()
    if not path.exists():
        raise ConfigError(f"{corpus}: no such file or folder; give a JSONL file, or a folder that `datasets` saved")
    study = opened(config, changes)
    readings = chosen(study, features)
    if show is not None:
        readings.index(show)
    job = Scan(study, readings, out.expanduser(), identity(path), int(parts), first_token, top)
    load(study, "reader")
    state = job.run(int(number), texts.from_source(corpus, sys.stdin), Progress())
    print(f"part {part}: {state.done:,} texts, {state.tokens:,} tokens")
    tables = job.merge()
    if tables is None:
        print(f"the tables are written when all {parts} parts are complete")
        return
    from affectlens.everyday import terminal

    terminal.show_scan(tables["distribution"], tables["contexts"], readings, show)
    print(out / "tables")


class Progress:
    """Says on standard error how far a part is, every few seconds."""

    def __init__(self) -> None:
        self._began = self._told = time.monotonic()
        self._before: int | None = None

    def __call__(self, state: State) -> None:
        if self._before is None:
            self._before = state.tokens
        now = time.monotonic()
        if now - self._told >= TELL_EVERY_S:
            self._told = now
            speed = (state.tokens - self._before) / (now - self._began)
            print(f"{state.done:,} texts, {state.tokens:,} tokens, {speed:,.0f} tokens/s", file=sys.stderr, flush=True)
