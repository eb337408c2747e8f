"""What directions and features *cause*: ablated and injected, dose by dose, against controls of the same norm.

Sufficiency: injected into sentences that say nothing of any emotion, does a vector raise its concept's words?
Necessity: taken out of held-out stories that evoke the concept, does it lower them? Both are measured as the change
of the concept's words against all other studied concepts' words, so that a vector that raises every emotion word, or
only upsets the model, shows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.corpus.ratings import read_ratings
from affectlens.corpus.texts import EMBEDDED
from affectlens.files import write_json
from affectlens.interventions.causal import Causal
from affectlens.interventions.config import CausalConfig
from affectlens.interventions.vector_kinds import injected_kinds, studied_kinds
from affectlens.settings import Resources
from affectlens.stage import Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    import numpy as np

    from affectlens.interventions.effects import Ablated, Injected
    from affectlens.interventions.inputs import Material
    from affectlens.interventions.trials import Trials

RESULT = "part.safetensors"
TEXTS = "texts.jsonl"


@register
class CausalStage(Stage[CausalConfig, Causal]):
    """Inject and ablate directions and features."""

    name = "causal"
    version = 2
    config_class = CausalConfig
    needs = ("corpus", "activations", "sae", "directions", "match")
    reads_model = True
    seeded = True
    keeps_parts = True
    measured_needs = ("directions", "match")
    resources = Resources(parts_per_job=2)  # a part takes minutes
    unit = "interventions"
    headline = (
        (
            "share_above_controls_direction",
            "concepts whose direction, injected, raises their words above every control",
        ),
        ("share_above_controls_feature", "the same for the best SAE feature"),
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
    def identities(cls, study: StudySettings) -> dict[str, Identity]:
        return {name: EMBEDDED / name for name in ("lexicon.json", "frames.json", "ratings.csv")}

    def parts(self) -> Sequence[Part]:
        config = self.config
        # Counted without the vectors themselves: the status of a study asks for parts and should answer at once.
        vectors = len(injected_kinds(config.feature_set, len(self.outlook.emotions), config.controls))
        kinds = ("inject", "sample", "knockout") if config.knockout else ("inject", "sample")
        weights = {"inject": len(config.strengths)} | dict.fromkeys(kinds[1:], config.samples)
        parts = [
            Part(f"{kind}-{index:04d}", size=weights[kind] * (end - start), payload={"start": start, "end": end})
            for kind in kinds
            for index, (start, end) in enumerate(_slices(vectors, config.vectors_per_part))
            if weights[kind]
        ]
        trials = len(studied_kinds(config.feature_set)) * (1 + config.ablation_controls)
        return parts + [
            Part(f"ablate-{index:04d}", size=trials * (end - start), payload={"start": start, "end": end})
            for index, (start, end) in enumerate(_slices(len(self.outlook.emotions), config.concepts_per_part))
        ]

    @property
    def layers(self) -> list[int]:
        """Where is injected and projected out, ascending."""
        return sorted({self.setting.model.layer, *self.config.layers})

    @property
    def concepts(self) -> tuple[str, ...]:
        return self.need(CorpusStage).emotions

    @cached_property
    def material(self) -> Material:
        from affectlens.interventions.inputs import Material

        return Material(
            layer=self.setting.model.layer,
            corpus=self.need(CorpusStage),
            activations=self.need(ActivationsStage),
            sae=self.need(SaeStage),
            directions=self.need(DirectionsStage),
            match=self.need(MatchStage),
            feature_set=self.config.feature_set,
            families=self.config.controls,
            ablation_controls=self.config.ablation_controls,
            generator=self.generator,
        )

    @cached_property
    def trials(self) -> Trials:
        from affectlens.interventions.trials import Trials

        return Trials(self.config, self.setting, self.material, self.layers)

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from safetensors.numpy import save_file

        kind, start, end = part.name.split("-")[0], part.payload["start"], part.payload["end"]
        if kind == "inject":
            found = self.trials.inject(start, end)
        elif kind == "ablate":
            found = {key: value for index in range(start, end) for key, value in self.trials.ablate(index).items()}
        else:
            texts: list[dict[str, Any]] = []
            found = self.trials.sample(start, end, texts, banned=kind == "knockout")
            write_jsonl(out / TEXTS, texts)
        save_file(found, out / RESULT)
        progress(part.size)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from safetensors.numpy import load_file, save_file

        from affectlens.interventions.verdicts import Rules, summarise

        joined = _joined([(name.split("-")[0], load_file(path / RESULT)) for name, path in parts.items()])
        flat = {f"{kind}.{key}": value for kind, found in joined.items() for key, value in found.items()}
        save_file(flat, out / "causal.safetensors")
        card = summarise(
            self.concepts,
            self._injected(joined["inject"]),
            [self._ablated(joined["ablate"], index) for index in range(len(self.concepts))],
            read_ratings(EMBEDDED / "ratings.csv"),
            Rules(self.config.level, self.config.perplexity_limit),
            self.generator("finish"),
        )
        metrics = card.pop("metrics")
        card |= {"samples": self._summarise_samples(joined, metrics), "frames": self.trials.frames()}
        card |= {"words": self._scored_words()}
        write_json(out / "causal.json", card)
        texts = [path / TEXTS for name, path in parts.items() if name.startswith(("sample", "knockout"))]
        if texts:
            (out / TEXTS).write_bytes(b"".join(path.read_bytes() for path in texts))
        return metrics

    def _injected(self, arrays: Mapping[str, np.ndarray]) -> Injected:
        from affectlens.interventions.effects import Injected

        return Injected(
            kinds=self.material.kinds,
            strengths=self.config.strengths,
            reference=self.config.strengths.index(self.config.reference),
            effect=arrays["effect"],
            divergence=arrays["divergence"],
            perplexity=arrays["perplexity"],
            reading=arrays.get("reading"),
        )

    def _ablated(self, arrays: Mapping[str, np.ndarray], index: int) -> Ablated | None:
        from affectlens.interventions.effects import Ablated

        name = f"{index:04d}"
        if f"{name}.base" not in arrays:
            return None
        drop = {kind: arrays[f"{name}.{kind}"] for kind in self.material.studied}
        fires = {kind: arrays[f"{name}.fires.{kind}"] for kind in self.material.feature_sets}
        return Ablated(drop, fires, *(arrays[f"{name}.{key}"] for key in ("base", "topics", "frames")))

    def _summarise_samples(
        self, joined: Mapping[str, Mapping[str, np.ndarray]], metrics: Metrics
    ) -> list[dict[str, Any]]:
        """Tables of sampled text with words free and banned; their metrics are put beside the others."""
        import numpy as np

        from affectlens.interventions.tables import PLAIN, summarise

        rows: list[dict[str, Any]] = []
        for kind in ("sample", "knockout"):
            if kind in joined:
                kinds = np.concatenate([[PLAIN], self.material.kinds])
                table, found = summarise(self.concepts, kinds, joined[kind], self.generator(f"finish {kind}"))
                rows += [row | {"words_banned": kind == "knockout"} for row in table]
                metrics |= {f"{kind}_{key}": value for key, value in found.items()}
        return rows

    def _scored_words(self) -> dict[str, dict[str, Any]]:
        """What each concept was scored by, for the reader of ``causal.json``."""
        from affectlens.interventions.frames import choose_words, read_lexicon
        from affectlens.model.subject import load_tokenizer

        tokenizer = load_tokenizer(self.setting.model, self.setting.models)
        words = choose_words(tokenizer, self.concepts, read_lexicon(), self.config.words)
        return {
            each.concept: {"words": list(each.words), "whole_words": each.whole, "shared_words": each.shared}
            for each in words
        }

    @classmethod
    def open(cls, folder: Path) -> Causal:
        return Causal(folder)

    @classmethod
    def track(cls, result: Causal, run: Any) -> None:
        for name, rows in (("effects", result.effects), ("readout", result.readout), ("samples", result.samples)):
            if rows:
                run.table(f"causal/{name}", list(rows[0]), [list(row.values()) for row in rows])
        for vector, matrix in result.matrix.items():
            dose = [row for row in result.dose if row["vector"] == vector]
            run.line(
                f"causal/dose_{vector}", list(dose[0]), [list(row.values()) for row in dose],
                x="strength", y="effect", series="concept",
            )  # fmt: skip
            concepts = list(result.verdicts)
            run.heatmap(f"causal/matrix_{vector}", matrix, concepts, concepts)
            rows = [[concept, *row] for concept, row in zip(concepts, matrix, strict=True)]
            run.table(f"causal/matrix_{vector}_values", ["injected", *concepts], rows)
        rows = [
            {"concept": concept, "vector": vector} | _verdict_row(verdict[vector]) | {"words": verdict["words"]}
            for concept, verdict in result.verdicts.items()
            for vector in result.matrix
        ]
        run.table("causal/verdicts", list(rows[0]), [list(row.values()) for row in rows])


def _verdict_row(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was shown of one vector of one concept; necessity stays empty where it could not be tested."""
    inject = facts["inject"]
    tested = facts["ablate"] is not None and facts["evoked"]
    return {
        **{column: inject[column] for column in ("effect", "low", "high", "above_controls", "p_adjusted")},
        "sufficient": facts["sufficient"],
        "specific": facts["specific"],
        "necessary": facts["necessary"] if tested else None,
        "perplexity_ratio": facts["perplexity_ratio"],
    }


def _slices(count: int, width: int) -> list[tuple[int, int]]:
    return [(start, min(count, start + width)) for start in range(0, count, width)]


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One object a line."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def _joined(parts: Sequence[tuple[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by kind of part and name: those of ablation belong to one concept each, the others are slices."""
    import numpy as np

    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for kind, arrays in parts:
        for name, values in arrays.items():
            found.setdefault(kind, {}).setdefault(name, []).append(values)
    return {kind: {name: np.concatenate(each) for name, each in arrays.items()} for kind, arrays in found.items()}
