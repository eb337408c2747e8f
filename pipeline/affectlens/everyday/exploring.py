"""``affectlens explore``: every feature, concept and text of a study on pages of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from affectlens.entry import Changes, Config, Debug
from affectlens.errors import ConfigError
from affectlens.everyday.reading import opened


def explore(
    config: Config,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("explorer.html"),
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Whether the texts are in it; without, tokens are shown as dots.")
    ] = True,
    neuronpedia: Annotated[
        Path | None, typer.Option(help="Also write all features into this folder, laid out for Neuronpedia's import.")
    ] = None,
    saedashboard: Annotated[
        Path | None, typer.Option(help="Also write all features into this folder as batches of SAEDashboard.")
    ] = None,
    creator: Annotated[str, typer.Option(help="Your creator id at Neuronpedia.")] = "",
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Write the explorer: a page that searches all features, concepts and texts of a study. It opens from disk.

    The stages up to [bold]match[/bold] have to be finished; [bold]causal[/bold], [bold]circuits[/bold], sampled texts
    and explanations ([bold]affectlens explain[/bold]) are shown where they are there. No text goes through the model
    again.

    Example: [bold]affectlens explore quickstart --out explorer.html[/bold]
    """
    from affectlens.explanations import keeping
    from affectlens.explorer import contents, exchange, page

    path = out.expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--out {out}: give the name of a file in a folder that is there")
    for option, folder in (("--neuronpedia", neuronpedia), ("--saedashboard", saedashboard)):
        if folder is not None and folder.expanduser().exists() and not folder.expanduser().is_dir():
            raise ConfigError(f"{option} {folder}: is a file; give a folder")
    if neuronpedia is not None:
        exchange.require_creator(creator)
    study = opened(config, changes)
    found = contents.gather(study, lambda words: print(words, file=sys.stderr))
    explained = [tables for _, tables in keeping.of(study)]
    written = page.build(found, text=text, explained=explained).write(path)
    print(written[0])
    if len(written) > 1:
        print(f"{written[1].parent}: {len(written) - 1} files that belong to it; keep them together", file=sys.stderr)
    for form, folder in (("neuronpedia", neuronpedia), ("saedashboard", saedashboard)):
        if folder is not None:
            rows = [row for tables in explained for row in tables["explanations"].to_dict("records")]
            print(exchange.FORMATS[form](found, folder.expanduser(), creator, rows))
