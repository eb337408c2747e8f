"""One linear direction per concept: how the mean residual over its stories differs from that over all concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectlens import results
from affectlens.corpus.documents import concepts
from affectlens.files import write_json
from affectlens.model import subject
from affectlens.probing import directions
from affectlens.probing.config import DirectionsConfig
from affectlens.probing.directions import RECIPE, Directions
from affectlens.stage import Folder, Identity, Metrics, Part, Progress, Stage, StudySettings, paces, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage


@register
class DirectionsStage(Stage[DirectionsConfig, Directions]):
    """Build directions, and read every topic by what the others built."""

    name = "directions"
    version = 8
    config_class = DirectionsConfig
    needs = ("corpus", "activations")
    seeded = True
    keeps_parts = True
    unit = "layers"
    pace = paces(layer=3.5e-4, merge=3e-5)
    headline = (("auroc_test", "AUROC of difference-of-means directions within left-out topics"),)
    tables = (directions.CONCEPTS, directions.LAYERS, directions.MASSIVE)

    @classmethod
    def check(cls, study: StudySettings) -> None:
        path: Path | None = study.directions.imported
        if path is not None and not path.expanduser().exists():
            raise ValueError(f"`directions.imported: {path}`: no such file or folder; give an .npz, or GGUF files")
        known = subject.shape(study.model)
        if path is not None and known is not None:
            from affectlens.probing import export

            more = study.activations.token_layers if study.activations.token_rows else ()
            for layer in sorted({study.model.layer, *study.activations.pooled_layers, *more}):
                export.read(path.expanduser(), concepts(study.corpus), layer, known.width)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        path: Path | None = study.directions.imported
        if path is None:
            return {}
        path = path.expanduser()
        return {"imported": Folder(path, tuple(sorted(path.glob("*.gguf")))) if path.is_dir() else path}

    @property
    def methods(self) -> tuple[str, ...]:
        """All probes that some layer may have; the recipe is the first."""
        from affectlens.probing.methods import PLAIN, STANDARDISED

        return tuple(dict.fromkeys([RECIPE, *self.config.baselines, STANDARDISED, PLAIN]))

    def parts(self) -> Sequence[Part]:
        return [Part(f"layer-{layer:03d}", payload={"layer": layer}) for layer in self.outlook.layers]

    def effort(self, part: Part) -> float:
        """Texts times the root of the number of concepts: between 24 and 171 of them, time grew so."""
        return len(self.outlook.documents) * len(self.outlook.emotions) ** 0.5

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from safetensors.numpy import save_file

        from affectlens.probing import export

        corpus, layer = self.need(CorpusStage), part.payload["layer"]
        pooled, imported = self.need(ActivationsStage).pooled(layer), None
        if self.config.imported:
            imported = export.read(self.config.imported.expanduser(), corpus.emotions, layer, pooled.shape[1])
        arrays = directions.build_layer(
            pooled, corpus, self.config, imported,
            permutation_rng=self.generator("permutations"), stability_rng=self.generator(f"stability-{layer}"),
        )  # fmt: skip
        if len(arrays["massive_out"]):
            arrays["unit"] = self._unit(layer, pooled, arrays["massive_out"].astype(int))
        named = {f"layers.{layer}.{name}": values for name, values in arrays.items()}
        save_file(named, out / "directions.safetensors")
        progress(1)

    def _unit(self, layer: int, pooled: Any, out: Any) -> Any:
        """Mean norm without the massive dimensions: of up to 4,096 tokens, or of texts where no token was kept."""
        import numpy as np

        store = self.need(ActivationsStage)
        if layer in store.token_layers:
            tokens = store.tokens(layer)
            pooled = tokens.read(np.unique(np.linspace(0, len(tokens) - 1, 4096).astype(int)))
        return np.linalg.norm(np.delete(pooled, out, axis=1), axis=1).mean(dtype=np.float64)[None].astype(np.float32)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from safetensors.numpy import load_file, save_file

        arrays = {}
        for folder in parts.values():
            arrays |= load_file(folder / "directions.safetensors")
        save_file(arrays, out / "directions.safetensors")
        corpus, store, layer = self.need(CorpusStage), self.need(ActivationsStage), self.setting.model.layer
        sweep = directions.sweep(arrays, corpus, store.layers, self.methods, imported=self.config.imported is not None)
        model = subject.Subject.load(
            self.setting.model, device=self.setting.device, models=self.setting.models, layers=1
        )
        words = model.lens_words(arrays[f"layers.{layer}.vectors"], self.config.words)
        table = directions.concept_rows(arrays, layer, corpus.emotions, sweep.detection[RECIPE, layer], words)
        card = {
            "concepts": corpus.emotions,
            "methods": directions.present(arrays, layer, self.methods),
            "sweep": sweep.rows,
            "table": table,
            "chosen_layer": sweep.best,
            "neutral_components": len(arrays[f"layers.{layer}.neutral"]),
            "permutations": self.config.permutations,
            "subtract_mean": self.config.subtract_mean,
            "logistic_c": self.config.logistic_c,
            "imported": self.config.imported is not None,
        }
        write_json(out / "directions.json", card)
        results.write(out, directions.CONCEPTS, ({**row, "words": " ".join(row["words"])} for row in table))
        results.write(out, directions.LAYERS, directions.layer_rows(sweep.rows))
        results.write(out, directions.MASSIVE, directions.massive_rows(arrays, store.layers))
        self._export(arrays, out)
        return directions.metrics(card, sweep, layer)

    def _export(self, arrays: Mapping[str, Any], out: Path) -> None:
        from affectlens.probing import export

        corpus, store = self.need(CorpusStage), self.need(ActivationsStage)
        vectors = {layer: arrays[f"layers.{layer}.vectors"] for layer in store.layers}
        if "npz" in self.config.export:
            export.write_npz(out / "directions.npz", corpus.emotions, vectors)
        if "gguf" in self.config.export:
            built = Directions(out)
            norms = {layer: built.strength_unit(store, layer) for layer in store.layers}
            export.write_gguf(out / "gguf", corpus.emotions, vectors, norms, export.family(self.setting.model))

    @classmethod
    def open(cls, folder: Path) -> Directions:
        return Directions(folder)
