"""The arms of shaping: adapters trained on their texts, and what rules at inference are calibrated on.

A part trains one arm under one seed. One more calibrates the rules on the unchanged model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.config import nearest
from affectlens.corpus.documents import concepts
from affectlens.model.config import ADAPTER, shape
from affectlens.shaping import result
from affectlens.shaping.arms import RULES, TRAINED, Arm, arms
from affectlens.shaping.config import ARM_FIELDS, ShapeConfig
from affectlens.shaping.result import ShapeArms
from affectlens.shaping.texts import FILES, folder_of, read_texts
from affectlens.stage import NOTHING, Folder, Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.directions import DirectionsStage

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from affectlens.shaping.training import Axis

RULE_PART = "rules"
"""The part that calibrates."""
WITHOUT = ("run", "arms", "seeds", "twins", "doses", "layers", "texts")
"""Keys that say which arms there are: a part is an arm, and reads none of them."""
RULE_KEYS = ("calming", "distress", "percentile", "target", "window", "benign_samples", "benign_tokens", "seeds")
AXIS_KEYS = ("calming", "distress", "set_point_learning_rate")
TRAINING_KEYS = ("steps", "batch", "rank", "length")


@register
class ShapeArmsStage(Stage[ShapeConfig, ShapeArms]):
    """Train every arm of shaping, and calibrate those that are rules."""

    name = "shape_arms"
    section = "shape"
    fields = ARM_FIELDS
    config_class = ShapeConfig
    needs = ("corpus", "activations", "directions")
    reads_model = True
    seeded = True
    keeps_parts = True
    checkpoint = "checkpoint"
    unit = "updates"
    switch = "shape.run"
    tables = result.TABLES

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: ShapeConfig = study.shape
        if not config.run:
            return
        known = concepts(study.corpus)
        for key in ("calming", "distress"):
            name = getattr(config, key)
            if name not in known:
                raise ValueError(f"`shape.{key}: {name}`: the study has no such concept; {nearest(name, known)}")
        kept = sorted({*study.activations.pooled_layers, study.model.layer})
        for layer in config.layers:
            if layer not in kept:
                raise ValueError(
                    f"`shape.layers`: layer {layer} is not kept; the study keeps "
                    f"{', '.join(map(str, kept))}, and `activations.pooled_layers` adds others"
                )
        benign = _benign_answers(config)
        if "alarm" in config.arms and config.target * (benign + 1) < 1:
            raise ValueError(
                f"`shape.target: {config.target:g}`: {benign} benign answers cannot hold it; give more "
                f"`benign_samples`, or a target of {1 / (benign + 1):.4f} or above"
            )

    @classmethod
    def check_chosen(cls, study: StudySettings) -> None:
        config: ShapeConfig = study.shape
        if not config.run or not set(config.arms) & set(TRAINED):
            return
        import importlib.util

        if importlib.util.find_spec("peft") is None:
            raise ValueError(
                "`shape.arms`: trained arms need peft, which is not installed; install it with "
                "`pip install 'affectlens[shape]'`, or name none of them"
            )

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        config: ShapeConfig = study.shape
        if not config.run:
            return {}
        folder = folder_of(config.texts)
        return {"texts": Folder(folder, tuple(folder / name for name in FILES))}

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Of the study."""
        return arms(self.config, self.setting.model.layer)

    def parts(self) -> Sequence[Part]:
        if not self.config.run:
            return [Part(NOTHING)]
        trained = [arm for arm in self.arms if arm.trained]
        parts = [Part(arm.name, self.config.steps, {"arm": asdict(arm)}) for arm in trained]
        if any(arm.kind in RULES for arm in self.arms):
            # As long as some updates take: every benign prompt is answered, and every stressful one.
            parts.append(Part(RULE_PART, max(1, self.config.steps // 2)))
        return parts

    def part_reads(self, part: Part) -> Mapping[str, Any] | None:
        if part.name == NOTHING:
            return {}
        everything = self.config.model_dump(mode="json")
        if part.name == RULE_PART:
            keys: Sequence[str] = RULE_KEYS
            twins = self.config.twins
            needs = ["activations", "directions"]
        else:
            kind = part.payload["arm"]["kind"]
            twins, needs = False, ["directions"] if kind == "set_point" else []
            own = {"calm_dpo": ("dpo_learning_rate", "beta"), "set_point": AXIS_KEYS}
            keys = (*TRAINING_KEYS, *own.get(kind, ("learning_rate",)))
        return {
            "arm": part.payload.get("arm"),
            "config": {key: everything[key] for key in keys},
            "twins": twins,
            "needs": needs,
            "data": ["texts"],
        }

    def disk_bytes(self, parts: Sequence[Part]) -> int:
        found = shape(self.setting.model)
        if found is None:
            return 0
        # Seven maps a block, of which two or three are as wide as the MLP: about forty widths of inputs and outputs.
        adapter = 40 * found.width * found.layers * self.config.rank * 4
        return 4 * adapter * sum(part.name not in (NOTHING, RULE_PART) for part in parts)

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        if part.name == NOTHING:
            progress(part.size)
            return
        if part.name == RULE_PART:
            self._calibrate(out)
            progress(part.size)
            return
        from affectlens.shaping.training import train

        values = part.payload["arm"]
        arm = Arm(**{**values, "layers": tuple(values["layers"])})
        train(
            arm, self.setting.model, self.config, self._texts, out, models=self.setting.models,
            device=self.setting.device, axis=self._axis(arm) if arm.kind == "set_point" else None, progress=progress,
        )  # fmt: skip

    @cached_property
    def _texts(self) -> Any:
        return read_texts(self.config.texts)

    def _units(self, layer: int) -> Float[np.ndarray, "concepts d_model"]:
        return self.need(DirectionsStage).unit(layer)

    def _random(self, layer: int, seed: int) -> Float[np.ndarray, "d_model"]:
        """A twin's direction: the same for all arms of a seed."""
        from affectlens.shaping.vectors import random_axis

        return random_axis(self._units(layer), self.generator(f"twin-{layer}-{seed}"))

    def _axis(self, arm: Arm) -> Axis:
        from affectlens.shaping.training import Axis
        from affectlens.shaping.vectors import contrast

        config, names = self.config, self.need(DirectionsStage).concepts
        real = {layer: contrast(self._units(layer), names, config.calming, config.distress) for layer in arm.layers}
        along = {layer: self._random(layer, arm.seed) for layer in arm.layers} if arm.twin else real
        return Axis(along, real)

    def _calibrate(self, out: Path) -> None:
        import numpy as np

        from affectlens.model.subject import Subject
        from affectlens.shaping.calibration import calibrate
        from affectlens.shaping.changed import ChangedModel

        config, layer, directions = self.config, self.setting.model.layer, self.need(DirectionsStage)
        units = self._units(layer).astype(np.float32)
        towards, away = (units[directions.concepts.index(name)] for name in (config.calming, config.distress))
        subject = Subject.load(self.setting.model, device=self.setting.device, models=self.setting.models)
        learnt, _ = self._texts

        def chat(prompt: str) -> list[dict[str, str]]:
            return [{"role": "user", "content": prompt}]

        found = calibrate(
            ChangedModel(subject),
            [(chat(row.prompt), row.answer) for row in learnt.filler],
            [chat(row.prompt) for row in learnt.stress],
            (towards, away),
            {seed: self._random(layer, seed) for seed in range(config.seeds)} if config.twins else {},
            directions.strength_unit(self.need(ActivationsStage), layer),
            layer,
            config,
            self.generator(RULE_PART),
        )
        found.write(out)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        import shutil

        from affectlens.model.adapters import WEIGHTS
        from affectlens.shaping.calibration import CARD, VECTORS
        from affectlens.shaping.training import SUMMARY

        present = self.arms if self.config.run else ()
        rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in self.tables}
        metrics: Metrics = {}
        result.write_arms(out, present, self.config)
        for arm in present:
            if not arm.trained:
                continue
            summary = json.loads((parts[arm.name] / SUMMARY).read_text(encoding="utf-8"))
            rows[result.TRAINING] += result.training_rows(arm, summary)
            rows[result.HELD_OUT] += result.held_out_rows(arm, summary)
            metrics[f"{arm.name}.loss"] = summary["curve"][-1]["loss"]
            target = out / result.ADAPTERS / arm.name
            target.mkdir(parents=True)
            for name in (WEIGHTS, ADAPTER):
                shutil.copyfile(parts[arm.name] / name, target / name)
        if RULE_PART in parts:
            for name in (CARD, VECTORS):
                shutil.copyfile(parts[RULE_PART] / name, out / name)
        for table, found in rows.items():
            results.write(out, table, found)
        return metrics

    @classmethod
    def open(cls, folder: Path) -> ShapeArms:
        return ShapeArms(folder)


def _benign_answers(config: ShapeConfig) -> int:
    """How many answers the threshold is calibrated on."""
    learnt, _ = read_texts(config.texts)
    return len(learnt.filler) * config.benign_samples
