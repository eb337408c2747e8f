"""The command line. Every command reads one study file, and answers a mistake with one line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from affectlens import __version__, entry
from affectlens.entry import Changes, Config, Debug, Models, OfflineRuns, Outputs, Overrides, ToCsv, ToJson, ToPage
from affectlens.errors import ConfigError, DamagedResult, MissingResult
from affectlens.everyday import explaining, exploring, exporting, keys, monitor, reading, scanning, shaping, steering

app = typer.Typer(
    name="affectlens",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Measure how a language model represents emotion concepts, and what those representations cause.\n\n"
        "One YAML file describes a study; its stages are\n\n"
        "corpus > activations > sae, directions > match > compare, geometry > causal, "
        "measure > grade > conclude > report.\n\n"
        "Start with [bold]affectlens run configs/quickstart.yaml[/bold]; it needs no account, no network and no "
        "accelerator. Everything that is computed is kept in the cache folder and used again.\n\n"
        "A mistake is answered with one sentence; every command takes [bold]--debug[/bold], which prints the "
        "traceback, too."
    ),
)

Sweep = Annotated[
    bool, typer.Option("--sweep", help="sae.k=16,32 model.layer=10,15 means four studies, one for each combination.")
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to; the current folder when left out.")] = Path(),
    debug: Debug = False,
) -> None:
    """Copy the shipped studies (configs/) and experiments (experiments/) into a folder, to be read and changed there.

    Files that are there already are kept. The shipped studies run without this, too: [bold]affectlens run
    quickstart[/bold].
    """
    from affectlens import shipped

    written = shipped.copy_out(folder)
    print(
        f"{len(written)} files written to {folder.resolve()}; next: affectlens run {folder / 'configs/quickstart.yaml'}"
    )


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    changes: Changes = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only these stages, separated by commas, and what they need.")
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
    sweep: Sweep = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would take (tokens, disk, parts, time) and stop.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a study: whatever is not in the cache yet is computed, in order.

    Interrupt it whenever you like: finished parts stay, and the next run goes on from there.

    Examples: [bold]affectlens run configs/quickstart.yaml[/bold], [bold]affectlens run my.yaml sae.k=64 --stage
    match[/bold], [bold]affectlens run my.yaml --mode retry --workers 4[/bold], [bold]affectlens run my.yaml
    sae.k=16,32,64 --sweep[/bold]
    """
    from affectlens.console import Console
    from affectlens.run import runner
    from affectlens.tracking import sweep_agent
    from affectlens.tracking.observer import WandbObserver

    studies = _studies(config, overrides, sweep)
    if mode not in ("cached", "retry", "force", "read-only"):
        raise ConfigError(f"--mode {mode}: choose cached, retry, force or read-only")
    if workers is not None and workers != "auto" and not (workers.isdigit() and int(workers) > 0):
        raise ConfigError(f"--workers {workers}: give a number from 1 up, or auto")
    names = _stages(stage)
    for study in studies:
        if dry_run:
            _print_plan(study, names)
            continue
        with Console(study.config.name) as console:
            outcomes = runner.run(
                study,
                mode=mode,  # pyright: ignore[reportArgumentType]
                only=names,
                workers=workers,
                reporter=console,
                observer=WandbObserver(),
            )
            console.close(study, outcomes)
        sweep_agent.report(study, outcomes)
    if len(studies) > 1 and not dry_run:
        _show_sweep(studies)


@app.command()
def rescore(
    config: Config, overrides: Overrides = None, changes: Changes = None, sweep: Sweep = False, debug: Debug = False
) -> None:
    """Grade and conclude the experiments again after a grader, an analysis or a claim has changed.

    The same as [bold]affectlens run --stage conclude[/bold]: only what read the change is computed, and nothing is
    sampled again unless prompts or steering have changed.
    """
    run(config, overrides, stage=["conclude"], sweep=sweep, debug=debug)


@app.command()
def status(
    config: Config,
    overrides: Overrides = None,
    changes: Changes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    sweep: Sweep = False,
    debug: Debug = False,
) -> None:
    """What the cache holds of a study, and what its jobs do.

    Per stage its state, fingerprint, folder, seconds and metrics; of unfinished ones the parts, the states of batch
    jobs, rate, time left, and the last line of whatever failed.
    """
    from affectlens.cluster import progress
    from affectlens.console import print_status
    from affectlens.run.workspace import inspect

    found = []
    for study in _studies(config, overrides, sweep):
        states = [(inspect(study, each), study.fingerprint(each)) for each in study.stages]
        jobs = progress.of_study(study)
        if not as_json:
            print_status(study, states, jobs)
            continue
        rows = {
            state.stage: {
                "state": state.state,
                "fingerprint": fingerprint,
                "folder": str(state.folder),
                "seconds": state.record["run"]["seconds"] if state.record else None,
                "parts_done": state.parts_done,
                "failures": dict(state.failures),
                "metrics": state.metrics,
                "progress": asdict(jobs[state.stage]) if state.stage in jobs else None,
            }
            for state, fingerprint in states
        }
        found.append({"study": study.config.name, "stages": rows})
    if as_json:
        print(json.dumps({"studies": found} if sweep else found[0], indent=1))


@app.command()
def report(config: Config, overrides: Overrides = None, changes: Changes = None, debug: Debug = False) -> None:
    """Write the page of a finished study again and print where it lies; nothing else is computed."""
    from affectlens.run import runner
    from affectlens.tracking.observer import WandbObserver

    study = _load(config, overrides)
    for each in study.stages:
        if each.name != "report" and runner.inspect(study, each).state != "done":
            raise MissingResult(f"stage `{each.name}` is not finished; run `affectlens run {config}` first")
    runner.run(study, only=["report"], mode="force", observer=WandbObserver())
    print(study.folder(study.stage_named("report")) / "report.html")


@app.command()
def serve(
    config: Config,
    overrides: Overrides = None,
    changes: Changes = None,
    host: Annotated[str, typer.Option(help="Address; only this machine reaches the default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8171,
    rows: Annotated[int, typer.Option(min=1, max=512, help="Answers that are decoded at once.")] = 16,
    waiting: Annotated[int, typer.Option(min=1, max=10_000, help="Requests that may wait for their turn.")] = 64,
    tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of an answer, at most.")] = 1024,
    card: Annotated[Path | None, typer.Option("--monitor", help="A card: answers may be watched by it.")] = None,
    debug: Debug = False,
) -> None:
    """Serve a study's model: OpenAI's API with steering and readings, and a live page at /.

    The study's stage [bold]directions[/bold] has to be finished. No prompt is logged.

    Examples: [bold]affectlens serve quickstart[/bold], [bold]affectlens serve my.yaml --port 0 --rows 32[/bold]
    """
    from affectlens.serve import command
    from affectlens.serve.service import Limits
    from affectlens.use.opened import Opened, finished

    study = Opened(*finished(config, *(overrides or ())))
    limits = Limits(rows=rows, waiting=waiting, tokens=tokens)
    command.serve(study, host=host, port=port, limits=limits, say=lambda line: print(line, flush=True), monitor=card)


@app.command()
def compare(
    studies: Annotated[
        list[str],
        typer.Argument(
            help="Study files, result folders, caches with one study, or groups of W&B runs (wandb:GROUP); key=value "
            "changes the study files, and sae.k=16,32 compares the studies of a sweep.",
            metavar="A",
        ),
    ],
    changes: Changes = None,
    to_json: ToJson = None,
    to_csv: ToCsv = None,
    page: ToPage = None,
    everything: Annotated[bool, typer.Option("--all", help="Show all metrics and concepts.")] = False,
    wandb: OfflineRuns = None,
    models: Models = False,
    outputs: Outputs = False,
    debug: Debug = False,
) -> None:
    """Hold studies side by side: what was set differently, and which results differ by more than their uncertainty.

    The first is what the others are held against. What is not computed yet is named and left out; nothing is computed.

    Examples: [bold]affectlens compare a.yaml b.yaml[/bold], [bold]affectlens compare my.yaml sae.k=16,32,64 --csv
    sweep.csv[/bold], [bold]affectlens compare cache/report/0123456789abcdef other_cache --json -[/bold],
    [bold]affectlens compare quickstart wandb:my-study lab/emotions/other[/bold] (a shipped study, W&B groups)
    """
    if models:
        if page is not None:
            raise ConfigError("compare: --page shows studies, not their models; leave --models out")
        from affectlens.compare.models import show

        show(studies, changes or (), to_json, outputs=outputs)
        return
    from affectlens.compare import arguments, differences, export

    if to_json == to_csv == "-":
        raise ConfigError("compare: --json and --csv cannot both go to standard output; give one of them a path")
    comparison = differences.compare(arguments.read(studies, changes or (), wandb))
    for path, text in ((to_json, export.as_json), (to_csv, export.as_csv), (page, export.as_page)):
        if path == "-":
            print(text(comparison), end="")
        elif path is not None:
            Path(path).write_text(text(comparison), encoding="utf-8")
    if "-" not in (to_json, to_csv):
        from affectlens.compare import tables

        tables.show(comparison, everything=everything)


@app.command()
def experiments(
    config: Annotated[
        Path | None, typer.Argument(help="A study file; without one, the folder `experiments` is listed.")
    ] = None,
    overrides: Overrides = None,
    changes: Changes = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Instead: a CSV with the columns item, category, elo and one of readings for each concept; prints "
            "their correlations raw, without extreme categories, and within categories."
        ),
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(help="With --table: a category that counts as extreme; may be given again.")
    ] = None,
    debug: Debug = False,
) -> None:
    """List the behavioural experiments with what they cost, before anything runs.

    Those that the study runs, or all of its folder where it runs none. Add one by adding a folder with experiment.yaml,
    scenarios.jsonl and README.md.

    Examples: [bold]affectlens experiments[/bold], [bold]affectlens experiments configs/experiments.yaml[/bold],
    [bold]affectlens experiments --table preferences.csv[/bold]
    """
    if table is not None:
        from affectlens.experiments.conclude.preference import print_table

        print_table(table, tuple(leave_out or ()))
        return
    from affectlens import plan
    from affectlens.experiments import cost
    from affectlens.run.workspace import standing
    from affectlens.study import Study, StudyConfig, stage_named

    study = Study(StudyConfig(name="experiments"), "experiments") if config is None else _load(config, overrides)
    there = standing(study, stage_named("measure")) if study.config.experiments.run else plan.Standing()
    for line in cost.lines(plan.experiments(study, there)):
        print(line)


@app.command()
def verify(config: Config, overrides: Overrides = None, changes: Changes = None, debug: Debug = False) -> None:
    """Read every file of a study's results again and compare it with its checksum.

    What is damaged is named and set aside: the next run computes just that again. What cannot be read now is named and
    stays. Exit status 1 if there is any of either. Files that nobody recorded are named, too; nothing reads them.
    """
    from affectlens.model import converted
    from affectlens.run import verify as verifying
    from affectlens.run.workspace import Workspace

    study = _load(config, overrides)
    damaged = unreadable = 0
    for each in study.stages:
        space = Workspace(study, each)
        faults = verifying.damages(space, each, contents=True)
        print(f"{each.name:<12} {verifying.summary(space, faults)}", flush=True)
        for fault in faults:
            print(f"  {fault}")
        for path in verifying.strays(space):
            print(f"  {path} is not part of the result")
        lost = sum(fault.certain for fault in faults)
        if lost:
            verifying.set_aside(space, each, contents=True)
        damaged, unreadable = damaged + lost, unreadable + len(faults) - lost
    for folder in sorted((study.config.cache / "models").glob("*/")):
        faults = converted.verify(folder) if converted.complete(folder) else []
        print(f"{'models':<12} {folder.name}: {f'{len(faults)} damaged files' if faults else 'sound'}")
        for fault in faults:
            print(f"  {fault}")
        damaged += len(faults)
    counts = [f"{count} {what}" for count, what in ((damaged, "damaged"), (unreadable, "unreadable")) if count]
    if counts:
        raise DamagedResult(
            f"{' and '.join(counts)} file{'s' * (damaged + unreadable > 1)}; damage is set aside, run the study again "
            "to repair it"
        )


@app.command()
def submit(
    config: Config,
    overrides: Overrides = None,
    changes: Changes = None,
    cluster: Annotated[
        str,
        typer.Option(
            help="slurm: batch jobs; returns at once. local: the same jobs as processes of this machine. debug: one "
            "after the other in this process."
        ),
    ] = "slurm",
    profile: Annotated[
        Path | None, typer.Option(help="What this site's jobs ask for, for example configs/cluster/gpu.yaml.")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only these stages, separated by commas, and what they need.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="cached: what is missing; stops at recorded failures. retry: failed parts again, too.")
    ] = "cached",
    sweep: Sweep = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the graph and the scripts; submit nothing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a study as batch jobs: for each stage an array over its parts and a merge, chained, handed over at once.

    You can log out afterwards. What is finished, or queued by an earlier submission, is not submitted again; so after
    a failure, a cancellation or a crash the same command with [bold]--mode retry[/bold] goes on.

    Examples: [bold]affectlens submit my.yaml --profile configs/cluster/gpu.yaml[/bold], [bold]affectlens submit my.yaml
    sae.k=16,32,64 --sweep --dry-run[/bold], [bold]affectlens submit my.yaml cluster.sae.time=12h[/bold]
    """
    from affectlens.cluster import config as settings
    from affectlens.cluster import submission
    from affectlens.tracking.observer import WandbObserver

    if cluster not in ("slurm", "local", "debug"):
        raise ConfigError(f"--cluster {cluster}: choose slurm, local or debug")
    if mode not in ("cached", "retry"):
        raise ConfigError(f"--mode {mode}: choose cached or retry; `affectlens run --mode force` computes anew")
    order = submission.Order(
        studies=_studies(config, overrides, sweep),
        names=_stages(stage),
        where=cluster,  # pyright: ignore[reportArgumentType]
        profile=settings.read_profile(profile) if profile else None,
        retry=mode == "retry",
        observer=WandbObserver(),
    )
    nodes = submission.plan(order) if dry_run else submission.submit(order, print)
    if dry_run and nodes:
        print(submission.preview(order, nodes))
    print(submission.closing(order, nodes, shlex.join([str(config), *(overrides or ())]), handed=not dry_run))


@app.command()
def cancel(
    config: Config, overrides: Overrides = None, changes: Changes = None, sweep: Sweep = False, debug: Debug = False
) -> None:
    """Cancel a study's batch jobs, waiting and running. Finished parts stay; jobs that other studies need go on."""
    from affectlens.cluster import submission

    ids, kept = submission.cancel(_studies(config, overrides, sweep))
    print(f"{len(ids)} jobs cancelled" + (f"; other studies need {', '.join(kept)}" if kept else ""))


def _print_plan(study: Any, names: Sequence[str]) -> None:
    from affectlens import plan
    from affectlens.console import print_plan
    from affectlens.run import rates, runner
    from affectlens.run.workspace import standing

    stages, tokenizer = runner.needed_for(study, names), runner.tokenizer_of(study, converting=False)
    runner.check_pending(study, names, tokenizer)
    states = [runner.inspect(study, stage).state for stage in stages]
    print_plan(plan.plan(study, stages, partial(standing, study), partial(rates.of_stage, study), tokenizer), states)


def _show_sweep(studies: Sequence[Any]) -> None:
    """Studies of a sweep side by side, once they have run."""
    from affectlens.compare import differences, folders, tables

    tables.show(differences.compare([folders.of_study(study) for study in studies]))


def _load(config: Path, overrides: Sequence[str] | None) -> Any:
    from affectlens.study import Study

    return Study.load(config, overrides or ())


def _studies(config: Path, overrides: Sequence[str] | None, sweep: bool) -> list[Any]:
    """The study, or those of the sweep."""
    from affectlens import sweep as sweeps

    if sweep:
        return sweeps.load(config, overrides or ())
    try:
        return [_load(config, overrides)]
    except ConfigError as error:
        if any(len(sweeps.alternatives(override)) > 1 for override in overrides or ()):
            raise ConfigError(f"{error}; for one study a value, add --sweep") from None
        raise


def _stages(wanted: Sequence[str] | None) -> list[str]:
    """The stages that ``--stage corpus,activations`` names, given once or again."""
    from affectlens.study import stage_named

    names = [name.strip() for text in wanted or () for name in text.split(",")]
    return [stage_named(name).name for name in names if name]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"affectlens {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None: ...


for each in (reading.read, scanning.scan, steering.steer, exporting.export, exporting.samples):
    app.command()(each)
for each in (exploring.explore, explaining.explain, keys.config, keys.concepts, shaping.shape):
    app.command()(each)
app.add_typer(monitor.app, name="monitor")


def main() -> None:
    """The entry point of ``affectlens``."""
    entry.start(app)


if __name__ == "__main__":
    main()
