"""``affectlens shape``: the arms of a study, and a trained one as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affectlens.entry import Changes, Config, Debug
from affectlens.errors import ConfigError


def shape(
    config: Config,
    export: Annotated[
        str | None,
        typer.Option(help="Write this trained arm as a model folder, for example calm_dpo-s0.", metavar="ARM"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The new folder; models/ARM by default.")] = None,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """List the ways in which a study changes its model, or write one of them as a model folder with a card.

    The stage [bold]shape_arms[/bold] has to be finished. The folder holds the merged weights, the tokenizer, the
    adapter in peft's format, and a card with what the stage [bold]shape[/bold] measured, where it is finished.

    Example: [bold]affectlens shape configs/shape.yaml --export calm_dpo-s0 --out calm[/bold]
    """
    from affectlens.use import shaping
    from affectlens.use.opened import Opened, finished

    if out is not None and export is None:
        raise ConfigError("--out names the folder of an exported arm; give --export ARM too")
    study = Opened(*finished(config, *(changes or ())))
    if export is None:
        for arm in shaping.arms_of(study).arms:
            verdict = shaping.verdict_of(study, arm).get("verdict", "")
            print(f"{arm.name:<28} {'trained' if arm.trained else 'rule' if arm.layers else '':<8} {verdict}".rstrip())
        return
    for path in shaping.export(study, export, (out or Path("models") / export).expanduser()):
        print(path)
