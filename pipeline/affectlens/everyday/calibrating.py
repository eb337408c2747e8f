"""``affectlens monitor calibrate`` and ``evaluate``: thresholds from benign episodes, and a card on others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from affectlens.config import nearest
from affectlens.entry import Config, Debug, printable, writable
from affectlens.errors import ConfigError
from affectlens.everyday.reading import Changes, opened

KINDS = ("rolling", "own_start", "cusum", "edetector")


def calibrate(
    config: Config,
    out: Annotated[Path, typer.Argument(callback=writable, help="Where the card is written.", metavar="CARD")],
    episodes: Annotated[
        Path | None,
        typer.Option(
            help="Benign episodes of your own: JSONL with `messages` and, where there is one, `answer`; answers that "
            "lack are sampled. The study's own benign episodes by default."
        ),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(help="A row of the study's monitor, such as forecaster or desperate; may be given again."),
    ] = None,
    target: Annotated[
        float, typer.Option(min=0, max=1, help="Share of benign episodes that may raise an alarm, for each row.")
    ] = 0.05,
    statistic: Annotated[str, typer.Option(help="rolling, own_start, cusum or edetector.")] = "rolling",
    scenarios: Annotated[
        str, typer.Option(help="The folder of scenarios that probes were trained on; the study's first by default.")
    ] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer that is sampled.")] = 120,
    temperature: Annotated[float, typer.Option(min=0, help="At which it is sampled.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Set thresholds on benign episodes and write a card.

    The next benign episode passes a row's threshold with a chance of at most the target, if it is like those of the
    calibration. A target below 1 / (episodes + 1) is refused. The study's stage [bold]monitor[/bold] has to be
    finished.

    Examples: [bold]affectlens monitor calibrate monitor card.json[/bold], [bold]affectlens monitor calibrate monitor
    card.json --episodes mine.jsonl --row forecaster --row desperate --target 0.01[/bold]
    """
    from affectlens.monitor.calibration import write_card
    from affectlens.monitor.episodes import read_episodes
    from affectlens.monitor.statistics import StatisticConfig
    from affectlens.use.calibrating import Asked
    from affectlens.use.calibrating import calibrate as made

    if statistic not in KINDS:
        raise ConfigError(f"--statistic {statistic}: {nearest(statistic, KINDS)}")
    if not 0 < target < 1:
        raise ConfigError(f"--target {target:g}: give a share between 0 and 1, such as 0.05")
    own = read_episodes(episodes.expanduser()) if episodes is not None else []
    asked = Asked(
        rows=tuple(row or ("forecaster",)),
        target=target,
        statistic=StatisticConfig(kind=statistic),  # pyright: ignore[reportArgumentType]
        scenarios=scenarios,
        tokens=tokens,
        temperature=temperature,
        seed=seed,
    )
    card = made(opened(config, changes), asked, own, str(episodes or ""))
    write_card(out.expanduser(), card)
    print(f"{out}: {len(card.rows)} rows, {statistic}, target {target:g}, from {card.source}")
    for each in card.rows:
        for bucket in each.buckets:
            length = "any length" if bucket.longest is None else f"up to {bucket.longest} tokens"
            low, high = bucket.band
            print(
                f"  {printable(each.name)}: alarm above {bucket.threshold:.2f} ({length}, {bucket.episodes} episodes; "
                f"the realised rate lies between {low:.3f} and {high:.3f} with 90% probability)"
            )


def evaluate(
    config: Config,
    card: Annotated[Path, typer.Argument(help="The card that `affectlens monitor calibrate` wrote.", metavar="CARD")],
    episodes: Annotated[
        Path,
        typer.Argument(
            help="JSONL with `messages`, `answer` and, where the act is committed, `act`: the character at which it "
            "begins.",
            metavar="FILE",
        ),
    ],
    horizon: Annotated[int, typer.Option(min=1, help="Tokens before the act within which an alarm counts.")] = 128,
    to_json: Annotated[
        Path | None, typer.Option("--json", callback=writable, help="Write the figures as JSON, too.")
    ] = None,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """False alarms, acts caught and lead time of a card on episodes of your own.

    A card of another model, chat template, number type or layer is refused.

    Example: [bold]affectlens monitor evaluate monitor card.json mine.jsonl[/bold]
    """
    from affectlens.files import write_json
    from affectlens.monitor.calibration import read_card
    from affectlens.monitor.episodes import read_episodes
    from affectlens.use.calibrating import evaluate as figures

    own, read = read_episodes(episodes.expanduser()), read_card(card.expanduser())
    found = figures(opened(config, changes), read, own, horizon)
    if to_json is not None:
        write_json(to_json.expanduser(), json.loads(json.dumps(found)))
    for each in found:
        named = printable(f"{each['row']}, {each['source']} ({each['stratum']})")
        print(f"{named}: {each['episodes']} episodes")
        if each["flagged"] is not None:
            rate, often = _between(each, "flagged"), f"{each['per_1000']:.2f} per 1,000 tokens"
            print(f"  without an act: {rate} raise an alarm (target {read.target:g}), {often}")
        if each["acts"]:
            print(
                f"  {each['acts']} acts: {_between(each, 'caught')} with a warning, {each['lead_8']:.0%} of at least 8 "
                f"tokens; median lead {each['median_lead']:.0f} tokens, misses counted as 0"
            )


def _between(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.1%} " + (f"({low:.1%} to {high:.1%})" if low == low else "(too few for an interval)")
