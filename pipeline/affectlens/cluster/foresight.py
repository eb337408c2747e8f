"""The parts a stage will have, told before the results that it reads are there.

A whole graph of jobs is handed over at once, so the lists have to be known early. They follow from the texts, from the
model's shape and from the config; stand-ins that know just this take the place of the results.
"""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import Any

from affectlens.cluster import ledger
from affectlens.corpus.documents import select
from affectlens.model import subject
from affectlens.stage import Part, Stage
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.study import Study


class Foresight:
    """Of one study."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def parts(self, stage: type[Stage[Any, Any]]) -> list[Part] | None:
        """What the stage's ``parts()`` is going to be; None where nobody can know and no job has looked yet."""
        study = self._study
        try:
            return list(stage(study.section(stage), study.setting("cpu"), self._results).parts())
        except (AttributeError, KeyError):
            return ledger.read_parts(study, stage)

    @cached_property
    def _results(self) -> dict[str, Any]:
        study = self._study
        documents = select(study.config.corpus)
        emotions = tuple(sorted({document.emotion for document in documents} - {""}))
        config = study.config.activations
        layers = {study.config.model.layer, *config.pooled_layers, *(config.token_layers if config.token_rows else ())}
        activations = SimpleNamespace(layers=tuple(sorted(layers)))
        shape = subject.shape(study.config.model)
        if shape is not None:
            activations.d_model = shape.width
        return {
            CorpusStage.name: SimpleNamespace(documents=documents, emotions=emotions),
            ActivationsStage.name: activations,
        }
