"""Who may watch a study: the person in front of it, and experiment tracking, which can never stop it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from affectlens.stage import Metrics, Stage
from affectlens.study import Study

_log = logging.getLogger("affectlens.run")


@dataclass(frozen=True)
class Outcome:
    """How one stage ended."""

    stage: str
    state: Literal["cached", "computed"]
    folder: Path
    seconds: float
    metrics: Metrics


class Reporter:
    """What a caller may want to know while a study runs. This one stays silent."""

    def stage_started(self, stage: str, total: float, done: float, unit: str) -> None: ...

    def advanced(self, units: float) -> None: ...

    def waiting(self, message: str) -> None: ...

    def stage_ended(self, outcome: Outcome) -> None: ...


class Observer:
    """What happens to the results of a study, as seen by the process that runs it. This one ignores it all.

    An observer must pickle when the study is submitted as batch jobs: a job that merges a stage calls it on its node.
    Every call is guarded (:class:`Guarded`): an exception becomes one warning.
    """

    def stage_started(self, study: Study, stage: type[Stage[Any, Any]], total: float) -> None:
        """The stage has no finished result yet, and its parts, of ``total`` units of work, are about to be computed."""

    def advanced(self, units: float) -> None:
        """Units of work (``Stage.unit``) done in the stage that was started last, by all workers of this process."""

    def stage_finished(
        self,
        study: Study,
        stage: type[Stage[Any, Any]],
        record: Mapping[str, Any],
        metrics: Metrics,
        folder: Path,
        *,
        computed: bool,
    ) -> None:
        """The result of the stage is there.

        Args:
            study: it belongs to.
            stage: that made it; its declared tables lie in ``folder``.
            record: the manifest.
            metrics: flat, by name.
            folder: of the finished result.
            computed: whether this process merged it now; False for a result that was in the cache.
        """

    def stage_failed(self, study: Study, stage: type[Stage[Any, Any]], error: BaseException) -> None:
        """The stage ended without a result: by an error, or by an interruption."""

    def study_finished(self, study: Study, outcomes: Sequence[Outcome]) -> None:
        """All stages that were asked for have a result."""

    def close(self) -> None:
        """No call follows for this study, however it ended."""


class Guarded(Observer):
    """Passes everything on to an observer; what it raises is logged once a method and goes no further."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._complained: set[str] = set()

    def _call(self, method: str, *args: Any, **kwargs: Any) -> None:
        try:
            getattr(self._observer, method)(*args, **kwargs)
        except Exception as error:
            if method not in self._complained:
                self._complained.add(method)
                name = type(self._observer).__name__
                _log.warning(
                    "%s.%s failed (%s: %s); the results are on disk.", name, method, type(error).__name__, error
                )

    def stage_started(self, study: Study, stage: type[Stage[Any, Any]], total: float) -> None:
        self._call("stage_started", study, stage, total)

    def advanced(self, units: float) -> None:
        self._call("advanced", units)

    def stage_finished(
        self,
        study: Study,
        stage: type[Stage[Any, Any]],
        record: Mapping[str, Any],
        metrics: Metrics,
        folder: Path,
        *,
        computed: bool,
    ) -> None:
        self._call("stage_finished", study, stage, record, metrics, folder, computed=computed)

    def stage_failed(self, study: Study, stage: type[Stage[Any, Any]], error: BaseException) -> None:
        self._call("stage_failed", study, stage, error)

    def study_finished(self, study: Study, outcomes: Sequence[Outcome]) -> None:
        self._call("study_finished", study, outcomes)

    def close(self) -> None:
        self._call("close")
