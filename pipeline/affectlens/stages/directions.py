"""One linear direction per concept: how the mean residual over its stories differs from that over all concepts.

The recipe is that of Sofroniew et al. 2026 (arXiv 2604.07729): per-story means over the tokens from the 50th on, mean
per concept minus the mean of the concepts, principal components of neutral text projected out. Shrunk LDA and logistic
regression are fitted on the same stories, so that there is something to hold the recipe against.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from affectlens.config import MERGE_ONLY, Config
from affectlens.files import write_json
from affectlens.model import subject
from affectlens.probing.directions import ARRAYS, Directions
from affectlens.stage import Folder, Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage

if TYPE_CHECKING:
    import numpy as np

    from affectlens.probing.layers import LayerTest


class DirectionsConfig(Config):
    """How directions are built from the training topics."""

    subtract_mean: bool = True
    """Whether the mean over concepts is taken from each concept's mean, as the recipe has it."""
    neutral_variance: float = Field(default=0.5, ge=0, lt=1)
    """Share of the variance of neutral texts whose principal components are projected out; 0 keeps everything."""
    baselines: tuple[Literal["LDA (shrunk)", "logistic"], ...] = ("LDA (shrunk)", "logistic")
    """Readouts fitted beside the recipe, at every layer."""
    logistic_c: float = Field(default=1.0, gt=0)
    """Inverse L2 penalty of the logistic readout, on standardised activations."""
    imported: Path | None = None
    """Directions to use in place of the recipe's: an .npz file, or a folder of control-vector GGUF files."""
    stability_draws: int = Field(default=100, ge=2)
    """Resamples of the training topics that say how steady a direction is."""
    permutations: int = Field(default=1000, ge=19, json_schema_extra=MERGE_ONLY)
    """Of the labels within topics, for the best of all layers; the smallest p-value is 1 / (permutations + 1)."""
    words: int = Field(default=10, ge=1, json_schema_extra=MERGE_ONLY)
    """Logit-lens words listed per concept."""
    export: tuple[Literal["npz", "gguf"], ...] = Field(default=("npz", "gguf"), json_schema_extra=MERGE_ONLY)
    """Further formats the directions are written in: numpy, and control vectors for repeng and llama.cpp."""


@register
class DirectionsStage(Stage[DirectionsConfig, Directions]):
    """Build directions on training topics, say how well they read on topics never seen."""

    name = "directions"
    version = 3
    config_class = DirectionsConfig
    needs = ("corpus", "activations")
    seeded = True
    keeps_parts = True
    unit = "layers"
    headline = (("auroc_test", "AUROC of difference-of-means directions, test topics"),)

    @classmethod
    def check(cls, study: StudySettings) -> None:
        path: Path | None = study.directions.imported
        if path is not None and not path.expanduser().exists():
            raise ValueError(f"`directions.imported: {path}`: no such file or folder; give an .npz, or GGUF files")

    @classmethod
    def identities(cls, study: StudySettings) -> dict[str, Identity]:
        path: Path | None = study.directions.imported
        if path is None:
            return {}
        path = path.expanduser()
        return {"imported": Folder(path, tuple(sorted(path.glob("*.gguf")))) if path.is_dir() else path}

    @property
    def methods(self) -> tuple[str, ...]:
        """The readouts of the study; the recipe is the first."""
        return ("difference of means", *(name for name in ARRAYS if name in self.config.baselines))

    def parts(self) -> Sequence[Part]:
        return [Part(f"layer-{layer:03d}", payload={"layer": layer}) for layer in self.outlook.layers]

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        from affectlens.probing import layers
        from affectlens.probing import methods as readouts

        corpus, layer = self.need(CorpusStage), part.payload["layer"]
        pooled = self.need(ActivationsStage).pooled(layer)
        train = corpus.indices("train")
        stories, labels = pooled[train], corpus.labels(train)
        neutral = readouts.neutral_components(pooled[corpus.indices("neutral")], self.config.neutral_variance)
        raw = readouts.difference_of_means(stories, labels, subtract_mean=self.config.subtract_mean)
        arrays = {"vectors": readouts.without(raw.weights, neutral), "raw": raw.weights, "centre": raw.centre}
        arrays["neutral"] = neutral
        if self.config.imported:
            arrays["vectors"] = self._imported(layer, pooled.shape[1])
        if "LDA (shrunk)" in self.methods:
            arrays["lda"] = readouts.discriminant(stories, labels).weights
        if "logistic" in self.methods:
            arrays["logistic"] = readouts.logistic(stories, labels, self.config.logistic_c).weights
        steady = layers.stability(
            stories, labels, corpus.topics(train), neutral,
            draws=self.config.stability_draws, rng=self.generator(f"stability-{layer}"),
        )  # fmt: skip
        arrays["stability"] = np.stack([steady.bootstrap, steady.low, steady.halves])
        save_file(
            {
                f"layers.{layer}.{name}": np.ascontiguousarray(values, dtype=np.float32)
                for name, values in arrays.items()
            },
            out / "directions.safetensors",
        )
        progress(1)

    def _imported(self, layer: int, width: int) -> np.ndarray:
        from affectlens.probing import export

        assert self.config.imported is not None
        return export.read(self.config.imported.expanduser(), self.need(CorpusStage).emotions, layer, width)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from safetensors.numpy import load_file, save_file

        arrays = {}
        for folder in parts.values():
            arrays |= load_file(folder / "directions.safetensors")
        save_file(arrays, out / "directions.safetensors")
        layer = self.setting.model.layer
        found = {split: self._detection(arrays, split) for split in ("validation", "test")}
        card = {
            "concepts": self.need(CorpusStage).emotions,
            "methods": self.methods,
            "sweep": self._sweep(found),
            "table": self._table(arrays, found["test"]["detection"]["difference of means", layer].concepts),
            "neutral_components": int(arrays[f"layers.{layer}.neutral"].shape[0]),
            "permutations": self.config.permutations,
            "imported": self.config.imported is not None,
        }
        card["chosen_layer"] = found["validation"]["test"].best if found["validation"] else layer
        write_json(out / "directions.json", card)
        self._export(arrays, out)
        return self._metrics(card)

    def _detection(self, arrays: Mapping[str, np.ndarray], split: Literal["validation", "test"]) -> dict[str, Any]:
        """AUROC of every method at every layer on one split, and the best layer against chance; empty without rows."""
        from affectlens import stats
        from affectlens.probing import layers
        from affectlens.probing.methods import Linear

        corpus, store = self.need(CorpusStage), self.need(ActivationsStage)
        rows = corpus.indices(split)
        if not rows:
            return {}
        labels, topics = corpus.labels(rows), corpus.topics(rows)
        detection, recipe = {}, {}
        for layer in store.layers:
            pooled = store.pooled(layer)[rows]
            for method in self.methods:
                weights, centre = arrays[f"layers.{layer}.{ARRAYS[method]}"], arrays[f"layers.{layer}.centre"]
                scores = Linear(weights, centre).unit.scores(pooled)
                detection[method, layer] = stats.auroc_interval(
                    scores, labels, topics, rng=self.generator(f"{split}-{layer}-{method}")
                )
                if method == "difference of means":
                    recipe[layer] = scores
        test: LayerTest = layers.layer_test(
            recipe, labels, topics, permutations=self.config.permutations, rng=self.generator(f"layers-{split}")
        )
        return {"detection": detection, "test": test}

    def _sweep(self, found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        import numpy as np

        rows = []
        for layer in self.need(ActivationsStage).layers:
            row: dict[str, Any] = {"layer": layer, "auroc_validation": float("nan"), "methods": {}}
            for split, each in found.items():
                if not each:
                    continue
                mean = each["detection"]["difference of means", layer].mean
                row |= {
                    f"auroc_{split}": mean.value,
                    f"p_{split}": each["test"].p[layer],
                    f"null_95_{split}": float(np.quantile(each["test"].null, 0.95)),
                    "p_floor": each["test"].floor,
                }
                if split == "test":
                    row |= {"low": mean.low, "high": mean.high}
                for method in self.methods:
                    mean = each["detection"][method, layer].mean
                    row["methods"].setdefault(method, {}).update(
                        {f"auroc_{split}": mean.value, f"low_{split}": mean.low, f"high_{split}": mean.high}
                    )
            rows.append(row)
        return rows

    def _table(self, arrays: Mapping[str, np.ndarray], detection: Sequence[Any]) -> list[dict[str, Any]]:
        corpus, layer = self.need(CorpusStage), self.setting.model.layer
        vectors, raw = arrays[f"layers.{layer}.vectors"], arrays[f"layers.{layer}.raw"]
        neutral, steady = arrays[f"layers.{layer}.neutral"], arrays[f"layers.{layer}.stability"]
        removed = ((raw @ neutral.T) ** 2).sum(axis=1) / (raw**2).sum(axis=1)
        model = subject.Subject.load(
            self.setting.model, device=self.setting.device, models=self.setting.models, layers=1
        )
        words = model.lens_words(vectors, self.config.words)
        return [
            {
                "concept": concept,
                "auroc_test": detection[index].value,
                "low": detection[index].low,
                "high": detection[index].high,
                "words": words[index],
                "neutral_energy": float(removed[index]),
                "stability": float(steady[0, index]),
                "stability_low": float(steady[1, index]),
                "halves": float(steady[2, index]),
            }
            for index, concept in enumerate(corpus.emotions)
        ]

    def _export(self, arrays: Mapping[str, np.ndarray], out: Path) -> None:
        from affectlens.probing import export

        concepts = self.need(CorpusStage).emotions
        vectors = {layer: arrays[f"layers.{layer}.vectors"] for layer in self.need(ActivationsStage).layers}
        if "npz" in self.config.export:
            export.write_npz(out / "directions.npz", concepts, vectors)
        if "gguf" in self.config.export:
            export.write_gguf(out / "gguf", concepts, vectors, _family(self.setting.model))

    def _metrics(self, card: Mapping[str, Any]) -> Metrics:
        row = next(row for row in card["sweep"] if row["layer"] == self.setting.model.layer)
        best = next(each for each in card["sweep"] if each["layer"] == card["chosen_layer"])
        halves = [each["halves"] for each in card["table"]]
        return {
            "auroc_test": row["auroc_test"],
            "auroc_test_low": row["low"],
            "auroc_test_high": row["high"],
            "neutral_components": float(card["neutral_components"]),
            "chosen_layer": float(card["chosen_layer"]),
            "chosen_layer_auroc_test": best["auroc_test"],
            "chosen_layer_p_test": best["p_test"],
            "stability_halves": sum(halves) / len(halves),
            **{f"auroc_validation_layer_{each['layer']}": each["auroc_validation"] for each in card["sweep"]},
            **{f"auroc_test_layer_{each['layer']}": each["auroc_test"] for each in card["sweep"]},
        }

    @classmethod
    def open(cls, folder: Path) -> Directions:
        return Directions(folder)

    @classmethod
    def track(cls, result: Directions, run: Any) -> None:
        columns = ["concept", "auroc_test", "low", "high", "neutral_energy", "stability", "halves"]
        rows = [[row[column] for column in columns] + [" ".join(row["words"])] for row in result.table]
        run.table("directions/concepts", [*columns, "words"], rows)
        columns = ["layer", "auroc_validation", "auroc_test", "low", "high"]
        rows = [[row[column] for column in columns] for row in result.sweep]
        run.line("directions/layers", columns, rows, x="layer", y="auroc_test")


def _family(model: subject.ModelConfig) -> str:
    """The architecture that a control vector names as its model: what the model's own configuration calls it."""
    if model.name == "embedded":
        return "llama"
    folder = subject.locate(model)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    return str(values.get("model_type", model.name))
