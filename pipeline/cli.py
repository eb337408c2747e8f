"""The command line. Every command reads one study file, and answers a mistake with one line."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import __version__
from pipeline.errors import ConfigError, MissingResult, UserError

app = typer.Typer(
    name="affectlens",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Measure how a language model represents emotion concepts, and what those representations cause.\n\n"
        "One YAML file describes a study; its stages are\n\n"
        "corpus > activations > sae, directions > match > compare, geometry > causal > report.\n\n"
        "Start with [bold]affectlens run configs/quickstart.yaml[/bold]; it needs no account, no network and no "
        "accelerator. Everything that is computed is kept in the cache folder and used again."
    ),
)

Config = Annotated[Path, typer.Argument(help="The study file, for example configs/quickstart.yaml.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the study: sae.k=16 model.layer=10 ...", metavar="[KEY=VALUE]..."),
]


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage and what it needs; may be given again.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="cached: use what is there. retry: also run failed parts again. force: compute anew (all stages, or "
            "those given by --stage). read-only: compute nothing."
        ),
    ] = "cached",
    workers: Annotated[
        str | None,
        typer.Option(help="Processes that share the work: a number, or auto. The results are the same."),
    ] = None,
) -> None:
    """Run a study: whatever is not in the cache yet is computed, in order.

    Interrupt it whenever you like: finished parts stay, and the next run goes on from there.

    Examples: [bold]affectlens run configs/quickstart.yaml[/bold], [bold]affectlens run my.yaml sae.k=64 --stage
    match[/bold], [bold]affectlens run my.yaml --mode retry --workers 4[/bold]
    """
    from pipeline import runner
    from pipeline.console import Console

    study = _load(config, overrides)
    if mode not in ("cached", "retry", "force", "read-only"):
        raise ConfigError(f"--mode {mode}: choose cached, retry, force or read-only")
    if workers is not None and workers != "auto" and not (workers.isdigit() and int(workers) > 0):
        raise ConfigError(f"--workers {workers}: give a number from 1 up, or auto")
    names = [_stage(name) for name in stage or ()]
    with Console(study.config.name) as console:
        outcomes = runner.run(study, mode=mode, only=names, workers=workers, reporter=console)  # pyright: ignore[reportArgumentType]
        console.close(study, outcomes)


@app.command()
def status(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """What the cache holds of a study: per stage its state, fingerprint, folder, seconds and metrics."""
    from pipeline import runner
    from pipeline.console import print_status
    from pipeline.study import STAGES

    study = _load(config, overrides)
    states = [(runner.inspect(study, each), study.fingerprint(each)) for each in STAGES]
    if not as_json:
        print_status(study, states)
        return
    rows = {
        state.stage: {
            "state": state.state,
            "fingerprint": fingerprint,
            "folder": str(state.folder),
            "seconds": state.record["run"]["seconds"] if state.record else None,
            "parts_done": state.parts_done,
            "failures": dict(state.failures),
            "metrics": state.metrics,
        }
        for state, fingerprint in states
    }
    print(json.dumps({"study": study.config.name, "stages": rows}, indent=1))


@app.command()
def report(config: Config, overrides: Overrides = None) -> None:
    """Write the page of a finished study again and print where it lies; nothing else is computed."""
    from pipeline import runner
    from pipeline.study import STAGES, stage_named

    study = _load(config, overrides)
    for each in STAGES:
        if each.name != "report" and runner.inspect(study, each).state != "done":
            raise MissingResult(f"stage `{each.name}` is not finished; run `affectlens run {config}` first")
    runner.run(study, only=["report"])
    print(study.folder(stage_named("report")) / "report.html")


def _load(config: Path, overrides: Sequence[str] | None) -> Any:
    from pipeline.study import Study

    return Study.load(config, overrides or ())


def _stage(name: str) -> str:
    from pipeline.study import stage_named

    return stage_named(name).name


def _version(wanted: bool) -> None:
    if wanted:
        print(f"affectlens {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None: ...


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Mistakes end in one sentence on standard error: status 2 for a wrong config, 1 for the rest."""
    try:
        yield
    except UserError as error:
        print(f"affectlens: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except KeyboardInterrupt:
        print("affectlens: interrupted; finished parts are kept, run the same command to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        if os.environ.get("AFFECTLENS_DEBUG"):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"affectlens: {error.strerror or error}{where}; finished parts are kept, put it right and run again",
            file=sys.stderr,
        )
        raise SystemExit(1) from None


def main() -> None:
    """The entry point of ``affectlens``."""
    logging.basicConfig(format="affectlens: %(message)s", level=logging.WARNING)
    # The libraries below look for updates and accounts unless told otherwise; nothing here may ask or wait.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with _one_line_errors():
        app()


if __name__ == "__main__":
    main()
