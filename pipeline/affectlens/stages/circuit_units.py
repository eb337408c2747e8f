"""The scores of all heads, neurons and features, context by context: what they write, and what they make the model say.

Off unless `circuits.run` is set. Two questions are kept apart: which units write the reading at the study's layer
(`writers-*` parts), and which make the model say the right word (`effect-*` parts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.circuits import scores
from affectlens.circuits.config import CircuitsConfig
from affectlens.circuits.design import Cell, Rotation, chosen, context_ids, rotations, stories_of
from affectlens.circuits.scores import ARRAYS, CARD, TABLES, Scores
from affectlens.corpus.documents import CorpusConfig, Document, concepts, select
from affectlens.corpus.texts import EMBEDDED
from affectlens.files import write_json
from affectlens.settings import Resources
from affectlens.stage import NOTHING, Identity, Metrics, Part, Progress, Stage, StudySettings, paces, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.sae import SaeStage

if TYPE_CHECKING:
    from affectlens.circuits.bench import Bench

RESULT = "part.safetensors"


def contexts(documents: Sequence[Document], config: CircuitsConfig) -> tuple[Rotation, ...]:
    """The divisions of a study's topics; none where circuits are not looked for."""
    if not config.run:
        return ()
    cells = stories_of(documents)
    return rotations(sorted({cell.topic for cell in cells}), sorted({cell.concept for cell in cells}), config)


def read_documents(config: CorpusConfig) -> list[Document]:
    """The stories of a study, before its corpus is there."""
    return [document for document in select(config) if document.emotion]


@register
class CircuitUnitsStage(Stage[CircuitsConfig, Scores]):
    """Score heads, neurons and features."""

    name = "circuit_units"
    version = 3
    section = "circuits"
    fields = (
        "run", "story_tokens", "frame", "words", "rotations", "select_contexts", "ig_steps", "feature_contexts",
        "contexts_per_part", "tokens_per_batch", "permutations",
    )  # fmt: skip
    config_class = CircuitsConfig
    needs = ("corpus", "activations", "sae", "directions")
    reads_model = True
    seeded = True
    keeps_parts = True
    measured_needs = ("directions",)
    resources = Resources(parts_per_job=4)
    unit = "contexts"
    switch = "circuits.run"
    pace = paces(writers=0.55, effect=1.3)
    headline = (("heads_significant", "heads whose ablation changes the contrast of the words, corrected"),)
    tables = TABLES

    @classmethod
    def check(cls, study: StudySettings) -> None:
        if study.circuits.run:
            contexts(read_documents(study.corpus), study.circuits)

    @classmethod
    def check_pending(cls, study: StudySettings, tokenizer: Callable[[], Any]) -> None:
        if not study.circuits.run:
            return
        from affectlens.interventions.frames import read_lexicon
        from affectlens.model.tokens import encode
        from affectlens.model.words import choose_words

        config, known = study.circuits, tokenizer()
        choose_words(known, concepts(study.corpus), read_lexicon(), config.words)
        for text in stories_of(read_documents(study.corpus)).values():
            context_ids(lambda piece: encode(known, piece), text, config.frame, config.story_tokens)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        return {"lexicon.json": EMBEDDED / "lexicon.json"} if study.circuits.run else {}

    @cached_property
    def turns(self) -> tuple[Rotation, ...]:
        """The divisions of the topics."""
        return contexts([document for document in self.outlook.documents if document.emotion], self.config)

    def scored(self) -> tuple[Cell, ...]:
        """Every context that selects in any rotation, topic by topic."""
        return tuple(sorted({cell for turn in self.turns for cell in turn.select}))

    def parts(self) -> Sequence[Part]:
        cells, width = self.scored(), self.config.contexts_per_part
        topics = sorted({cell.topic for cell in cells})
        slices = [range(start, min(len(cells), start + width)) for start in range(0, len(cells), width)]
        effects = [
            Part(f"effect-{at:04d}", size=10.0 * len(each), payload={"start": each.start, "end": each.stop})
            for at, each in enumerate(slices)
        ]
        writers = [
            Part(f"writers-{at:02d}", size=len(self.outlook.emotions), payload={"topic": topic})
            for at, topic in enumerate(topics)
        ]
        return [*writers, *effects] or [Part(NOTHING)]

    @cached_property
    def bench(self) -> Bench:
        """The model with the study's contexts, in float32: in half precision, sums miss the reading and small effects
        drown in rounding."""
        from affectlens.circuits.anatomy import Anatomy
        from affectlens.circuits.bench import Bench
        from affectlens.interventions.frames import read_lexicon
        from affectlens.model.subject import Subject
        from affectlens.model.words import choose_words

        model = self.setting.model.model_copy(update={"dtype": "float32"})
        subject = Subject.load(model, device=self.setting.device, models=self.setting.models)
        corpus = self.need(CorpusStage)
        words = choose_words(subject.tokenizer, corpus.emotions, read_lexicon(), self.config.words)
        anatomy = Anatomy(subject, self.config.tokens_per_batch)
        return Bench(anatomy, words, stories_of(corpus.documents), self.config.frame, self.config.story_tokens)

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        if part.name == NOTHING:
            progress(part.size)
            return
        if part.name.startswith("writers"):
            from affectlens.circuits.writers import topic_writers

            layer, directions = self.setting.model.layer, self.need(DirectionsStage)
            found = topic_writers(
                self.bench,
                part.payload["topic"],
                directions.unit(layer),
                layer,
                directions.strength_unit(self.need(ActivationsStage), layer),
                self.config.ig_steps,
            )
            arrays = {name: np.asarray(values) for name, values in vars(found).items()}
            save_file(arrays | {"d_mlp": np.array(self.bench.anatomy.d_mlp)}, out / RESULT)
            progress(part.size)
            return
        rows = []
        for cell in self.scored()[part.payload["start"] : part.payload["end"]]:
            rows.append(self._effects(cell))
            progress(10.0)
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        save_file(arrays, out / RESULT)

    def _effects(self, cell: Cell) -> dict[str, Any]:
        """Everything that is measured of one context."""
        import numpy as np

        from affectlens.circuits.anatomy import path
        from affectlens.circuits.bench import activation_sizes, exact_effects
        from affectlens.circuits.features import coded, feature_effects

        bench, layer = self.bench, self.setting.model.layer
        taken, own = bench.take(cell), bench.concepts.index(cell.concept)
        (gradient,) = bench.anatomy.gradients(
            taken.tokens,
            path(taken.recorded, taken.reference, self.config.ig_steps),
            lambda logits, read: [bench.contrast(logits)[:, own]],
            read=[layer],
        )
        found = {
            "full": taken.full,
            "empty": taken.empty,
            "effect": exact_effects(bench, taken),
            "gradient": gradient.of_heads(taken.recorded, taken.reference).reshape(-1).cpu().numpy(),
            "activation": activation_sizes(bench, taken),
        }
        sae = self.need(SaeStage)
        features, error = np.zeros(sae.d_sae, np.float32), np.nan
        if cell in chosen(self.scored(), self.config.feature_contexts) and self.config.feature_contexts:
            along = gradient.residual[layer].cpu().numpy()
            residual = taken.recorded.residual[layer + 1].cpu().numpy()
            whole = float(((residual - taken.reference.residual[layer + 1].cpu().numpy()) * along).sum())
            reference = self._topic_codes(cell.topic)
            features, error = feature_effects(coded(sae, residual), reference, sae.decoder, along, whole)
        return found | {"features": features, "error": np.array(error, np.float32)}

    @cached_property
    def _codes(self) -> dict[str, Any]:
        return {}

    def _topic_codes(self, topic: str) -> Any:
        """Reference values of the SAE's features, those of the last topic remembered."""
        from affectlens.circuits.features import topic_codes

        if topic not in self._codes:
            self._codes.clear()
            self._codes[topic] = topic_codes(self.bench, self.need(SaeStage), topic, self.setting.model.layer)
        return self._codes[topic]

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        import numpy as np
        from safetensors.numpy import load_file, save_file

        from affectlens.circuits.bench import require_empty

        if NOTHING in parts:
            for table in self.tables:
                results.write(out, table, [])
            return {}
        joined: dict[str, dict[str, Any]] = {}
        for kind, join in (("writers", np.stack), ("effect", np.concatenate)):
            loaded = [load_file(path / RESULT) for name, path in parts.items() if name.startswith(kind)]
            joined[kind] = {name: join([each[name] for each in loaded]) for name in loaded[0]}
        effect, cells = joined["effect"], self.scored()
        slack = require_empty([(cell.topic, empty) for cell, empty in zip(cells, effect["empty"], strict=True)])
        written, depth = joined["writers"], self.setting.model.layer + 1
        layers, heads = len(effect["effect"][0]) // written["heads"].shape[3], written["heads"].shape[3]
        card = {
            "concepts": list(self.need(CorpusStage).emotions),
            "cells": [[cell.topic, cell.concept] for cell in cells],
            "layers": layers,
            "heads": heads,
            "topics": sorted({cell.topic for cell in cells}),
            "sum_residue": float(written["residue"].max()),
        }
        write_json(out / CARD, card)
        measured = np.isfinite(effect["error"])
        save_file(
            {name: values for name, values in effect.items() if name not in ("features", "error")}
            | {f"writers.{name}": values for name, values in written.items()},
            out / ARRAYS,
        )
        opened, flips = Scores(out), self.config.permutations
        head_rows = scores.head_rows(opened, flips, self.generator("heads"))
        concept_rows = scores.concept_head_rows(opened, flips, self.generator("concept heads"))
        feature_rows = []
        if measured.any():
            some = [cell for cell, known in zip(cells, measured, strict=True) if known]
            feature_rows = scores.feature_rows(
                effect["features"][measured], effect["error"][measured], some, flips, self.generator("features")
            )
        writer_rows = scores.writer_rows(card["concepts"], written, depth, int(written["d_mlp"][0]))
        for table, rows in zip(self.tables, (writer_rows, head_rows, concept_rows, feature_rows), strict=True):
            results.write(out, table, rows)
        own = np.array([card["concepts"].index(cell.concept) for cell in cells])
        contrast = np.take_along_axis(effect["full"] - effect["empty"], own[:, None], axis=1)[:, 0]
        exact, screen = opened.effects.mean(axis=0), effect["gradient"].mean(axis=0)
        return {
            "contexts": float(len(cells)),
            "contrast": float(contrast.mean()),
            "empty_contrast_residue": slack,
            "sum_residue": card["sum_residue"],
            "heads_significant": float(sum(row["p_adjusted"] <= 0.05 for row in head_rows)),
            "gradient_correlation": float(np.corrcoef(exact, screen)[0, 1]) if exact.std() and screen.std() else 0.0,
        }

    @classmethod
    def open(cls, folder: Path) -> Scores:
        return Scores(folder)
