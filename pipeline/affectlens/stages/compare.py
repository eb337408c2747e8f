"""Features against directions: do they point the same way, and which of them detects better on topics left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.corpus.ratings import ratings_path, read_ratings
from affectlens.corpus.texts import EMBEDDED, texts_path
from affectlens.files import write_json
from affectlens.model import subject
from affectlens.probing import comparison
from affectlens.probing.comparison import Comparison
from affectlens.probing.config import CompareConfig
from affectlens.stage import Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    import numpy as np

    from affectlens.probing.readouts import Study


@register
class CompareStage(Stage[CompareConfig, Comparison]):
    """Compare decoder rows with directions, and all readouts with each other."""

    name = "compare"
    version = 4
    config_class = CompareConfig
    needs = ("corpus", "activations", "sae", "directions", "match")
    seeded = True
    measured_needs = ("directions",)
    unit = "comparisons"
    headline = (
        ("auroc_all_sae_features", "AUROC of all SAE features together within left-out topics"),
        ("auroc_best_random_direction", "AUROC of the best random direction, searched as features are"),
        ("auroc_tf-idf", "AUROC of TF-IDF on the text alone"),
        ("cosine_mean", "cosine of feature and direction, mean over concepts"),
    )
    tables = (
        comparison.COSINES,
        comparison.DETECTION,
        comparison.READOUTS,
        comparison.CONFOUNDS,
        comparison.EXPLAINED,
        comparison.ANGLES,
        comparison.PAIRS,
    )

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: CompareConfig = study.compare
        if not ratings_path(config.ratings).is_file():
            raise ValueError(f"`compare.ratings: {config.ratings}`: no such file; give a CSV, or `embedded`")
        read_ratings(ratings_path(config.ratings))
        if config.pairs != "none" and not texts_path("pairs", config.pairs).is_file():
            raise ValueError(f"`compare.pairs: {config.pairs}`: no such file; give a JSONL file, or `none`")

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        data: dict[str, Identity] = {
            "ratings": ratings_path(study.compare.ratings),
            "lexicon": EMBEDDED / "lexicon.json",
        }
        return data if study.compare.pairs == "none" else data | {"pairs": texts_path("pairs", study.compare.pairs)}

    def parts(self) -> Sequence[Part]:
        return [Part("cosines"), Part("detection"), *([] if self.config.pairs == "none" else [Part("pairs")])]

    @cached_property
    def _study(self) -> Study:
        from affectlens.probing.readouts import Study

        return Study(
            self.need(CorpusStage), self.need(ActivationsStage), self.need(DirectionsStage), self.need(MatchStage),
            self.need(SaeStage), self.setting.model.layer, self.config, self.generator,
            subject.load_tokenizer(self.setting.model, self.setting.models),
        )  # fmt: skip

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        work = {"cosines": self._cosines, "detection": self._detection, "pairs": self._pairs}
        write_json(out / "card.json", work[part.name]())
        progress(1)

    def _cosines(self) -> dict[str, Any]:
        corpus, sae, layer = self.need(CorpusStage), self.need(SaeStage), self.setting.model.layer
        stories = self.need(ActivationsStage).pooled(layer)[corpus.indices("train", "validation")]
        return comparison.against_dictionary(
            sae.decoder, sae.encoder, self.need(DirectionsStage).unit(layer).astype(float), stories.astype(float),
            self.need(MatchStage).best, corpus.emotions, self.config, self.generator,
        )  # fmt: skip

    def _detection(self) -> dict[str, Any]:
        from affectlens.probing import axes, readouts

        ratings = axes.rated(self.need(CorpusStage).emotions, read_ratings(ratings_path(self.config.ratings)))
        scores = readouts.all_readouts(self._study, ratings)
        return {
            "detection": readouts.detection_rows(self._study, scores),
            "confounds": readouts.confounds(self._study, scores, ratings),
        }

    def _pairs(self) -> dict[str, Any]:
        from affectlens.probing import pairs

        read = pairs.read_pairs(texts_path("pairs", self.config.pairs), self.need(CorpusStage).emotions)
        if not read:
            return {"pairs": []}
        texts = [pair.text_a for pair in read] + [pair.text_b for pair in read]
        return {"pairs": pairs.compare(read, self._residuals(texts), self._study)}

    def _residuals(self, texts: Sequence[str]) -> list[dict[int, np.ndarray]]:
        """Per text the residuals of all its tokens at every layer of the study."""
        from affectlens.model.reading import Site, open_reader, read
        from affectlens.model.tokens import encode

        layers, setting, tokenizer = self.need(DirectionsStage).layers, self.setting, self._study.tokenizer
        model = open_reader(setting.model, max(layers) + 1, device=setting.device, models=setting.models)
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        rows = [[*begin, *encode(tokenizer, text)] for text in texts]
        values: list[dict[int, np.ndarray]] = [{} for _ in texts]
        for index, sites in read(model, rows, [Site(layer) for layer in layers], lead=len(begin)):
            values[index] = {site.layer: sites[site][len(begin) :].float().cpu().numpy() for site in sites}
        return values

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from affectlens.probing import concept_table

        card: dict[str, Any] = {"pairs": []}
        for folder in parts.values():
            card |= json.loads((folder / "card.json").read_text(encoding="utf-8"))
        write_json(out / "compare.json", card)
        for declared, rows in comparison.table_rows(card).items():
            results.write(out, declared, rows)
        sections = {"direction": self.need(DirectionsStage).table, "feature": self.need(MatchStage).table}
        sections |= {"cosine": card["table"], "confound": card["confounds"]}
        concept_table.write(out, concept_table.build(self.need(CorpusStage).emotions, sections, card["detection"]))
        return comparison.metrics(card, self.setting.model.layer)

    @classmethod
    def open(cls, folder: Path) -> Comparison:
        return Comparison(folder)
