"""What every stage is: a map over independent parts and a merge, with one folder of results.

The vocabulary of the whole package is here and nowhere else: :class:`Part`, :class:`Setting`, :class:`Stage`.
A stage knows nothing of processes, clusters, locks or folders of other stages; ``run`` does. A stage is one file with
:func:`register` over its class: its section in the study file, its place in the order of the data, its help and what
its jobs ask a cluster for follow from the class.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import Field, field_validator

from affectlens.config import Config
from affectlens.corpus.documents import Document
from affectlens.model.config import ModelConfig, Shape, shape
from affectlens.settings import ClusterConfig, ComputeConfig, Resources, TrackingConfig

if TYPE_CHECKING:
    import numpy as np

    from affectlens.results import Table

RECORD, MANIFEST, METRICS = "part.json", "manifest.json", "metrics.json"
"""What the runner writes beside what ``run_part`` wrote, and beside what ``finish`` wrote and returned."""
LIVE = "live.jsonl"
"""A file of rows of figures that a part may append to in its folder while it runs, for example its loss; ``step`` is
the x axis. It is shown while the part runs and is no part of the result."""
NOTHING = "nothing"
"""The name of the only part of a stage that is off."""
MERGE = "merge"
"""The key of ``Stage.pace`` under which the merge stands."""
REFERENCE = (
    "measured with the embedded model on one core of an AMD EPYC with AVX-512 and bfloat16 on 2026-12-01, for other "
    "models by layers and width; circuits, monitor and templates derived from it; a first run here tells better."
)
"""Where the figures of ``Stage.pace`` come from."""
REFERENCE_SHAPE = Shape(layers=30, width=576)
"""Of the embedded model."""
Metrics = dict[str, float]


@dataclass(frozen=True)
class Folder:
    """A folder by some of its files; a README beside them changes nothing."""

    path: Path
    files: tuple[Path, ...]


Identity = Path | Folder | ModelConfig | str
"""A file or folder, by its content; a model, by the content of its folder or the commit of its hub repository, before
it is downloaded too; or a text that says it already."""
Progress = Callable[[float], None]
"""Called by a running part with the units of work done since the last call."""


@dataclass(frozen=True)
class Part:
    """One independent slice of a stage's work.

    Attributes:
        name: file-system safe, unique within the stage, stable from run to run.
        size: units of work in it (tokens, features, ...), for progress and time left.
        payload: JSON-able description of the slice; all that ``run_part`` needs besides the stage itself.
    """

    name: str
    size: float = 1.0
    payload: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a stage may know of the study around it.

    Attributes:
        seed: the study's seed; use :meth:`Stage.generator`, never this directly.
        model: the model under study.
        device: where to compute (``cpu``, ``cuda:0``, ...). Never part of a fingerprint.
        threads: threads of this worker. Fixed by the config so that the number of workers cannot change bytes.
        models: folder for converted models, shared by all studies.
    """

    seed: int
    model: ModelConfig
    device: str
    threads: int
    models: Path


class StudySettings(Config):
    """What every study file has; a study's own class has a section for each of its stages besides."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)
    """Letters, digits, `.`, `_` and `-`. Groups the runs in Weights & Biases and titles the page."""
    seed: int = Field(default=0, ge=0)
    """The only source of randomness."""
    cache: Path = Path("cache")
    """Where results lie; a relative path starts at the current folder."""
    plugins: tuple[str, ...] = ()
    """Python modules of your own that add stages, probes, graders or figures; imported only if named here."""
    model: ModelConfig = ModelConfig()
    tracking: TrackingConfig = TrackingConfig()
    compute: ComputeConfig = ComputeConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("cache")
    @classmethod
    def _in_the_home_folder(cls, value: Path) -> Path:
        return value.expanduser()

    if TYPE_CHECKING:
        # Sections of stages are fields of the class that the registry makes; no type checker can know them.
        def __getattr__(self, name: str) -> Any: ...


def paces(other: float = 0.0, merge: float = 0.0, **kinds: float) -> Mapping[str, float]:
    """A stage's ``pace``: seconds on one core of a unit of work, in parts of a kind, in other parts, and merging."""
    return {**kinds, **({"": other} if other else {}), MERGE: merge}


class Unplanned(Exception):
    """The parts of a stage depend on something that is not known before its needs are there."""


@dataclass(frozen=True)
class Outlook:
    """What the parts of a stage follow from, besides its config: known before any result is there.

    Attributes:
        documents: the texts of the study, in their order.
        layers: those whose residual stream is kept per text, ascending.
        model_width: None while a hub model is not downloaded.
    """

    documents: Sequence[Document]
    layers: tuple[int, ...]
    model_width: int | None

    @property
    def emotions(self) -> tuple[str, ...]:
        """The studied concepts, alphabetically."""
        return tuple(sorted({document.emotion for document in self.documents} - {""}))

    @property
    def width(self) -> int:
        """Of the model's residual stream.

        Raises:
            Unplanned: the model is not here yet.
        """
        if self.model_width is None:
            raise Unplanned("the width of the model")
        return self.model_width


class Opened:
    """The same of the results that are there."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self._results = results

    @property
    def documents(self) -> Sequence[Document]:
        return self._results["corpus"].documents

    @property
    def emotions(self) -> tuple[str, ...]:
        return self._results["corpus"].emotions

    @property
    def layers(self) -> tuple[int, ...]:
        return self._results["activations"].layers

    @property
    def width(self) -> int:
        return self._results["activations"].d_model


C = TypeVar("C", bound=Config)
A = TypeVar("A")


class Stage(ABC, Generic[C, A]):
    """A step of the study. Subclasses fill in the furniture in this order.

    Class attributes:
        name: folder and config section.
        section: name of the config section, where several stages share one.
        fields: the fields of a shared section that decide this stage's result; all where empty.
        version: raise it whenever the same config must give different results than before.
        config_class: the config section.
        needs: names of the stages whose results it reads.
        reads_model: whether the identity and settings of the model enter the fingerprint directly.
        seeded: whether the study's seed enters the fingerprint.
        checkpoint: name of what an interrupted part leaves in its folder for the next run; empty: parts begin anew.
        keeps_parts: whether ``parts/`` stays in the result (because the parts *are* the result, or cost hours, so that
            a damaged merge must not cost them).
        uploads: whether Weights & Biases may be given the files, and not only where they lie.
        measured_needs: needs of whose results ``run_part`` reads nothing that their merge-only fields decide, so that a
            change of those leaves this stage's parts as they are.
        resources: what its jobs ask a cluster for where nobody says otherwise, as in the section ``cluster``.
        unit: what ``Part.size`` counts, for the progress bar.
        switch: the key that turns the stage on, where it is off by default.
        pace: seconds on one core of a unit of :meth:`effort`, by the letters that names of parts begin with; under
            ``""`` of other parts, under ``MERGE`` of the merge (a unit of all parts). Measured as ``REFERENCE`` says.
        headline: metrics shown when a study ends, as (metric, what it is); its interval is found by itself.
        tables: declarations of the tables that ``finish`` writes (:func:`affectlens.results.write`); what W&B, the
            page, ``compare`` and the Python API read.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    config_class: ClassVar[type[Config]]
    section: ClassVar[str] = ""
    fields: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    reads_model: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    keeps_parts: ClassVar[bool] = False
    uploads: ClassVar[bool] = True
    checkpoint: ClassVar[str] = ""
    measured_needs: ClassVar[tuple[str, ...]] = ()
    resources: ClassVar[Resources] = Resources()
    unit: ClassVar[str] = "parts"
    switch: ClassVar[str] = ""
    pace: ClassVar[Mapping[str, float]] = {}
    headline: ClassVar[tuple[tuple[str, str], ...]] = ()
    tables: ClassVar[tuple[Table, ...]] = ()

    def __init__(self, config: C, setting: Setting, results: Mapping[str, Any], outlook: Outlook | None = None) -> None:
        """
        Args:
            config: the stage's section.
            setting: what the stage may know of the study around it.
            results: opened results of its needs by name; empty where parts are only planned.
            outlook: where parts are only planned, what is known so far.
        """
        self.config = config
        self.setting = setting
        self._results = results
        self.outlook: Outlook | Opened = outlook or Opened(results)

    def need(self, kind: type[Stage[Any, A2]]) -> A2:
        """The opened result of an earlier stage, typed by that stage's class.

        Raises:
            Unplanned: parts are planned before that result is there.
        """
        if kind.name not in self._results and isinstance(self.outlook, Outlook):
            raise Unplanned(f"the result of stage `{kind.name}`")
        return self._results[kind.name]

    def generator(self, part: str = "") -> np.random.Generator:
        """The random generator of (study seed, stage, part): the same wherever and whenever the part runs."""
        import numpy as np

        return np.random.default_rng(self.seed_of(part))

    def seed_of(self, part: str = "") -> int:
        """A 63-bit seed for libraries that want an integer, derived as :meth:`generator` is.

        Stages that share a section share their draws.
        """
        return derived_seed(self.setting.seed, self.section or self.name, part)

    @classmethod
    def check(cls, study: StudySettings) -> None:
        """Refuse, before anything runs, what this stage can see is wrong.

        Args:
            study: the whole study config; every section is an attribute.

        Raises:
            ValueError: one sentence that begins with the offending key.
        """

    @classmethod
    def check_chosen(cls, study: StudySettings) -> None:
        """Refuse a config with which this stage cannot run, though others can; asked of the stages of a run.

        Raises:
            ValueError: one sentence that begins with the offending key.
        """

    @classmethod
    def check_pending(cls, study: StudySettings, tokenizer: Callable[[], Any]) -> None:
        """Refuse what the model's tokenizer or the environment tells; asked of stages of a run that are not done yet.

        Args:
            tokenizer: loads the model's tokenizer, once.

        Raises:
            UserError: names the text, the key or the variable at fault.
        """

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        """What outside the cache the stage reads, by the role it plays; its content enters the fingerprint.

        Where a value of the stage's config is one of these paths, its content stands in the fingerprint in its place.
        """
        return {}

    def part_reads(self, part: Part) -> Mapping[str, Any] | None:
        """All that this part reads, as JSON, besides the stage's version and its ``reads_model`` and ``seeded``.

        Two parts of one stage that read the same are the same bytes, whatever the rest of the two studies is, so the
        finished one is taken over instead of computed. Under ``needs`` stand names of stages whose whole result counts,
        under ``data`` roles of :meth:`identities`. None: the part reads all that the stage reads.
        """
        return None

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """The slices of the work. Must be cheap, and the same on every call.

        What follows from ``config``, ``setting`` and ``outlook`` alone can be planned before the stage's needs are
        there; one that asks for a result has to wait for it.
        """

    def effort(self, part: Part) -> float:
        """Units of work in a part as far as its time goes; its size, unless a stage knows better."""
        return part.size

    def amount(self, parts: Sequence[Part]) -> str:
        """Of work in these parts, in words; empty where their number says it."""
        units = sum(part.size for part in parts)
        return "" if units == len(parts) else f"{units:,.0f} {self.unit}"

    def scale(self) -> float | None:
        """How many times as long as with the embedded model the stage takes; None while the model is not here."""
        known = shape(self.setting.model)
        if known is None:
            return None
        wider = known.width / REFERENCE_SHAPE.width
        return wider**2 * known.layers / REFERENCE_SHAPE.layers if self.reads_model else wider

    def disk_bytes(self, parts: Sequence[Part]) -> int:
        """What these parts will write, about; asked before the first of them runs. 0: too little to matter."""
        return 0

    @abstractmethod
    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        """Do one slice and write it into ``out``, which becomes visible only when this returns.

        ``out`` is empty, but for the stage's ``checkpoint`` if an interrupted run left one there.
        """

    @abstractmethod
    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        """Merge the finished parts (in the order of :meth:`parts`) into ``out``; return the flat metrics."""

    @classmethod
    @abstractmethod
    def open(cls, folder: Path) -> A:
        """The finished result as later stages see it."""


A2 = TypeVar("A2")
S = TypeVar("S", bound=type[Stage[Any, Any]])
_REGISTRY: dict[str, type[Stage[Any, Any]]] = {}


def derived_seed(seed: int, section: str, part: str) -> int:
    """The 63-bit seed of (study seed, section of the study file or stage, part)."""
    text = json.dumps([seed, section, part])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def register(stage: S) -> S:
    """Class decorator: make a stage one that studies can have, after those registered before.

    Raises:
        ValueError: its name is taken, or it needs a stage that is not registered yet.
    """
    present = _REGISTRY.get(stage.name)
    if present is not None and (present.__module__, present.__qualname__) != (stage.__module__, stage.__qualname__):
        raise ValueError(f"stage `{stage.name}` of {stage.__module__} has the name of one of {present.__module__}")
    missing = [name for name in stage.needs if name not in _REGISTRY]
    if missing:
        raise ValueError(f"stage `{stage.name}` of {stage.__module__} needs `{missing[0]}`, which no module registered")
    _REGISTRY[stage.name] = stage
    return stage


def registered() -> tuple[type[Stage[Any, Any]], ...]:
    """Every stage that was registered, needs first."""
    return tuple(_REGISTRY.values())
