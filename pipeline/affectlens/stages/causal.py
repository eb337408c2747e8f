"""What directions and features *cause*: ablated and injected, dose by dose, against controls of the same norm.

Sufficiency: injected into sentences that say nothing of any emotion, does a vector raise its concept's words?
Necessity: taken out of held-out stories that evoke the concept, does it lower them? Both are measured as the change
of the concept's words against all other studied concepts' words, so that a vector that raises every emotion word, or
only upsets the model, shows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.corpus.documents import concepts
from affectlens.corpus.ratings import read_ratings
from affectlens.corpus.texts import EMBEDDED
from affectlens.files import write_json
from affectlens.interventions.causal import ARRAYS, INPUTS, Causal
from affectlens.interventions.conditions import injected_vectors, studied_families
from affectlens.interventions.config import CausalConfig
from affectlens.interventions.tables import TABLES
from affectlens.settings import Resources
from affectlens.stage import Identity, Metrics, Part, Progress, Stage, StudySettings, paces, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    import numpy as np

    from affectlens.interventions.effects import Ablated, Injected
    from affectlens.interventions.inputs import InterventionInputs
    from affectlens.interventions.runner import InterventionRunner

RESULT = "part.safetensors"
TEXTS = "texts.jsonl"


@register
class CausalStage(Stage[CausalConfig, Causal]):
    """Inject and ablate directions and features."""

    name = "causal"
    version = 7
    config_class = CausalConfig
    needs = ("corpus", "activations", "sae", "directions", "match")
    reads_model = True
    seeded = True
    keeps_parts = True
    measured_needs = ("directions", "match")
    resources = Resources(parts_per_job=2)  # a part takes minutes
    unit = "interventions"
    pace = paces(inject=0.045, ablate=0.008, merge=0.0004)
    tables = TABLES
    headline = (
        ("share_specific_direction", "concepts whose direction, injected, raises their words and no others as much"),
        ("share_specific_feature", "the same for the best SAE feature"),
        ("share_above_controls_direction", "concepts whose direction raises their words above every control vector"),
        ("above_controls_expected_direction", "to be expected of the directions of wrong emotions"),
        ("diagonal_p_direction", "p of all directions together, labels permuted among them"),
    )

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: CausalConfig = study.causal
        cached = {study.model.layer, *study.activations.token_layers, *study.activations.pooled_layers}
        for key, layers in (("layers", config.layers), ("readout_layer", (config.readout_layer,))):
            for layer in layers:
                if layer is not None and layer not in cached:
                    raise ValueError(f"`causal.{key}: {layer}`: not cached; add it to `activations.pooled_layers`")
        highest = max(study.model.layer, *config.layers, 0)
        if config.readout_layer is not None and config.readout_layer <= highest:
            raise ValueError(
                f"`causal.readout_layer: {config.readout_layer}`: not above the intervention at layer {highest}; "
                "give a higher layer"
            )

    @classmethod
    def check_pending(cls, study: StudySettings, tokenizer: Callable[[], Any]) -> None:
        from affectlens.interventions.frames import read_lexicon
        from affectlens.model.words import choose_words

        choose_words(tokenizer(), concepts(study.corpus), read_lexicon(), study.causal.words)

    @classmethod
    def identities(cls, study: StudySettings) -> dict[str, Identity]:
        return {name: EMBEDDED / name for name in ("lexicon.json", "frames.json", "ratings.csv")}

    def parts(self) -> Sequence[Part]:
        config, concepts = self.config, self.outlook.emotions
        vectors = len(injected_vectors(config, concepts))
        sizes = {"inject": len(config.strengths), "sample": config.samples}
        sizes |= {"knockout": config.samples} if config.knockout else {}
        parts = [
            Part(f"{kind}-{index:04d}", size=size * (end - start), payload={"start": start, "end": end})
            for kind, size in sizes.items()
            for index, (start, end) in enumerate(_slices(vectors, config.vectors_per_part))
            if size
        ]
        ablations = len(studied_families(config.feature_set)) * (1 + config.ablation_controls)
        return parts + [
            Part(f"ablate-{index:04d}", size=ablations * (end - start), payload={"start": start, "end": end})
            for index, (start, end) in enumerate(_slices(len(concepts), config.concepts_per_part))
        ]

    def effort(self, part: Part) -> float:
        """Interventions; each story that is read under ablation is one."""
        return part.size * (self.config.stories if part.name.startswith("ablate") else 1)

    @cached_property
    def inputs(self) -> InterventionInputs:
        from affectlens.interventions.inputs import InterventionInputs

        return InterventionInputs(
            config=self.config,
            layer=self.setting.model.layer,
            corpus=self.need(CorpusStage),
            activations=self.need(ActivationsStage),
            sae=self.need(SaeStage),
            directions=self.need(DirectionsStage),
            match=self.need(MatchStage),
            generator=self.generator,
        )

    @cached_property
    def runner(self) -> InterventionRunner:
        from affectlens.interventions.runner import InterventionRunner

        layers = sorted({self.setting.model.layer, *self.config.layers})
        return InterventionRunner(self.config, self.setting, self.inputs, layers)

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from safetensors.numpy import save_file

        kind, start, end = part.name.split("-")[0], part.payload["start"], part.payload["end"]
        if kind == "inject":
            arrays = self.runner.inject(start, end)
        elif kind == "ablate":
            arrays = {key: value for index in range(start, end) for key, value in self.runner.ablate(index).items()}
        else:
            texts: list[dict[str, Any]] = []
            arrays = self.runner.sample(start, end, texts, banned=kind == "knockout")
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in texts]
            (out / TEXTS).write_text("".join(lines), encoding="utf-8")
        save_file(arrays, out / RESULT)
        progress(part.size)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        import numpy as np
        from safetensors.numpy import load_file, save_file

        from affectlens import results
        from affectlens.interventions import sampled, tables, verdicts

        arrays = _joined([(name.split("-")[0], load_file(path / RESULT)) for name, path in parts.items()])
        save_file(arrays, out / ARRAYS)
        concepts = self.need(CorpusStage).emotions
        summary = verdicts.summarise(
            concepts,
            self._injected(arrays),
            [self._ablated(arrays, index) for index in range(len(concepts))],
            read_ratings(EMBEDDED / "ratings.csv"),
            self.config,
            self.generator("permutations"),
        )
        families = np.array([sampled.PLAIN, *(family for _, family in self.inputs.names)])
        for kind in ("sample", "knockout"):
            scores = {key.partition(".")[2]: values for key, values in arrays.items() if key.startswith(f"{kind}.")}
            if scores:
                rows, metrics = sampled.summarise(kind, concepts, families, scores, self.config)
                summary.add(tables.SAMPLES, rows)
                summary.metrics |= metrics
        for table in self.tables:
            results.write(out, table, summary.tables.get(table, []))  # empty where nothing of its kind was asked for
        write_json(out / INPUTS, self.runner.scored_by())
        texts = [path / TEXTS for name, path in parts.items() if name.startswith(("sample", "knockout"))]
        if texts:
            (out / TEXTS).write_bytes(b"".join(path.read_bytes() for path in texts))
        return summary.metrics

    def _injected(self, arrays: Mapping[str, np.ndarray]) -> Injected:
        import numpy as np

        from affectlens.interventions.effects import Injected

        return Injected(
            families=np.array([family for _, family in self.inputs.names]),
            strengths=self.config.strengths,
            reference=self.config.strengths.index(self.config.reference),
            effect=arrays["inject.effect"],
            divergence=arrays["inject.divergence"],
            perplexity=arrays["inject.perplexity"],
            reading=arrays.get("inject.reading"),
        )

    def _ablated(self, arrays: Mapping[str, np.ndarray], index: int) -> Ablated | None:
        from affectlens.interventions.effects import Ablated

        name = f"ablate.{index:04d}"
        if f"{name}.base" not in arrays:
            return None
        return Ablated(
            drop={family: arrays[f"{name}.{family}"] for family in self.inputs.studied},
            fires={family: arrays[f"{name}.fires.{family}"] for family in self.inputs.feature_sets},
            base=arrays[f"{name}.base"],
            topics=arrays[f"{name}.topics"],
            frames=arrays[f"{name}.frames"],
        )

    @classmethod
    def open(cls, folder: Path) -> Causal:
        return Causal(folder)


def _slices(count: int, width: int) -> list[tuple[int, int]]:
    return [(start, min(count, start + width)) for start in range(0, count, width)]


def _joined(parts: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Arrays by ``kind.name``: those of ablation belong to one concept each, the others are slices of vectors."""
    import numpy as np

    slices: dict[str, list[np.ndarray]] = {}
    for kind, arrays in parts:
        for name, values in arrays.items():
            slices.setdefault(f"{kind}.{name}", []).append(values)
    return {name: np.concatenate(values) for name, values in slices.items()}
