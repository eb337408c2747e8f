"""What the stage ``monitor`` leaves: episodes with their states, rows ready to be calibrated, and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affectlens.errors import MissingResult
from affectlens.files import write_json, write_safetensors
from affectlens.monitor.episodes import Episode, Resampled, Written, read_episodes
from affectlens.monitor.rows import Rows
from affectlens.monitor.trials import Material, Trial

EPISODES, TOKENS, DRAWN, STATES = "episodes.jsonl", "tokens.json", "resampled.json", "states.safetensors"
ROWS, CARD = "rows.safetensors", "rows.json"


def material(parts: Sequence[Path]) -> Material:
    """The episodes of finished parts, with what was read along them."""
    from safetensors.numpy import load_file

    episodes: list[Episode] = []
    states: list[np.ndarray] = []
    drawn: list[Resampled] = []
    plain: dict[tuple[str, str], list[np.ndarray]] = {}
    for part in parts:
        own = [_episode(row) for row in json.loads((part / TOKENS).read_text(encoding="utf-8"))]
        arrays = load_file(part / STATES)
        ends = np.cumsum([episode.rows for episode in own])[:-1]
        states += np.split(arrays.pop("states"), ends)
        for key, values in arrays.items():
            family, _, name = key.partition("/")
            plain.setdefault((family, name), []).extend(np.split(values, ends))
        episodes += own
        drawn += [Resampled(**each) for each in json.loads((part / DRAWN).read_text(encoding="utf-8"))]
    return Material(tuple(episodes), tuple(states), {key: tuple(each) for key, each in plain.items()}, tuple(drawn))


def _episode(row: dict[str, Any]) -> Episode:
    lists = {name: tuple(row[name]) for name in ("prompt", "answer", "messages")}
    return Episode(**{**row, **lists})


def write_rows(folder: Path, trial: Trial, layer: int) -> None:
    """The rows of a trial: arrays in one file, names in the other."""
    rows = trial.final
    folder.mkdir(parents=True, exist_ok=True)
    names = ("weights", "offset", "rectified", "mean", "deviation")
    write_safetensors(folder / ROWS, {name: np.ascontiguousarray(getattr(rows, name)) for name in names})
    write_json(folder / CARD, {"layer": layer, "names": rows.names, "families": rows.families, "fitted": trial.fitted})


def read_rows(folder: Path) -> tuple[Rows, int]:
    """What :func:`write_rows` wrote: rows, and the layer that they read."""
    from safetensors.numpy import load_file

    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    return Rows(tuple(card["names"]), tuple(card["families"]), **load_file(folder / ROWS)), int(card["layer"])


class MonitorResult:
    """The result of the stage.

    Attributes:
        folder: the result folder; its parts hold episodes and states.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def scenarios(self) -> list[str]:
        """Folders of scenarios with risk that were tested."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{CARD}"))

    def rows(self, scenarios: str = "") -> tuple[Rows, int]:
        """Standardised rows, probes trained on all scenarios of a folder, and the layer that they read.

        Args:
            scenarios: the folder; the first by default.

        Raises:
            MissingResult: nothing was tested, or not this folder.
        """
        return read_rows(self.folder / self._known(scenarios))

    def fitted(self, scenarios: str = "") -> set[str]:
        """Names of the benign episodes that these rows were standardised and trained on."""
        card = json.loads((self.folder / self._known(scenarios) / CARD).read_text(encoding="utf-8"))
        return set(card["fitted"])

    def _known(self, scenarios: str) -> str:
        known = self.scenarios
        if not known or (scenarios and scenarios not in known):
            of = f" of `{scenarios}`" * bool(scenarios)
            raise MissingResult(
                f"the study holds no monitor{of}; there are {', '.join(known) or 'none'}: "
                "name folders of scenarios in `monitor.run`, and run the study"
            )
        return scenarios or known[0]

    def parts(self, folder: str) -> list[Path]:
        """Of one folder of scenarios."""
        return sorted((self.folder / "parts").glob(f"{folder}-[0-9][0-9][0-9]"))

    def written(self, folder: str) -> list[Written]:
        """The episodes of a folder of scenarios as their files hold them."""
        return [row for part in self.parts(folder) for row in read_episodes(part / EPISODES)]

    def material(self, folder: str) -> Material:
        """The same with their states."""
        return material(self.parts(folder))
