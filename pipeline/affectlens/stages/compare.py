"""Features against directions: do they point the same way, and which of them detects better on text never seen.

Everything that detects stands side by side on the same test topics, the simple methods included: on stories alone a
bag of words does nearly as well as any residual stream, and a reader has to see that. What vocabulary, topic, valence
and arousal explain is taken away in turn, and pairs of texts made of the same words ask for what is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from affectlens.config import Config
from affectlens.corpus.ratings import ratings_path, read_ratings
from affectlens.corpus.texts import EMBEDDED, texts_path
from affectlens.files import write_json
from affectlens.model import subject
from affectlens.probing.comparison import Comparison
from affectlens.stage import Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from affectlens.probing.methods import Vocabulary

LEXICON = EMBEDDED / "lexicon.json"
RECIPE = "difference of means"


class CompareConfig(Config):
    """What stands beside what."""

    null_directions: int = Field(default=1000, ge=99)
    """Random directions, matched in covariance to the activations, that say how large a cosine chance gives."""
    pursuit_steps: tuple[int, ...] = (1, 2, 5, 10, 20)
    """Numbers of decoder rows that a direction is put together from."""
    null_subspaces: int = Field(default=100, ge=19)
    """Random sets of features whose angles with the directions stand beside those of the chosen ones."""
    telling_words: int = Field(default=10, ge=0)
    """Words per concept, highest in TF-IDF, whose tokens are left out beside those of the lexicon."""
    near_concepts: int = Field(default=5, ge=1)
    """Neighbours in valence and arousal that a concept has to be told from."""
    ratings: str = "embedded"
    """`embedded` (judged by a model, see the README), or a CSV: a column of words, then valence, arousal, ..."""
    pairs: str = "embedded"
    """`embedded`, a JSONL file of pairs of texts made of the same words, or `none`."""


@register
class CompareStage(Stage[CompareConfig, Comparison]):
    """Compare decoder rows with directions, and all readouts with each other."""

    name = "compare"
    version = 3
    config_class = CompareConfig
    needs = ("corpus", "activations", "sae", "directions", "match")
    seeded = True
    measured_needs = ("directions",)
    unit = "comparisons"
    headline = (
        ("auroc_tf-idf", "AUROC of TF-IDF on the text alone"),
        ("cosine_mean", "cosine of feature and direction, mean over concepts"),
    )

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: CompareConfig = study.compare
        if not ratings_path(config.ratings).is_file():
            raise ValueError(f"`compare.ratings: {config.ratings}`: no such file; give a CSV, or `embedded`")
        if config.pairs != "none" and not texts_path("pairs", config.pairs).is_file():
            raise ValueError(f"`compare.pairs: {config.pairs}`: no such file; give a JSONL file, or `none`")
        if list(config.pursuit_steps) != sorted(set(config.pursuit_steps)) or min(config.pursuit_steps, default=0) < 1:
            raise ValueError("`compare.pursuit_steps`: give numbers from 1 up, ascending, each once")

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        found = {"ratings": ratings_path(study.compare.ratings), "lexicon": LEXICON}
        return found if study.compare.pairs == "none" else found | {"pairs": texts_path("pairs", study.compare.pairs)}

    def parts(self) -> Sequence[Part]:
        return [Part("cosines"), Part("detection"), *([] if self.config.pairs == "none" else [Part("pairs")])]

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "cosines": self._directions,
            "detection": self._readouts,
            "pairs": lambda: {"pairs": self._pairs()},
        }
        write_json(out / "found.json", work[part.name]())
        progress(1)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from affectlens.probing import concept_table

        card: dict[str, Any] = {"pairs": []}
        for folder in parts.values():
            card |= json.loads((folder / "found.json").read_text(encoding="utf-8"))
        write_json(out / "compare.json", card)
        sections = {"direction": self.need(DirectionsStage).table, "feature": self.need(MatchStage).table}
        sections |= {"cosine": card["table"], "confound": card["confounds"]}
        concept_table.write(out, concept_table.build(self.need(CorpusStage).emotions, sections, card["detection"]))
        return _metrics(card, self.setting.model.layer)

    def _directions(self) -> dict[str, Any]:
        """Cosines, subspaces and sparse reconstructions: the directions against the dictionary."""
        from affectlens.probing import control_vectors as controls

        decoder = controls.unit_rows(self.need(SaeStage).decoder.astype(float))
        unit = self.need(DirectionsStage).unit(self.setting.model.layer).astype(float)
        pooled = self.need(ActivationsStage).pooled(self.setting.model.layer)
        stories = pooled[self.need(CorpusStage).indices("train")].astype(float)
        return {
            "table": self._cosines(decoder, unit, stories),
            "subspace": self._subspace(decoder, unit),
            "pursuit": self._pursuit(decoder, unit, stories),
        }

    def _cosines(self, decoder: np.ndarray, unit: np.ndarray, stories: np.ndarray) -> list[dict[str, Any]]:
        import numpy as np

        from affectlens.probing import control_vectors as controls

        writes = decoder @ unit.T
        reads = controls.unit_rows(self.need(SaeStage).encoder.T.astype(float)) @ unit.T
        random = controls.covariance_matched(self.config.null_directions, stories, self.generator("null"))
        largest = np.concatenate([np.abs(each @ decoder.T).max(axis=1) for each in np.array_split(random, 20)])
        rows = []
        concepts, best = self.need(CorpusStage).emotions, self.need(MatchStage).best
        for index, (concept, feature) in enumerate(zip(concepts, best, strict=True)):
            mine, read = writes[:, index], reads[:, index]
            closest = int(np.abs(mine).argmax())
            rows.append(
                {
                    "concept": concept,
                    "feature": int(feature),
                    "cosine": float(mine[feature]),
                    "cosine_rank": int((mine > mine[feature]).sum()) + 1,
                    "cosine_null_95": float(np.quantile(np.abs(random @ unit[index]), 0.95)),
                    "cosine_encoder": float(read[feature]),
                    "cosine_encoder_rank": int((read > read[feature]).sum()) + 1,
                    "closest_feature": closest,
                    "closest_cosine": float(mine[closest]),
                    "closest_null_95": float(np.quantile(largest, 0.95)),
                }
            )
        return rows

    def _subspace(self, decoder: np.ndarray, unit: np.ndarray) -> dict[str, Any]:
        import numpy as np

        from affectlens.probing import subspaces

        chosen = np.unique(self.need(MatchStage).best)
        found = subspaces.overlap(
            unit, decoder[chosen], decoder, draws=self.config.null_subspaces, rng=self.generator("subspace")
        )
        return {
            "cosines": found.cosines.tolist(), "share": found.share,
            "null_mean": found.null_mean, "null_95": found.null_95,
            "directions": len(unit), "features": len(chosen),
        }  # fmt: skip

    def _pursuit(self, decoder: np.ndarray, unit: np.ndarray, stories: np.ndarray) -> list[dict[str, Any]]:
        """Each direction from few decoder rows, beside random rows and rows that vary as the activations do."""
        from affectlens.probing import control_vectors as controls
        from affectlens.probing import decomposition as pursuit

        generator, (features, width) = self.generator("dictionaries"), decoder.shape
        dictionaries = {
            "SAE decoder": decoder,
            "random": controls.isotropic(features, width, generator),
            "covariance-matched": controls.covariance_matched(features, stories, generator),
        }
        rows = []
        for name, atoms in dictionaries.items():
            found = pursuit.pursue(unit.T, atoms.T, max(self.config.pursuit_steps))
            for steps in self.config.pursuit_steps:
                shares = found.explained[:, min(steps, found.explained.shape[1]) - 1]
                per_concept = dict(zip(self.need(CorpusStage).emotions, shares.tolist(), strict=True))
                rows.append(
                    {"dictionary": name, "rows": steps, "explained": float(shares.mean()), "per_concept": per_concept}
                )
        return rows

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        corpus = self.need(CorpusStage)
        return {"train": corpus.indices("train"), "test": corpus.indices("test")}

    def _texts(self, split: str) -> list[str]:
        documents = self.need(CorpusStage).documents
        return [documents[row].text for row in self._rows[split]]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from affectlens.probing.methods import Vocabulary

        return Vocabulary.fit(self._texts("train"), self.need(CorpusStage).labels(self._rows["train"]))

    def _readouts(self) -> dict[str, Any]:
        """All readouts on the test topics, and what explains them away."""
        from affectlens.probing import axes as affect
        from affectlens.probing import detection

        corpus = self.need(CorpusStage)
        test = self._rows["test"]
        labels, topics = corpus.labels(test), corpus.topics(test)
        scores = self._scores()
        ratings = affect.rated(corpus.emotions, read_ratings(ratings_path(self.config.ratings)))
        linear = self.need(DirectionsStage).linear(self.setting.model.layer)
        left, share = affect.remainder(linear, ratings)
        pooled = self.need(ActivationsStage).pooled(self.setting.model.layer)[test]
        scores[f"{RECIPE}, without valence and arousal"] = left.unit.scores(pooled)
        without = self._without_words()
        scores |= {f"{name}, without telling words": values for name, values in without.items()}
        near = {
            name: affect.near_areas(scores[name], labels, ratings, self.config.near_concepts)
            for name in (RECIPE, "best SAE feature", "TF-IDF")
        }
        return {
            "detection": detection.describe(scores, labels, topics, corpus.emotions, self.generator),
            "confounds": self._confounds(scores, labels, near, share),
        }

    def _scores(self) -> dict[str, np.ndarray]:
        """Per method, every concept's readout of every test document. Fitted on training topics."""
        layer, test = self.setting.model.layer, self._rows["test"]
        store, match, directions = (
            self.need(ActivationsStage),
            self.need(MatchStage),
            self.need(DirectionsStage),
        )
        pooled = store.pooled(layer)
        found = {method: directions.readout(layer, pooled[test], method) for method in directions.methods}
        found["best SAE feature"] = match.scores("sae", test)[:, match.best]
        for size, scores in zip(match.probe_sizes, match.probe_scores, strict=True):
            if size > 1:
                found[f"{size} SAE features"] = scores
        found |= self._reconstructed(pooled)
        found["best random-SAE feature"] = match.scores("random-0", test)[:, match.random_best[0]]
        found["TF-IDF"] = self._vocabulary.scores(self._texts("test"))
        lowest = min(directions.layers)
        if lowest < layer:
            found[f"{RECIPE}, layer {lowest}"] = directions.readout(lowest, store.pooled(lowest)[test])
        return found

    def _reconstructed(self, pooled: Float[np.ndarray, "docs d_model"]) -> dict[str, np.ndarray]:
        """Difference of means on what the SAE reconstructs and on what it leaves out.

        Decoding is affine, so the mean of the reconstructions is the reconstruction of the mean activations.
        """
        from affectlens.probing import methods as readouts

        train, test = self._rows["train"], self._rows["test"]
        labels, match = self.need(CorpusStage).labels(train), self.need(MatchStage)
        rebuilt = {rows[0]: self.need(SaeStage).decode(match.mean_codes(rows)) for rows in (train, test)}
        found = {}
        for name, sign in (("SAE reconstruction", 0), ("SAE error", 1)):
            fitted, read = (pooled[rows] - rebuilt[rows[0]] if sign else rebuilt[rows[0]] for rows in (train, test))
            found[f"{RECIPE}, {name}"] = readouts.difference_of_means(fitted, labels).unit.scores(read)
        return found

    def _without_words(self) -> dict[str, np.ndarray]:
        """The test readouts with the tokens of each concept's telling words left out.

        Of TF-IDF alone where the tokenizer does not say which characters a token stands for, or texts are chats.
        """
        import numpy as np

        from affectlens.probing import lexical as vocabulary

        corpus, store, match = self.need(CorpusStage), self.need(ActivationsStage), self.need(MatchStage)
        tokenizer = subject.load_tokenizer(self.setting.model, self.setting.models)
        lexicon = json.loads(LEXICON.read_text(encoding="utf-8"))
        telling = vocabulary.telling_words(self._vocabulary, corpus.emotions, lexicon, self.config.telling_words)
        found = {"TF-IDF": vocabulary.scores_without(self._vocabulary, self._texts("test"), telling)}
        if not tokenizer.is_fast or any(corpus.documents[row].messages for row in self._rows["test"]):
            return found
        linear, first = self.need(DirectionsStage).linear(self.setting.model.layer), store.index["first_token"]
        tokens, direction, feature = store.tokens(self.setting.model.layer), [], []
        for row, text in zip(self._rows["test"], self._texts("test"), strict=True):
            kept = vocabulary.kept_tokens(tokenizer, text, telling)[first:]
            residuals = tokens.of(row)[first:]
            codes = self.need(SaeStage).encode(residuals)[:, match.best]
            direction.append(vocabulary.pool_kept(linear.scores(residuals), kept, "mean"))
            feature.append(vocabulary.pool_kept(codes, kept, match.pooling))
        return {RECIPE: np.stack(direction), "best SAE feature": np.stack(feature), **found}

    def _confounds(
        self, scores: Mapping[str, np.ndarray], labels: np.ndarray, near: Mapping[str, np.ndarray], share: np.ndarray
    ) -> list[dict[str, Any]]:
        """Per concept, what else tells it, and the names of what explains at least half of its detection."""
        from affectlens.probing import detection
        from affectlens.probing import lexical as vocabulary

        corpus, match = self.need(CorpusStage), self.need(MatchStage)
        train_labels = corpus.labels(self._rows["train"])
        words, present = vocabulary.best_words(self._texts("train"), train_labels, self._texts("test"))
        areas = {name: detection.own_areas(values, labels) for name, values in scores.items()}
        single = detection.own_areas(present, labels)
        rows = []
        for index, concept in enumerate(corpus.emotions):
            row = {
                "concept": concept,
                "auroc_topic_alone": match.table[index]["auroc_topic_alone"],
                "best_word": words[index],
                "auroc_best_word": float(single[index]),
                "share_beyond_affect": float(share[index]),
                "near": {name: float(values[index]) for name, values in near.items()},
            }
            for name in (RECIPE, "best SAE feature"):
                row[name] = float(areas[name][index])
                if f"{name}, without telling words" in areas:
                    row[f"{name}, without telling words"] = float(areas[f"{name}, without telling words"][index])
            rows.append(row | {"confounded": confounded(row)})
        return rows

    def _pairs(self) -> list[dict[str, Any]]:
        """Same-words pairs at every layer, by every method, read at the mean of all tokens and at the last."""
        import numpy as np

        from affectlens.probing import pairs
        from affectlens.probing.pairs import describe, margins

        corpus, directions = self.need(CorpusStage), self.need(DirectionsStage)
        found = pairs.read_pairs(texts_path("pairs", self.config.pairs), corpus.emotions)
        if not found:
            return []
        count, train = len(found), self._rows["train"]
        texts = [pair.text_a for pair in found] + [pair.text_b for pair in found]
        residuals = self._read_texts(texts)
        readings: list[tuple[int | None, str, str, np.ndarray, np.ndarray]] = []
        for layer in directions.layers:
            stories = self.need(ActivationsStage).pooled(layer)[train]
            pooled = {"mean": np.stack([rows[layer].mean(axis=0) for rows in residuals])}
            pooled["last"] = np.stack([rows[layer][-1] for rows in residuals])
            for method in directions.methods:
                spread = directions.readout(layer, stories, method).std(axis=0)
                for read, values in pooled.items():
                    readings.append((layer, method, read, directions.readout(layer, values, method), spread))
        readings += self._pair_features(residuals)
        words = self._vocabulary
        readings.append((None, "TF-IDF", "text", words.scores(texts), words.scores(self._texts("train")).std(axis=0)))
        rows = []
        for layer, method, read, scores, spread in readings:
            gap = margins(scores[:count], scores[count:], found, corpus.emotions, spread)
            # Sums in another order leave rounding errors of about 1e-16 where two texts score alike.
            gap = np.where(np.abs(gap) < 1e-9, 0, gap)
            rng = self.generator(f"pairs-{layer}-{method}-{read}")
            rows.append({"layer": layer, "method": method, "read": read, **describe(gap, found, rng)})
        return rows

    def _pair_features(self, residuals: Sequence[Mapping[int, np.ndarray]]) -> list[tuple]:
        """The concepts' SAE features on the texts of the pairs: mean and maximum over all tokens."""
        import numpy as np

        from affectlens.probing.text_features import POOLINGS

        layer, match = self.setting.model.layer, self.need(MatchStage)
        codes = [self.need(SaeStage).encode(rows[layer])[:, match.best] for rows in residuals]
        spread = match.scores("sae", self._rows["train"])[:, match.best].std(axis=0)
        return [
            (layer, "best SAE feature", read, np.stack([pool(each) for each in codes]), spread)
            for read, pool in POOLINGS.items()
        ]

    def _read_texts(self, texts: Sequence[str]) -> list[dict[int, np.ndarray]]:
        """Per text the residuals of all its tokens at every layer of the study."""
        from affectlens.model.reading import Site, open_reader, read
        from affectlens.model.tokens import encode

        layers, setting = self.need(DirectionsStage).layers, self.setting
        tokenizer = subject.load_tokenizer(setting.model, setting.models)
        model = open_reader(setting.model, max(layers) + 1, device=setting.device, models=setting.models)
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        rows = [[*begin, *encode(tokenizer, text)] for text in texts]
        values: list[dict[int, np.ndarray]] = [{} for _ in texts]
        for index, sites in read(model, rows, [Site(layer) for layer in layers], lead=len(begin)):
            values[index] = {site.layer: sites[site][len(begin) :].float().cpu().numpy() for site in sites}
        return values

    @classmethod
    def open(cls, folder: Path) -> Comparison:
        return Comparison(folder)

    @classmethod
    def track(cls, result: Comparison, run: Any) -> None:
        columns = list(result.table[0])
        run.table("compare/cosines", columns, [[row[column] for column in columns] for row in result.table])
        columns = ["method", "mean", "low", "high", "difference", "difference_low", "difference_high"]
        run.table("compare/detection", columns, [[row.get(column) for column in columns] for row in result.detection])
        columns = ["layer", "method", "read", "pairs", "accuracy", "low", "high", "ties", "p"]
        if result.pairs:
            run.table("compare/pairs", columns, [[row[column] for column in columns] for row in result.pairs])
        methods = [row["method"] for row in result.detection]
        concepts = [row["concept"] for row in result.table]
        rows = [[each, *(row["per_concept"].get(each) for row in result.detection)] for each in concepts]
        run.table("compare/readouts", ["concept", *map(metric_name, methods)], rows)
        columns = ["concept", "auroc_topic_alone", "best_word", "auroc_best_word", "share_beyond_affect"]
        rows = [[row[column] for column in columns] + [", ".join(row["confounded"])] for row in result.confounds]
        run.table("compare/confounds", [*columns, "confounded"], rows)
        columns = ["rows", "explained", "dictionary"]
        rows = [[row[column] for column in columns] for row in result.pursuit]
        run.line("compare/explained", columns, rows, x="rows", y="explained", series="dictionary")


def confounded(row: Mapping[str, Any], margin: float = 0.1) -> list[str]:
    """What a concept's detection cannot be told from.

    ``topic``: knowing the training topic alone tells the concept, by more than ``margin`` above chance. ``words``: a
    readout loses more than half of what it has above chance once the telling words' tokens are left out.
    """
    found = ["topic"] if row["auroc_topic_alone"] > 0.5 + margin else []
    for name in (RECIPE, "best SAE feature"):
        whole, rest = row[name] - 0.5, row.get(f"{name}, without telling words", float("nan")) - 0.5
        if whole > margin and rest < whole / 2:
            found.append(f"words ({name})")
    return found


def metric_name(method: str) -> str:
    """The metric of a detection method: ``auroc_lda_shrunk``."""
    return "auroc_" + "_".join(method.lower().replace(",", "").replace("(", "").replace(")", "").split())


def _metrics(card: Mapping[str, Any], layer: int) -> Metrics:
    table, subspace = card["table"], card["subspace"]
    metrics = {
        "cosine_mean": sum(row["cosine"] for row in table) / len(table),
        "cosines_above_null": float(sum(row["cosine"] > row["cosine_null_95"] for row in table)),
        "cosine_encoder_mean": sum(row["cosine_encoder"] for row in table) / len(table),
        "subspace_share": subspace["share"],
        "subspace_share_random": subspace["null_mean"],
        "concepts_confounded": float(sum(bool(row["confounded"]) for row in card["confounds"])),
    }
    for row in card["detection"]:
        key = metric_name(row["method"])
        metrics |= {key: row["mean"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
    for row in card["pursuit"]:
        metrics[f"explained_{'_'.join(row['dictionary'].lower().split())}_{row['rows']}"] = row["explained"]
    for row in card["pairs"]:
        if row["layer"] not in (layer, None):
            continue
        key = f"pairs_{'_'.join(row['method'].lower().replace('(', '').replace(')', '').split())}_{row['read']}"
        metrics |= {key: row["accuracy"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
    return metrics
