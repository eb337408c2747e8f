"""One self-contained HTML page: everything the study found, with what it cannot show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from affectlens import results
from affectlens.config import Config
from affectlens.errors import DamagedResult
from affectlens.model.config import shown_name
from affectlens.stage import MANIFEST, METRICS, Metrics, Part, Progress, Stage, paces, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.circuit_units import CircuitUnitsStage
from affectlens.stages.circuits import CircuitsStage
from affectlens.stages.compare import CompareStage
from affectlens.stages.conclude import ConcludeStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.geometry import GeometryStage
from affectlens.stages.grade import GradeStage
from affectlens.stages.measure import MeasureStage
from affectlens.stages.sae import SaeStage
from affectlens.stages.writers import WritersStage

if TYPE_CHECKING:
    from affectlens.report.evidence import Evidence, Provenance

PAGE = "report.html"


class ReportConfig(Config):
    """What the page looks like. Changing it computes nothing but the page."""

    title: str = ""
    """Of the page; made from model and layer when empty."""
    concepts_shown: int = Field(default=60, ge=0)
    """Concepts with a card of their own, best features first. Figures and tables hold all."""
    contexts_per_feature: int = Field(default=3, ge=0)
    """Passages shown for each feature."""
    words_per_concept: int = Field(default=8, ge=0)
    """Logit-lens words shown for each direction and feature."""
    samples_per_cell: int = Field(default=4, ge=0)
    """Sampled texts shown of each experiment, vector and strength; `affectlens samples` shows all."""
    theme: Literal["auto", "light", "dark"] = "auto"
    """`auto` follows the reader's system."""
    colours: Literal["paper", "contrast"] = "paper"
    """The palette; `contrast` is black on white and white on black."""


@dataclass(frozen=True)
class Report:
    """The page of a study."""

    folder: Path

    @property
    def page(self) -> Path:
        """The HTML file; it needs no other."""
        return self.folder / PAGE


@register
class ReportStage(Stage[ReportConfig, Report]):
    """Put everything on a page."""

    name = "report"
    version = 17
    config_class = ReportConfig
    needs = ("corpus", "activations", "sae", "directions", "match", "compare", "writers", "geometry", "causal")
    needs += ("circuit_units", "circuit_sizes", "circuits", "modulation", "monitor")
    needs += ("measure", "grade", "conclude")
    unit = "pages"
    pace = paces(page=0.7)

    def parts(self) -> Sequence[Part]:
        return [Part("page")]

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from affectlens.report.render import render

        html = render(self.evidence(), **self.config.model_dump())
        (out / PAGE).write_text(html, encoding="utf-8", newline="\n")
        progress(part.size)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        page = (parts["page"] / PAGE).read_bytes()
        (out / PAGE).write_bytes(page)
        return {"page_megabytes": round(len(page) / 1e6, 3)}

    @classmethod
    def open(cls, folder: Path) -> Report:
        return Report(folder)

    def evidence(self) -> Evidence:
        """What the other stages found, as plain data."""
        from affectlens.experiments.samples import of_causal, of_experiments
        from affectlens.report.evidence import Evidence, Rows

        corpus, sae = self.need(CorpusStage), self.need(SaeStage)
        folders = {name: result_folder(Path(self._results[name].folder)) for name in self.needs}
        records = {
            name: json.loads((folder / MANIFEST).read_text(encoding="utf-8")) for name, folder in folders.items()
        }
        metrics = {name: json.loads((folder / METRICS).read_text(encoding="utf-8")) for name, folder in folders.items()}
        comparison = self.need(CompareStage)
        return Evidence(
            model=shown_name(self.setting.model.name),
            layer=self.setting.model.layer,
            width=self.need(ActivationsStage).d_model,
            concepts=corpus.emotions,
            documents=corpus.documents,
            fixed_split=corpus.fixed_split,
            tables={
                f"{stage}/{name}": Rows.of(results.read(folder, name))
                for stage, folder in folders.items()
                for name in results.names(folder)
            },
            metrics=metrics,
            cards={
                "sae": sae.health,
                "compare": {"subspace": comparison.subspace, "pairs": comparison.pairs},
                "geometry": self.need(GeometryStage).data,
            },
            experiments=self.need(ConcludeStage).findings,
            samples=[
                *of_causal(folders["causal"], records["causal"]["config"]["reference"]),
                *of_experiments(folders["measure"], folders["grade"], {}),
            ],
            provenance=self._provenance(records),
        )

    def _provenance(self, records: Mapping[str, Mapping[str, Any]]) -> Provenance:
        """From the manifests: settings and fingerprints, but no times, hosts or folders, which vary."""
        from affectlens.report.evidence import Provenance

        settings: dict[str, Any] = {"seed": self.setting.seed, "model": self.setting.model.model_dump(mode="json")}
        sections = {
            stage.name: stage.section
            for stage in (WritersStage, CircuitUnitsStage, CircuitsStage, MeasureStage, GradeStage, ConcludeStage)
        }
        for name, record in records.items():
            settings.setdefault(sections.get(name, name), {}).update(record["config"])
        settings[self.name] = self.config.model_dump(mode="json")
        data = {"model": records["activations"].get("model_identity", "")}
        for name, record in records.items():
            data |= {f"{name}: {role}": digest for role, digest in record.get("data", {}).items()}
        return Provenance(
            config=settings,
            stages=[{"stage": name, **_pick(record, "version", "fingerprint")} for name, record in records.items()],
            data=data,
            versions=records["activations"].get("versions", {}),
        )


def _pick(record: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys}


def result_folder(folder: Path) -> Path:
    """The folder with the manifest: the one an artifact gives, or the one it lies in.

    Raises:
        DamagedResult: neither holds a manifest.
    """
    for candidate in (folder, folder.parent):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise DamagedResult(f"{folder}: the manifest of this result is gone; run its stage again with --mode force")
