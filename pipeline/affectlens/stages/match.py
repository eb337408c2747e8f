"""Which SAE feature answers to which emotion concept: every feature against every concept, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from affectlens import results
from affectlens.files import open_hdf5, write_json
from affectlens.model import subject
from affectlens.probing import match as matched
from affectlens.probing.config import MatchConfig
from affectlens.probing.match import Match
from affectlens.stage import Metrics, Part, Progress, Stage, paces, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    import numpy as np


@register
class MatchStage(Stage[MatchConfig, Match]):
    """Encode every text, choose features in every fold, and read the topics that had no part in the choice."""

    name = "match"
    version = 5
    config_class = MatchConfig
    needs = ("corpus", "activations", "sae")
    seeded = True
    keeps_parts = True
    unit = "texts"
    pace = paces(other=0.037, merge=0.005)
    headline = (
        ("best_feature_auroc", "AUROC of the best SAE feature per concept within left-out topics"),
        ("random_sae_auroc", "the same with random SAEs"),
        ("difference", "difference"),
    )
    tables = (matched.CONCEPTS, matched.PROBES, matched.CONTEXTS)

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
        from scipy.sparse import csr_array

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
                    tokens.append(csr_array(codes))
            progress(1)
        write_part(out / FILE, documents, pooled, tokens)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        import numpy as np

        from affectlens import stats
        from affectlens.probing import contexts, text_features

        corpus, folders = self.need(CorpusStage), list(parts.values())
        with open_hdf5(out / matched.FILE, "w") as file:
            text_features.join(folders, file, len(corpus.documents))
        found = matched.match(out / matched.FILE, corpus, self.config, self.generator)
        folds, features = found.searches["sae"].folds, found.choice.feature
        used = np.unique(np.concatenate([folds.reshape(-1), features]))
        with open_hdf5(out / matched.FILE, "r+") as file:
            for name, values in found.arrays.items():
                file[name] = values
            text_features.keep_tokens(folders, file, used[used >= 0])
            if self.config.tokens == "all":
                tokens, owners = text_features.token_matrix(folders, set(corpus.indices("test")))
                file["auroc/test_tokens"] = stats.auroc(tokens, corpus.labels(owners.tolist()))
        tokens = text_features.TokenFeatures(out / matched.FILE)
        model = subject.Subject.load(
            self.setting.model, device=self.setting.device, models=self.setting.models, layers=1
        )
        shown = contexts.top(
            tokens, features, corpus, self.need(ActivationsStage), self.setting.model.layer, model.tokenizer,
            count=self.config.contexts, around=self.config.context_tokens,
        )  # fmt: skip
        words = model.lens_words(self.need(SaeStage).decoder[features])
        areas = matched.token_areas(tokens, corpus, folds)
        table = matched.concept_rows(found, corpus.emotions, self.config, areas, words, shown)
        card = {
            "concepts": corpus.emotions,
            "table": table,
            "random_saes": self.config.random_saes,
            "pooling": self.config.pooling,
            "probe_sizes": self.config.probe_sizes,
            "permutations": self.config.permutations,
        }
        write_json(out / "match.json", card)
        for declared, rows in matched.table_rows(table, self._other).items():
            results.write(out, declared, rows)
        return matched.metrics(found, table, self.config, self.need(SaeStage).d_sae)

    @classmethod
    def open(cls, folder: Path) -> Match:
        return Match(folder)
