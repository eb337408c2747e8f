"""Principal components of the directions, correlated with ratings and, as a check, with story length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectlens import results
from affectlens.corpus.ratings import ratings_path, read_ratings
from affectlens.corpus.texts import EMBEDDED
from affectlens.files import write_json
from affectlens.probing import geometry_tables as tables
from affectlens.probing.config import GeometryConfig
from affectlens.stage import Identity, Metrics, Part, Progress, Stage, StudySettings, paces, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage

if TYPE_CHECKING:
    from affectlens.probing.geometry import Geometry


@register
class GeometryStage(Stage[GeometryConfig, "Geometry"]):
    """The shape of the concept space, beside that of words."""

    name = "geometry"
    version = 4
    config_class = GeometryConfig
    needs = ("corpus", "activations", "directions")
    pace = paces(all=0.8)
    seeded = True
    headline = (
        ("r_component_1_valence", "correlation of component 1 with valence"),
        ("r_component_2_arousal", "correlation of component 2 with arousal"),
    )
    tables = tables.ALL

    @classmethod
    def check(cls, study: StudySettings) -> None:
        path = ratings_path(study.geometry.ratings)
        if not path.is_file():
            raise ValueError(f"`geometry.ratings: {study.geometry.ratings}`: no such file; give a CSV, or `embedded`")
        read_ratings(path)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        return {"ratings": ratings_path(study.geometry.ratings), "clusters": EMBEDDED / "clusters.json"}

    def parts(self) -> Sequence[Part]:
        return [Part("all")]

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from affectlens.probing.geometry import Space, describe

        corpus = self.need(CorpusStage)
        ratings = read_ratings(ratings_path(self.config.ratings))
        studied = {word: values for word, values in ratings.items() if word in corpus.emotions}
        space = Space(
            corpus, self.need(ActivationsStage), self.need(DirectionsStage), studied,
            self.setting.model.layer, self.config, self.generator, self.seed_of,
        )  # fmt: skip
        write_json(out / "geometry.json", describe(space))
        progress(1)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from affectlens.probing.geometry import Geometry, metrics, table_rows

        (out / "geometry.json").write_bytes((parts["all"] / "geometry.json").read_bytes())
        data = Geometry(out).data
        for declared, rows in table_rows(data).items():
            results.write(out, declared, rows)
        return metrics(data)

    @classmethod
    def open(cls, folder: Path) -> Geometry:
        from affectlens.probing.geometry import Geometry

        return Geometry(folder)
