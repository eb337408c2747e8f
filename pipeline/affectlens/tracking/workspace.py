"""The workspace for comparing studies, as data: which runs a view shows, and the panels over them.

`wandb` itself makes no workspace: `wandb.apis.workspaces` hands on the package `wandb-workspaces`, whose only way out
is `save`, which sends the view to a server. Offline there is the description: ``python -m
affectlens.tracking.workspace`` prints it as JSON. With ``ENTITY/PROJECT`` it makes the views of it, with that package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal

from affectlens.errors import ConfigError, UserError
from affectlens.study import STAGES

FORMAT = "affectlens workspace 1"
Kind = Literal["bar", "line", "media", "parallel"]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: ``bar`` and ``parallel`` read a run's summary, ``line`` its history, ``media`` a page or a table.
        title: above it.
        keys: of the summary or the history; of ``parallel`` also ``config:`` and a dotted key of the settings.
        pattern: a regular expression in the place of keys, of ``line``.
    """

    kind: Kind
    title: str
    keys: tuple[str, ...] = ()
    pattern: str = ""


@dataclass(frozen=True)
class View:
    """One view of a project.

    Attributes:
        name: of the view.
        runs: which it shows, in the filter language of the workspace.
        groups: run fields by which the runs are grouped, outermost first.
        columns: of the list of runs.
        panels: in their order.
    """

    name: str
    runs: str
    groups: tuple[str, ...]
    columns: tuple[str, ...]
    panels: tuple[Panel, ...]


def views() -> tuple[View, ...]:
    """Studies side by side, training and progress of the stages, and sweeps."""
    headlines = {stage.name: [f"{stage.name}/{name}" for name, _ in stage.headline] for stage in STAGES}
    bars = tuple(Panel("bar", name, (name,)) for names in headlines.values() for name in names)
    best = tuple(names[0] for names in headlines.values() if names)
    shown = tuple(f"summary:{name}" for name in best)
    pages = (Panel("media", "The study's page", ("report/report",)), Panel("media", "Texts", ("sampled/texts",)))
    training = Panel("line", "What parts write while they run", pattern="live/.*")
    progress = Panel("line", "Share of the stage that is done", ("progress/share",))
    rate = Panel("line", "Units a second", ("progress/units_per_s",))
    swept = Panel("parallel", "Settings and the best feature", ("config:sae.k", "match/best_feature_auroc"))
    return (
        View("Studies side by side", "JobType = 'summary'", (), ("config:seed", *shown), (*pages, *bars)),
        View("Stages while they run", "JobType != 'summary'", ("group",), (), (progress, rate, training)),
        View("A sweep", "JobType = 'match'", (), ("config:sae.k", "summary:match/best_feature_auroc"), (swept,)),
    )


def described() -> dict[str, Any]:
    """The views as JSON."""
    return {"format": FORMAT, "views": [asdict(view) for view in views()]}


def made(entity: str, project: str) -> Iterator[Any]:
    """The views as objects of `wandb-workspaces`, not yet sent.

    Raises:
        UserError: the package is not installed.
    """
    try:
        workspaces: Any = import_module("wandb_workspaces.workspaces")
        v2: Any = import_module("wandb_workspaces.reports.v2")
    except ImportError:
        raise UserError(
            "views are made with `pip install wandb[workspaces]`; without a project they are printed as JSON"
        ) from None

    def metric(key: str) -> Any:
        kind, _, name = key.rpartition(":")
        return v2.Config(name) if kind == "config" else v2.SummaryMetric(name)

    def panel(each: Panel) -> Any:
        if each.kind == "bar":
            return v2.BarPlot(title=each.title, metrics=[metric(key) for key in each.keys])
        if each.kind == "line":
            given = {"metric_regex": each.pattern} if each.pattern else {"y": list(each.keys)}
            return v2.LinePlot(title=each.title, x="Step", **given)
        if each.kind == "media":
            return v2.MediaBrowser(title=each.title, media_keys=list(each.keys))
        columns = [v2.ParallelCoordinatesPlotColumn(metric=metric(key)) for key in each.keys]
        return v2.ParallelCoordinatesPlot(title=each.title, columns=columns)

    for view in views():
        yield workspaces.Workspace(
            entity=entity,
            project=project,
            name=view.name,
            sections=[workspaces.Section(name=view.name, panels=[panel(each) for each in view.panels], is_open=True)],
            runset_settings=workspaces.RunsetSettings(
                filters=view.runs,
                groupby=[workspaces.Metric(each) for each in view.groups],
                pinned_columns=list(view.columns),
            ),
        )


def main(arguments: list[str]) -> None:
    """Print the description; of a project, make the views on the configured server and print where they are."""
    if not arguments:
        print(json.dumps(described(), indent=2))
        return
    entity, _, project = arguments[0].partition("/") if len(arguments) == 1 else ("", "", "")
    if not (entity and project) or "/" in project:
        raise ConfigError("give the project as ENTITY/PROJECT: python -m affectlens.tracking.workspace lab/emotions")
    for view in made(entity, project):
        print(view.save().url)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
