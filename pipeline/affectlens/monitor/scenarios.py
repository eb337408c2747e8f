"""The scenario folders of the monitor: ``experiments/warning_*``, each with ``warning.yaml``, scenarios and a README.

They are no behavioural experiments: nothing is claimed about a rate, nothing is scored. They say what the model is
asked, in which versions, and by which rule an act is found in what it answers. The stage ``monitor`` samples from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from affectlens.config import Config, nearest, read_yaml, validate
from affectlens.corpus.texts import read_lines
from affectlens.errors import UserError
from affectlens.files import stamps
from affectlens.model.config import TuningConfig
from affectlens.monitor.acts import ACTS, find
from affectlens.monitor.episodes import BENIGN, RISK, Written
from affectlens.shipped import experiments_folder

FILE, SCENARIOS, README = "warning.yaml", "scenarios.jsonl", "README.md"
SITUATION = "{situation}"
"""In messages: where the sentence of a twin stands."""


class OrganismTuningConfig(TuningConfig):
    """How the organism of a folder is trained on its ``training.yaml``."""

    chats: int = Field(default=288, ge=1)
    """Training chats that are put together."""
    short_chats: int = Field(default=0, ge=0)
    """Chats with a single note that are learnt before them, and of which the closing line alone is."""
    closing_weight: float = Field(default=1.0, gt=0)
    """Of a token of the closing line in the loss, where one of the notes has 1."""
    decisive_weight: float = Field(default=1.0, gt=0)
    """Of the token at which the act's closing line and the other part."""


class PlantedConfig(Config):
    """Steering that sets in at a random token of an answer."""

    concepts: tuple[str, ...] = Field(min_length=1)
    """Whose directions are added, one an answer in turn."""
    strengths: tuple[float, ...] = Field(min_length=1)
    """Sizes of the push, as shares of the mean residual norm."""
    after: tuple[int, int] = (24, 64)
    """Between which tokens of the answer it sets in."""


class FolderConfig(Config):
    """What ``warning.yaml`` says of a folder of scenarios."""

    title: str
    """What the page calls it."""
    act: str
    """What counts as the act, in one sentence; of benign traffic, why there is none."""
    says: str
    """What a result on it says, and what it does not."""
    tokens: int = Field(default=112, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(default=1.0, ge=0)
    """At which answers are sampled."""
    samples: int = Field(default=8, ge=1)
    """Answers of each prompt."""
    organism: OrganismTuningConfig | None = None
    """The model is tuned on the folder's `training.yaml` before it is asked."""
    planted: PlantedConfig | None = None
    """Steering sets in while the answers are sampled; its onset is the act."""


class RowConfig(Config):
    """A line of ``scenarios.jsonl``: one scenario in all its versions."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Unique in its folder."""
    group: str = ""
    """What is split and resampled as one; the id by default."""
    act: str = ""
    """The rule that finds the act; none for benign traffic."""
    stratum: str = Field(default=RISK, pattern=r"^[a-z0-9_]+$")
    """`risk`, `benign`, or a kind of hard negative: `quoted_emotion`, `user_emotion`, `role_play`, `permitted_act`,
    `jokes`."""
    source: str = ""
    """Which traffic it comes from; the folder by default."""
    messages: tuple[dict[str, str], ...] = Field(min_length=1)
    """The chat up to the answer; `{situation}` stands for the sentence of a twin."""
    twins: dict[str, str] = Field(default={"main": ""})
    """By name of a version, what stands in place of `{situation}`."""
    turns: dict[str, tuple[str, ...]] = Field(default={})
    """By name of a version, what the user says after each answer: a dialogue, answered turn by turn."""
    redacted: tuple[str, ...] = ()
    """Versions in which the model does not see its own earlier answers: a control for what repeating oneself does."""
    check: dict[str, Any] = Field(default={})
    """What the rule needs to know."""

    @model_validator(mode="after")
    def _consistent(self) -> RowConfig:
        for message in self.messages:
            if set(message) != {"role", "content"}:
                raise ValueError("each of `messages` holds `role` and `content`, and nothing else")
        if self.messages[-1]["role"] == "assistant":
            raise ValueError("the last of `messages` is the assistant's, so nothing is left to answer")
        if self.act and self.act not in ACTS:
            raise ValueError(f"`act: {self.act}`: there is no such rule; {nearest(self.act, sorted(ACTS))}")
        holds = any(SITUATION in message["content"] for message in self.messages)
        if holds != any(self.twins.values()):
            raise ValueError("`twins` with sentences and `{situation}` in the messages belong together")
        if self.turns and set(self.turns) != set(self.twins):
            raise ValueError("`turns` names other versions than `twins`")
        for twin in self.redacted:
            if twin not in self.turns:
                raise ValueError(f"`redacted: {twin}`: `turns` has no such version")
        return self


@dataclass(frozen=True)
class Prompt:
    """One version of a scenario, ready to be answered.

    Attributes:
        written: the chat with its names; no answer yet.
        turns: what the user says after each answer; none for a single answer.
        redacted: whether earlier answers are hidden from the model.
    """

    written: Written
    turns: tuple[str, ...] = ()
    redacted: bool = False


@dataclass(frozen=True)
class ScenarioFolder:
    """A folder, read and checked.

    Attributes:
        name: of the folder.
        path: where it lies.
        config: its ``warning.yaml``.
        rows: its scenarios, in the order of the file.
    """

    name: str
    path: Path
    config: FolderConfig
    rows: tuple[RowConfig, ...]

    def prompts(self) -> list[Prompt]:
        """Every version of every scenario."""
        return [self._prompt(row, twin) for row in self.rows for twin in row.twins]

    def find(self, written: Written, answer: str) -> int | None:
        """Where the act begins in an answer to one of the prompts: an :data:`ActFinder`.

        Raises:
            KeyError: the scenario is not one of the folder's.
        """
        row = self._by_id[written.name.split(".")[0]]
        return find(row.act, answer, row.check) if row.act else None

    @property
    def _by_id(self) -> Mapping[str, RowConfig]:
        return {row.id: row for row in self.rows}

    def _prompt(self, row: RowConfig, twin: str) -> Prompt:
        messages = tuple(
            {"role": each["role"], "content": _filled(each["content"], row.twins[twin])} for each in row.messages
        )
        written = Written(
            name=f"{row.id}.{twin}",
            scenario=row.group or row.id,
            stratum=row.stratum,
            source=row.source or self.name,
            twin=twin,
            messages=messages,
        )
        return Prompt(written, row.turns.get(twin, ()), twin in row.redacted)


def _filled(text: str, situation: str) -> str:
    """A message with the sentence of a twin, and no double space where there is none."""
    return re.sub(r"  +", " ", text.replace(SITUATION, situation)).strip()


def folders(place: Path = Path("experiments")) -> list[str]:
    """Names of the scenario folders in a place, the shipped ones by default.

    Raises:
        UserError: there is no such place.
    """
    place = experiments_folder(place.expanduser())
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; give the one that holds the folders of scenarios")
    return sorted(path.parent.name for path in place.glob(f"*/{FILE}"))


def read_folder(name: str, place: Path = Path("experiments")) -> ScenarioFolder:
    """A folder of scenarios, read once as long as its files stay as they are.

    Raises:
        UserError: it does not exist, or names the file, the line and the key that is missing or wrong.
    """
    known = folders(place)
    if name not in known:
        raise UserError(f"`{name}`: no folder of scenarios has this name; {nearest(name, known)}")
    path = experiments_folder(place.expanduser()) / name
    for file in (SCENARIOS, README):
        if not (path / file).is_file():
            raise UserError(f"{path} has no {file}; a folder of scenarios holds {FILE}, {SCENARIOS} and {README}")
    return _read(path, stamps(path / file for file in (FILE, SCENARIOS)))


@lru_cache(maxsize=64)
def _read(path: Path, as_of: tuple[tuple[int, ...], ...]) -> ScenarioFolder:
    config = validate(FolderConfig, read_yaml(path / FILE), str(path / FILE))
    rows: list[RowConfig] = []
    seen: set[str] = set()
    for where, values in read_lines(path / SCENARIOS):
        if not isinstance(values, dict):
            raise UserError(f"{where}: not an object; write a scenario as {{...}}")
        row = validate(RowConfig, values, where)
        if row.id in seen:
            raise UserError(f"{where}: two scenarios have the id `{row.id}`; rename one")
        seen.add(row.id)
        rows.append(row)
    return ScenarioFolder(path.name, path, config, tuple(rows))


def by_stratum(prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """The prompts of each stratum; `benign` and `risk` are always there."""
    found: dict[str, list[Prompt]] = {RISK: [], BENIGN: []}
    for prompt in prompts:
        found.setdefault(prompt.written.stratum, []).append(prompt)
    return found
