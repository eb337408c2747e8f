"""``affectlens export`` and ``affectlens samples``: vectors for other tools, and texts that a study has sampled."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from affectlens.entry import Changes, Config, Debug, writable
from affectlens.errors import ConfigError
from affectlens.everyday.reading import opened


def export(
    config: Config,
    form: Annotated[
        str, typer.Option("--format", help="gguf (llama.cpp, repeng), safetensors, vllm-lens, lm-eval or neuronpedia.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Concepts, valence, arousal or feature:<number>; all concepts by default.", metavar="[NAME]..."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder that gets the files; vectors/FORMAT by default.")] = None,
    layer: Annotated[int | None, typer.Option(help="After this block; the study's by default.")] = None,
    strength: Annotated[
        float, typer.Option(min=0, help="What the scale in the file stands for, in mean residual norms.")
    ] = 0.1,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Write a study's vectors for another tool, with the scale that a strength stands for and the layer.

    Example: [bold]affectlens export quickstart --format gguf desperate calm[/bold]
    """
    from affectlens.config import nearest
    from affectlens.use.exports import FORMATS, HOW, Exported, export_all

    if form not in FORMATS:
        raise ConfigError(f"--format {form}: {nearest(form, list(FORMATS))}")
    study = opened(config, changes)
    what = Exported.of(study, names or (), layer, strength)
    for path in export_all(study, form, (out or Path("vectors") / form).expanduser(), what):
        print(path)
    print(HOW[form].format(scale=strength * what.unit, strength=strength, layer=what.layer), file=sys.stderr)


def samples(
    config: Config,
    source: Annotated[
        str | None, typer.Option(help="Only those of causal, or of this experiment.", metavar="causal|EXPERIMENT")
    ] = None,
    concept: Annotated[str | None, typer.Option(help="Only those steered by this concept.")] = None,
    family: Annotated[
        str | None, typer.Option(help="Only this family of vectors: none, concept, direction, feature, isotropic, ...")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Only this strength.")] = None,
    contains: Annotated[str | None, typer.Option(help="Only texts with these words, in any case.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most texts that are printed.")] = 20,
    to_json: Annotated[
        str | None,
        typer.Option(
            "--json", callback=writable, metavar="PATH|-", help="Write all that match as JSONL; - for standard output."
        ),
    ] = None,
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Show texts that the stages causal and measure have sampled, by concept, strength and condition.

    Example: [bold]affectlens samples configs/experiments.yaml --concept desperate --strength 0.1[/bold]
    """
    from affectlens.use.opened import Opened, finished
    from affectlens.use.samples import Wanted, choose, sampled

    study = Opened(*finished(config, *(changes or ())))
    found = sampled(study)
    kept = choose(found, Wanted(source, concept, family, strength, contains))
    if to_json is None:
        from affectlens.everyday import terminal

        terminal.show_samples(kept[:limit], len(kept), len(found))
        return
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    if to_json == "-":
        print(lines, end="")
    else:
        Path(to_json).expanduser().write_text(lines, encoding="utf-8")
        print(to_json)
