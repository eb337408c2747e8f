"""Features against directions: do they point the same way, and which of them detects better on topics left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.corpus.pairs import read_pairs
from affectlens.corpus.ratings import ratings_path, read_ratings
from affectlens.corpus.texts import EMBEDDED, texts_path
from affectlens.files import write_json
from affectlens.interventions.frames import read_lexicon
from affectlens.model import subject
from affectlens.probing import comparison
from affectlens.probing.comparison import Comparison
from affectlens.probing.config import CompareConfig
from affectlens.stage import Identity, Metrics, Part, Progress, Stage, StudySettings, paces, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    from affectlens.probing.readouts import Study

PAIR_SETS = {"written": "pairs", "templates": "templates"}
"""Sets of same-words pairs, and the part that reads each."""
WORDS = 6
"""Most words by which a concept's part in the model's own answer is scored."""


def _templates(config: CompareConfig) -> Path:
    return (
        EMBEDDED / "pair_templates.json"
        if config.pair_templates == "embedded"
        else Path(config.pair_templates).expanduser()
    )


def _pair_files(config: CompareConfig) -> dict[str, Path]:
    """The file of each set that is wanted."""
    files = {"written": texts_path("pairs", config.pairs), "templates": _templates(config)}
    wanted = {"written": config.pairs != "none", "templates": config.pair_templates != "none"}
    return {name: path for name, path in files.items() if wanted[name]}


@register
class CompareStage(Stage[CompareConfig, Comparison]):
    """Compare decoder rows with directions, and all readouts with each other."""

    name = "compare"
    version = 6
    config_class = CompareConfig
    needs = ("corpus", "activations", "sae", "directions", "match")
    seeded = True
    measured_needs = ("directions",)
    unit = "comparisons"
    pace = paces(cosines=0.5, detection=2.6, pairs=10.0, templates=35.0)
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
        templates = _templates(config)
        if config.pair_templates != "none" and not (templates.is_file() and templates.suffix == ".json"):
            raise ValueError(
                f"`compare.pair_templates: {config.pair_templates}`: no such JSON file; give one, or `none`"
            )
        for path in _pair_files(config).values():
            read_pairs(path)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        data: dict[str, Identity] = {
            "ratings": ratings_path(study.compare.ratings),
            "lexicon": EMBEDDED / "lexicon.json",
        }
        return data | {PAIR_SETS[name]: path for name, path in _pair_files(study.compare).items()}

    def parts(self) -> Sequence[Part]:
        return [Part("cosines"), Part("detection"), *(Part(PAIR_SETS[name]) for name in _pair_files(self.config))]

    @cached_property
    def _study(self) -> Study:
        from affectlens.probing.readouts import Study

        return Study(
            self.need(CorpusStage), self.need(ActivationsStage), self.need(DirectionsStage), self.need(MatchStage),
            self.need(SaeStage), self.setting.model.layer, self.config, self.generator,
            subject.load_tokenizer(self.setting.model, self.setting.models),
        )  # fmt: skip

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        work = {"cosines": self._cosines, "detection": self._detection}
        work |= {part: partial(self._pairs, name) for name, part in PAIR_SETS.items()}
        write_json(out / "card.json", work[part.name]())
        progress(1)

    def _cosines(self) -> dict[str, Any]:
        corpus, sae, layer = self.need(CorpusStage), self.need(SaeStage), self.setting.model.layer
        stories = self.need(ActivationsStage).pooled(layer)[corpus.indices("train", "validation")]
        stories = self.need(DirectionsStage).without_massive(layer, stories)
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

    def _pairs(self, name: str) -> dict[str, Any]:
        from affectlens.model.words import choose_words
        from affectlens.probing import axes, meaning

        study, emotions = self._study, self.need(CorpusStage).emotions
        read = read_pairs(_pair_files(self.config)[name], emotions)
        if not read:
            return {PAIR_SETS[name]: []}
        model = subject.Subject.load(self.setting.model, device=self.setting.device, models=self.setting.models)
        words = choose_words(model.tokenizer, emotions, read_lexicon(), WORDS)
        texts = [pair.text_a for pair in read] + [pair.text_b for pair in read]
        heard = meaning.hear(model, texts, study.directions.layers, words)
        ratings = axes.rated(emotions, read_ratings(ratings_path(self.config.ratings)))
        return {PAIR_SETS[name]: [{"set": name, **row} for row in meaning.compare(read, heard, study, ratings)]}

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from affectlens.probing import concept_table

        card: dict[str, Any] = {}
        for folder in parts.values():
            card |= json.loads((folder / "card.json").read_text(encoding="utf-8"))
        card["pairs"] = [row for part in PAIR_SETS.values() for row in card.pop(part, [])]
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
