"""Which SAE feature answers to which emotion concept: every feature against every concept, exactly.

A feature is chosen for a concept on training and validation topics and reported on test topics. Choosing the best of
thousands of features is itself a source of large numbers, so the same choice among the features of random SAEs of the
same shape stands beside every figure, and a permutation null takes the maximum over all features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from affectlens.config import MERGE_ONLY, Config
from affectlens.files import write_json
from affectlens.model import subject
from affectlens.probing.match import Match
from affectlens.stage import Metrics, Part, Progress, Stage, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    import numpy as np


class MatchConfig(Config):
    """How features are matched to concepts."""

    pooling: Literal["mean", "max"] = "mean"
    """How a feature's activations over a text become the number it is matched by; the other is reported beside it."""
    tokens: Literal["chosen", "all"] = Field(default="chosen", json_schema_extra=MERGE_ONLY)
    """For which features AUROC is computed token by token: those of the concepts, or every one."""
    random_saes: int = Field(default=3, ge=1)
    """Random SAEs of the same shape that stand beside the studied one."""
    permutations: int = Field(default=1000, ge=19, json_schema_extra=MERGE_ONLY)
    """Of the concept labels within topics; the smallest p-value is 1 / (permutations + 1)."""
    probe_sizes: tuple[int, ...] = Field(default=(1, 2, 5, 10, 20), json_schema_extra=MERGE_ONLY)
    """Numbers of features that k-sparse probes read a concept from, ascending."""
    contexts: int = Field(default=5, ge=0, json_schema_extra=MERGE_ONLY)
    """Top activating contexts kept per matched feature."""
    context_tokens: int = Field(default=12, ge=1, json_schema_extra=MERGE_ONLY)
    """Tokens shown before and after the one that activates."""
    texts_per_part: int = Field(default=64, ge=1)
    """Size of the slices that are encoded and resumed as one."""

    @field_validator("probe_sizes")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
            raise ValueError("give numbers of features from 1 up, ascending, each once")
        return sizes


@register
class MatchStage(Stage[MatchConfig, Match]):
    """Encode every text, score every feature against every concept, choose, and report on test topics."""

    name = "match"
    version = 3
    config_class = MatchConfig
    needs = ("corpus", "activations", "sae")
    seeded = True
    keeps_parts = True
    unit = "texts"
    headline = (
        ("best_feature_auroc", "AUROC of the best SAE feature per concept, test topics"),
        ("random_sae_auroc", "the same with random SAEs"),
        ("difference", "difference, within topics"),
    )

    def parts(self) -> Sequence[Part]:
        count, size = len(self.outlook.documents), self.config.texts_per_part
        return [
            Part(f"{start // size:05d}", size=min(size, count - start), payload={"start": start})
            for start in range(0, count, size)
        ]

    @cached_property
    def _dictionaries(self) -> dict[str, Any]:
        sae = self.need(SaeStage)
        names = [f"random-{index}" for index in range(self.config.random_saes)]
        return {"sae": sae, **{name: sae.random(self.seed_of(name)) for name in names}}

    @property
    def _other(self) -> Literal["mean", "max"]:
        """The pooling that features are not chosen by."""
        return "max" if self.config.pooling == "mean" else "mean"

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from affectlens.probing.text_features import FILE, POOLINGS, write_part

        store = self.need(ActivationsStage)
        rows, first = store.tokens(self.setting.model.layer), store.index["first_token"]
        count = len(self.need(CorpusStage).documents)
        documents = range(part.payload["start"], min(part.payload["start"] + self.config.texts_per_part, count))
        pooled: dict[str, list[np.ndarray]] = {name: [] for name in (*self._dictionaries, self._other)}
        tokens = []
        for document in documents:
            residuals = rows.of(document)[first:]
            for name, dictionary in self._dictionaries.items():
                codes = dictionary.encode(residuals)
                pooled[name].append(POOLINGS[self.config.pooling](codes))
                if name == "sae":
                    pooled[self._other].append(POOLINGS[self._other](codes))
                    tokens.append(codes)
            progress(1)
        write_part(out / FILE, documents, pooled, tokens)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        import h5py

        from affectlens.probing import text_features as codes

        folders = list(parts.values())
        with h5py.File(out / "match.h5", "w") as file:
            codes.join(folders, file, len(self.need(CorpusStage).documents))
        found = self._figures(out / "match.h5")
        choice, other = found["choice"], found["other"]
        reading = self._read_tokens(folders, choice.feature)
        with h5py.File(out / "match.h5", "a") as file:
            for name, values in {**found["arrays"], **reading["arrays"]}.items():
                file[name] = values
        table = self._table(found, reading)
        card = {
            "concepts": self.need(CorpusStage).emotions,
            "table": table,
            "random_best": [chosen.tolist() for chosen in found["random_best"]],
            "pooling": self.config.pooling,
            "other_pooling": {"name": self._other, "best": other.tolist()},
            "probe_sizes": self.config.probe_sizes,
            "permutations": self.config.permutations,
        }
        write_json(out / "match.json", card)
        return {**found["metrics"], **self._summary(table)}

    def _figures(self, path: Path) -> dict[str, Any]:
        """Every feature against every concept on both sets of topics, the choice, and how it does on test topics."""

        from affectlens import stats
        from affectlens.probing import matching
        from affectlens.probing.text_features import Columns

        def areas(name: str) -> np.ndarray:
            selected: Any = Columns(path, f"codes/{name}", rows["selection"])
            return stats.auroc(selected, labels["selection"])

        corpus = self.need(CorpusStage)
        rows = {"selection": corpus.indices("train", "validation"), "test": corpus.indices("test")}
        labels = {split: corpus.labels(mine) for split, mine in rows.items()}
        columns: dict[str, Any] = {split: Columns(path, "codes/sae", mine) for split, mine in rows.items()}
        arrays: dict[str, np.ndarray] = {}
        for split, values in columns.items():
            arrays[f"auroc/{split}"] = stats.auroc(values, labels[split])
            arrays[f"smd/{split}"] = stats.standardized_mean_difference(values, labels[split])
            arrays[f"ap/{split}"] = stats.average_precision(values, labels[split])
        choice = matching.choose(
            columns["selection"], labels["selection"], corpus.topics(rows["selection"]),
            permutations=self.config.permutations, rng=self.generator("permutations"),
        )  # fmt: skip
        found = {"arrays": arrays, "choice": choice, "labels": labels}
        found["assigned"] = matching.assign(arrays["auroc/selection"])
        found["other"] = areas(self._other).argmax(axis=0)
        random = [name for name in sorted(self._dictionaries) if name != "sae"]
        found["random_best"] = [areas(name).argmax(axis=0) for name in random]
        chosen = {"sae": ("sae", choice.feature), "assigned": ("sae", found["assigned"])}
        chosen["other"] = (self._other, found["other"])
        chosen |= {name: (name, best) for name, best in zip(random, found["random_best"], strict=True)}
        scores = {name: Columns(path, f"codes/{key}", rows["test"])[:, best] for name, (key, best) in chosen.items()}
        found["finding"] = matching.confirm(
            choice,
            scores["sae"],
            labels["test"],
            corpus.topics(rows["test"]),
            permutations=self.config.permutations,
            rng=self.generator("confirmation"),
        )
        return found | self._detection(scores, labels["test"], rows["test"]) | self._probes(path, arrays)

    def _detection(self, scores: Mapping[str, np.ndarray], labels: np.ndarray, rows: Sequence[int]) -> dict[str, Any]:
        """AUROC on test topics with intervals of every way to choose a feature, and the metrics of the stage."""
        import numpy as np

        from affectlens import stats

        topics = self.need(CorpusStage).topics(rows)
        areas = {
            name: stats.auroc_interval(values, labels, topics, rng=self.generator(f"interval-{name}"))
            for name, values in scores.items()
        }
        names = [name for name in scores if name.startswith("random-")]
        random = np.array([areas[name].mean[:3] for name in names]).mean(axis=0)
        difference = self._difference(scores, names, rows)
        figures = {"best_feature_auroc": areas["sae"].mean, "assigned_feature_auroc": areas["assigned"].mean}
        figures |= {f"{self._other}_pooled_auroc": areas["other"].mean, "random_sae_auroc": random}
        figures["difference"] = difference
        metrics = {}
        for key, estimate in figures.items():
            value, low, high = (float(each) for each in estimate[:3])
            metrics[key] = value
            metrics |= {f"{key}_{end}": at for end, at in (("low", low), ("high", high)) if at == at}
        chance = np.mean([[each.value for each in areas[name].concepts] for name in names], axis=0)
        return {"areas": areas, "chance": chance, "metrics": metrics}

    def _probes(self, path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """k-sparse probes fitted on training topics, their size chosen on validation topics."""
        import numpy as np

        from affectlens import stats
        from affectlens.probing import detection, matching
        from affectlens.probing import sparse_probes as probes
        from affectlens.probing.text_features import Columns

        corpus = self.need(CorpusStage)
        rows = {split: corpus.indices(split) for split in ("train", "validation", "test")}
        labels = {split: corpus.labels(mine) for split, mine in rows.items()}
        columns: dict[str, Any] = {split: Columns(path, "codes/sae", mine) for split, mine in rows.items()}
        told = matching.candidates(stats.auroc(columns["train"], labels["train"]))
        fitted = probes.fit(columns["train"][:, told], labels["train"], self.config.probe_sizes)
        scores = fitted.scores(columns["test"][:, told])
        arrays["probes/scores"] = scores.astype(np.float32)
        arrays["probes/features"] = np.where(fitted.chosen >= 0, told[fitted.chosen], -1)
        split_over = None
        if rows["validation"]:
            split_over = fitted.split_over(columns["validation"][:, told], labels["validation"])
        areas = np.stack([detection.own_areas(values, labels["test"]) for values in scores])
        topic = matching.topic_alone(labels["train"], corpus.topics(rows["train"]))
        return {"split_over": split_over, "probe_areas": areas, "topic_alone": topic}

    def _table(self, found: Mapping[str, Any], reading: Mapping[str, Any]) -> list[dict[str, Any]]:
        from affectlens.probing.matching import own

        choice, areas, arrays, finding = (found[key] for key in ("choice", "areas", "arrays", "finding"))
        smd, precision = own(arrays["smd/test"], choice.feature), own(arrays["ap/test"], choice.feature)
        rare = found["labels"]["test"].mean(axis=0)
        concepts, table = self.need(CorpusStage).emotions, []
        for index, concept in enumerate(concepts):
            feature, mine = int(choice.feature[index]), areas["sae"].concepts[index]
            sharing = [name for other, name in enumerate(concepts) if other != index]
            same = [name for name in sharing if choice.feature[concepts.index(name)] == feature]
            table.append(
                {
                    "concept": concept,
                    "feature": feature,
                    "auroc_selection": float(choice.area[index]),
                    "auroc_test": mine.value,
                    "low": mine.low,
                    "high": mine.high,
                    "auroc_random_sae": float(found["chance"][index]),
                    "p_selection": float(choice.p[index]),
                    "p_test": float(finding.p_test[index]),
                    "p": float(finding.p[index]),
                    "p_floor": choice.floor,
                    "p_adjusted": float(finding.adjusted[index]),
                    "smd_test": smd[index],
                    "ap_test": precision[index],
                    "ap_chance": float(rare[index]),
                    "auroc_tokens": float(reading["auroc"][index]),
                    f"feature_{self._other}": int(found["other"][index]),
                    f"auroc_test_{self._other}": areas["other"].concepts[index].value,
                    "assigned_feature": int(found["assigned"][index]),
                    "assigned_auroc_test": areas["assigned"].concepts[index].value,
                    "same_feature": same,
                    "split_over": None if found["split_over"] is None else int(found["split_over"][index]),
                    "probes": {
                        str(size): float(found["probe_areas"][place, index])
                        for place, size in enumerate(self.config.probe_sizes)
                    },
                    "auroc_topic_alone": float(found["topic_alone"][index]),
                    "words": reading["words"][index],
                    "contexts": reading["contexts"][index],
                }
            )
        return table

    def _summary(self, table: Sequence[Mapping[str, Any]]) -> Metrics:
        from statistics import fmean

        metrics = {
            "concepts_significant": float(sum(row["p_adjusted"] <= 0.05 for row in table)),
            "concepts_sharing_a_feature": float(sum(bool(row["same_feature"]) for row in table)),
            "token_auroc": fmean(row["auroc_tokens"] for row in table),
            "average_precision": fmean(row["ap_test"] for row in table),
            "average_precision_chance": fmean(row["ap_chance"] for row in table),
            "features": float(self.need(SaeStage).d_sae),
        }
        for size in self.config.probe_sizes:
            metrics[f"probe_auroc_{size}"] = fmean(row["probes"][str(size)] for row in table)
        return metrics

    def _difference(self, scores: Mapping[str, np.ndarray], random: Sequence[str], rows: Sequence[int]) -> Any:
        """AUROC within each test topic, studied SAE minus the mean of the random ones, over concepts and topics."""
        import numpy as np

        from affectlens import stats
        from affectlens.probing import detection

        corpus = self.need(CorpusStage)
        labels, topics = corpus.labels(rows), corpus.topics(rows)
        cells = {name: detection.within_topics(scores[name], labels, topics) for name in ("sae", *random)}
        chance = np.mean([cells[name] for name in random], axis=0)
        return stats.two_way_bootstrap(cells["sae"] - chance, rng=self.generator("difference"))

    def _read_tokens(self, folders: Sequence[Path], features: np.ndarray) -> dict[str, Any]:
        """Token by token: AUROC on test topics, logit-lens words and top contexts of each chosen feature."""
        import numpy as np

        from affectlens import stats
        from affectlens.probing import detection
        from affectlens.probing.text_features import token_matrix, token_values

        corpus = self.need(CorpusStage)
        train, test = set(corpus.indices("train")), set(corpus.indices("test"))
        values, owners, peaks = [], [], [[] for _ in features]
        for document, activity in token_values(folders, features):
            if document in test:
                values.append(activity)
                owners += [document] * len(activity)
            elif document in train:
                for index, peak in enumerate(activity.argmax(axis=0)):
                    if activity[peak, index] > 0:
                        peaks[index].append((float(activity[peak, index]), document, int(peak), activity[:, index]))
                        peaks[index] = sorted(peaks[index], key=lambda each: each[:3], reverse=True)
                        del peaks[index][self.config.contexts :]
        areas = detection.own_areas(np.concatenate(values), corpus.labels(owners))
        arrays = {}
        if self.config.tokens == "all":
            matrix, owner = token_matrix(folders, test)
            arrays["auroc/test_tokens"] = stats.auroc(matrix, corpus.labels(owner.tolist()))
        model = subject.Subject.load(
            self.setting.model, device=self.setting.device, models=self.setting.models, layers=1
        )
        words = model.lens_words(self.need(SaeStage).decoder[features])
        contexts = [[self._context(model.tokenizer, *peak) for peak in found] for found in peaks]
        return {"auroc": areas, "arrays": arrays, "words": words, "contexts": contexts}

    def _context(self, tokenizer: Any, value: float, document: int, peak: int, activity: np.ndarray) -> dict[str, Any]:
        """The tokens around a peak, with the activation at each; 0 before the first token that is read."""
        store = self.need(ActivationsStage)
        tokens, first = store.tokens(self.setting.model.layer), store.index["first_token"]
        start, end = tokens.span(document)
        near, place = self.config.context_tokens, first + peak
        shown = range(max(0, place - near), min(end - start, place + 1 + near))
        ids = [int(tokens.token[start + each]) for each in shown]
        middle = place - shown.start
        return {
            "before": tokenizer.decode(ids[:middle]),
            "token": tokenizer.decode([ids[middle]]),
            "after": tokenizer.decode(ids[middle + 1 :]),
            "value": value,
            "tokens": [tokenizer.decode([each]) for each in ids],
            "values": [round(float(activity[each - first]), 4) if each >= first else 0.0 for each in shown],
            "document": document,
            "emotion": self.need(CorpusStage).documents[document].emotion,
        }

    @classmethod
    def open(cls, folder: Path) -> Match:
        return Match(folder)

    @classmethod
    def track(cls, result: Match, run: Any) -> None:
        columns = [
            "concept",
            "feature",
            "auroc_selection",
            "auroc_test",
            "low",
            "high",
            "auroc_random_sae",
            "p",
            "p_adjusted",
            "smd_test",
            "ap_test",
            "auroc_tokens",
            "auroc_test_max",
            "assigned_feature",
            "assigned_auroc_test",
            "split_over",
        ]
        rows = [[row.get(column) for column in columns] + [" ".join(row["words"])] for row in result.table]
        run.table("match/concepts", [*columns, "words"], rows)
        columns = ["value", "document", "emotion", "before", "token", "after"]
        rows = [
            [row["concept"], row["feature"], *(each[column] for column in columns)]
            for row in result.table
            for each in row["contexts"]
        ]
        run.table("match/contexts", ["concept", "feature", *columns], rows)
