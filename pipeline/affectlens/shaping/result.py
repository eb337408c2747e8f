"""The arms of a study, trained and calibrated: what the stage ``shape_arms`` leaves, and its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.config import nearest
from affectlens.corpus.texts import read_json
from affectlens.errors import UserError
from affectlens.files import write_json
from affectlens.results.tables import Line, Table, integer, number, text
from affectlens.shaping.arms import RULES, Arm
from affectlens.shaping.config import ARM_FIELDS, ShapeConfig

if TYPE_CHECKING:
    from affectlens.model.config import ModelConfig
    from affectlens.model.subject import Subject
    from affectlens.shaping.calibration import Calibration
    from affectlens.shaping.changed import ChangedModel

ARMS, ADAPTERS = "arms.json", "arms"

TRAINING = Table(
    "training",
    "One recorded update of one trained arm.",
    (
        text("arm", "with its seed"),
        integer("step", "update"),
        integer("tokens", "that went through the model before it"),
        number("loss", "of the chats of the update", "loss"),
        number("margin", "of DPO: by how much the preferred answer's implied reward is larger", "reward"),
        number("shift", "of a set-point: of the projection at answers", "sd"),
    ),
    key=("arm", "step"),
    charts=(Line("loss", "step", "loss", "arm"),),
)
HELD_OUT = Table(
    "held_out",
    "One figure of one trained arm on chats that it does not learn, before and after.",
    (
        text("arm", "with its seed"),
        text("kind", "of arm"),
        text("figure", "nats a token of the answers; margin and share preferred of DPO; shift and spread by layer, sd"),
        number("before", "with the adapter switched off"),
        number("after", "trained"),
        number("aim", "of a shift: its dose"),
        integer("tokens", "that training took"),
    ),
    key=("arm", "figure"),
)
TABLES = (TRAINING, HELD_OUT)


class ShapeArms:
    """The finished arms.

    Attributes:
        folder: the result folder: ``arms.json``, ``arms/<name>`` with adapters in peft's format, and the calibration.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        values = read_json(folder / ARMS)
        self.config = ShapeConfig.model_validate(values["config"])
        self.arms = tuple(Arm(**{**row, "layers": tuple(row["layers"])}) for row in values["arms"])

    def named(self, name: str) -> Arm:
        """An arm by its name.

        Raises:
            UserError: there is none; names the nearest.
        """
        found = {arm.name: arm for arm in self.arms}
        if name not in found:
            raise UserError(f"`{name}`: the study has no such arm; {nearest(name, list(found))}")
        return found[name]

    def adapter(self, arm: Arm) -> Path | None:
        """The folder of a trained arm's adapter; None for others."""
        return self.folder / ADAPTERS / arm.name if arm.trained else None

    @cached_property
    def calibration(self) -> Calibration:
        """Of the rules."""
        from affectlens.shaping.calibration import Calibration

        return Calibration.read(self.folder)

    def subject(self, arm: Arm, model: ModelConfig, *, device: str, models: Path) -> Subject:
        """The study's model with the weights of an arm.

        Raises:
            UserError: it cannot be loaded.
        """
        from affectlens.model.subject import Subject

        return Subject.load(model, device=device, models=models, adapter=self.adapter(arm))

    def changed(
        self, arm: Arm, model: ModelConfig, *, device: str, models: Path, subject: Subject | None = None
    ) -> ChangedModel:
        """An arm, ready to be asked.

        Args:
            arm: one of the study's.
            model: the study's model.
            device: where it computes.
            models: folder for converted models.
            subject: the unchanged model, loaded already; base and rules take it.
        """
        from affectlens.shaping.changed import ChangedModel

        if subject is None or arm.trained:
            subject = self.subject(arm, model, device=device, models=models)
        return ChangedModel(subject, self.calibration.rule(arm, self.config) if arm.kind in RULES else None)


def write_arms(folder: Path, arms: tuple[Arm, ...], config: ShapeConfig) -> None:
    """As :class:`ShapeArms` reads them."""
    rows = [asdict(arm) | {"layers": list(arm.layers)} for arm in arms]
    write_json(folder / ARMS, {"arms": rows, "config": config.model_dump(mode="json", include=set(ARM_FIELDS))})


def training_rows(arm: Arm, summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of ``training``."""
    for row in summary["curve"]:
        yield {
            "arm": arm.name, "step": int(row["step"]), "tokens": int(row["tokens"]), "loss": row["loss"],
            "margin": row.get("margin"), "shift": row.get("shift"),
        }  # fmt: skip


def held_out_rows(arm: Arm, summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of ``held_out``."""
    for figure, after in summary["after"].items():
        yield {
            "arm": arm.name, "kind": arm.kind, "figure": figure, "before": summary["before"][figure], "after": after,
            "aim": arm.dose if figure.startswith("shift_") else None, "tokens": summary["tokens"],
        }  # fmt: skip
