"""How the command line begins and ends: one sentence for a mistake, a signal or a full disk, a traceback on demand."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from affectlens.errors import UserError, is_out_of_memory, of_the_world, reason
from affectlens.files import require_place

CLICK_ERROR = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What unknown commands, unknown options and missing arguments raise; Typer exports only its heirs."""
DEBUG = "AFFECTLENS_DEBUG"
"""Variable that has the effect of --debug."""
INTERRUPTED = 130
PLAINER = {
    r"Input should be less than or equal to (\S+)": r"must be at most \1",
    r"Input should be greater than or equal to (\S+)": r"must be at least \1",
    r"Input should be a valid integer.*": "expected a whole number",
    r"Input should be a valid number.*": "expected a number",
}
"""What Typer says of numbers, and what is said here."""
LONGEST = 1500
"""Letters of a sentence on standard error."""
PLAIN = "finished parts are kept, run the same command to go on"


def _set_debug(wanted: bool) -> None:
    if wanted:
        os.environ[DEBUG] = "1"


W = TypeVar("W", str, Path, None)


def writable(path: W) -> W:
    """Callback of every option that names a file to be written: told before what it is to hold is computed.

    Raises:
        UserError: a file cannot be written there.
    """
    if path is not None and path != "-":
        require_place(Path(path).expanduser())
    return path


ToJson = Annotated[
    str | None,
    typer.Option("--json", callback=writable, metavar="PATH|-", help="Write all of it as JSON; - for standard output."),
]
ToCsv = Annotated[
    str | None,
    typer.Option(
        "--csv", callback=writable, metavar="PATH|-", help="Write one row a study and metric, as a W&B report takes it."
    ),
]
ToPage = Annotated[Path | None, typer.Option("--page", help="Write a self-contained HTML page.")]
OfflineRuns = Annotated[
    Path | None, typer.Option("--wandb", help="Where offline runs of a group lie; cache/wandb by default.")
]
Models = Annotated[bool, typer.Option("--models", help="How the models of two studies of the same texts differ.")]
Outputs = Annotated[bool, typer.Option("--outputs", help="With --models: what outputs alone tell, too.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_set_debug, is_eager=True, help="Print the traceback of whatever goes wrong."),
]
"""The option that every command has."""
Config = Annotated[Path, typer.Argument(help="The study file, for example configs/quickstart.yaml.", metavar="CONFIG")]
SET = "affectlens.set"
"""Where a command's context keeps what `--set` has given."""


def _keep_changes(context: typer.Context, given: list[str] | None) -> list[str]:
    context.meta[SET] = list(given or ())
    return context.meta[SET]


def _with_changes(context: typer.Context, given: list[str] | None) -> list[str]:
    return [*(given or ()), *context.meta.get(SET, ())]


Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", callback=_keep_changes, is_eager=True, metavar="KEY=VALUE",
        help="A change to the study: --set sae.k=16; may be given again.",
    ),
]  # fmt: skip
"""The option that changes the study, in every command that reads one."""
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        callback=_with_changes, metavar="[KEY=VALUE]...", help="Changes to the study, as --set takes them: sae.k=16 ..."
    ),
]
"""The same as arguments, in commands that take no texts; what ``--set`` has given comes behind them."""


def start(app: typer.Typer) -> NoReturn:
    """Run the command that the arguments name, and exit.

    Status 0; 2 for what is wrong in what was given, 1 for what the world is in the way of; 128 and its number for a
    signal.
    """
    logging.basicConfig(format="affectlens: %(message)s", level=logging.WARNING)
    # The libraries below look for updates and accounts unless told otherwise; nothing here may ask or wait.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores one of them
            signal.signal(number, _end)
    try:
        status = app(standalone_mode=False, prog_name="affectlens")
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        _explain(error)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library in Rust
            raise
        _say(f"a library gave up ({' '.join(str(error).split())}); finished parts are kept")
        status = 1
    if status == INTERRUPTED:  # Typer makes an exit status of Ctrl-C
        _say(f"interrupted; {PLAIN}")
    sys.exit(status if isinstance(status, int) else 0)


def _explain(error: Exception) -> NoReturn:
    """One sentence on standard error, and the exit status."""
    if isinstance(error, CLICK_ERROR):
        if sentence := _sentence(error):  # empty where a command without arguments has printed its help
            _say(f"{sentence} (see {_help_command(error)})")
        sys.exit(2)
    if not isinstance(error, UserError) and not of_the_world(error):
        raise error
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    if isinstance(error, UserError):
        _say(str(error))
        sys.exit(error.status)
    remedy = "use fewer --workers or smaller batches" if is_out_of_memory(error) else "put it right"
    _say(f"{reason(error)}; finished parts are kept, {remedy} and run again")
    sys.exit(1)


def _sentence(error: Any) -> str:
    """What Click says of wrong arguments, as the first clause of a sentence."""
    text = " ".join(error.format_message().split()).rstrip(".")
    for theirs, ours in PLAINER.items():
        text = re.sub(theirs, ours, text)
    return text[:1].lower() + text[1:]


def _help_command(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"`{context.command_path if context is not None else 'affectlens'} --help`"


def _end(number: int, frame: FrameType | None) -> None:
    """A signal to end: what is held is released in order, by leaving."""
    signal.signal(number, signal.SIG_IGN)
    _say(f"ended by {signal.Signals(number).name}; {PLAIN}")
    raise SystemExit(128 + number)


def _say(sentence: str) -> None:
    if len(sentence) > LONGEST:  # a value that is repeated in it may be of any length
        sentence = f"{sentence[: 2 * LONGEST // 3]} ... {sentence[-LONGEST // 3 :]}"
    print(f"affectlens: {printable(sentence)}", file=sys.stderr)


def printable(text: str) -> str:
    """Text from outside with its control characters visible, so that a name cannot steer a terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)
