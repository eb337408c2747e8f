"""The arms of a study: ways to change a model, with their controls, seeds and doses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from affectlens.shaping.config import Kind, ShapeConfig

TRAINED: tuple[Kind, ...] = ("filler", "expression", "words", "calm_dpo", "calm_sft", "set_point")
RULES: tuple[Kind, ...] = ("add", "subtract", "cap", "alarm")
"""What is done while the model answers; its weights stay."""


@dataclass(frozen=True)
class Arm:
    """One way to change the model.

    Attributes:
        kind: what is done; ``base`` is nothing.
        seed: of the training, or of a twin's random direction.
        dose: of a set-point, in standard deviations of benign tokens; 0 of the others.
        layers: at which the set-point or the rule works; none of the others.
        twin: whether it is a control: the same size along a random direction, of ``alarm`` at random tokens.
    """

    kind: Kind
    seed: int = 0
    dose: float = 0.0
    layers: tuple[int, ...] = ()
    twin: bool = False

    @property
    def trained(self) -> bool:
        """Whether weights are learnt."""
        return self.kind in TRAINED

    @property
    def group(self) -> str:
        """What all its seeds are called, such as ``set_point-l1-d2`` or ``cap-random``."""
        return self._stem(twin=self.twin)

    @property
    def name(self) -> str:
        """File-safe and unique, such as ``set_point-l1-d2-s0``, ``cap`` or ``cap-random-s1``."""
        return f"{self.group}-s{self.seed}" if self.trained or self.twin else self.group

    @property
    def of(self) -> str:
        """The group of the arm that it is the twin of; empty where it is none."""
        return self._stem(twin=False) if self.twin else ""

    def _stem(self, *, twin: bool) -> str:
        place = f"-l{len(self.layers)}-d{self.dose:g}" if self.kind == "set_point" else ""
        return self.kind + place + "-random" * twin


def arms(config: ShapeConfig, layer: int) -> tuple[Arm, ...]:
    """All arms in the order of the table: base, trained ones seed by seed, set-points by layers and dose, rules.

    A twin follows what it is the twin of.

    Args:
        config: which arms, seeds and doses.
        layer: the study's.
    """
    return tuple(_arms(config, layer))


def _arms(config: ShapeConfig, layer: int) -> Iterator[Arm]:
    yield Arm("base")
    seeds = range(config.seeds)
    for kind in TRAINED:
        if kind in config.arms and kind != "set_point":
            yield from (Arm(kind, seed) for seed in seeds)
    twins = (False, True) if config.twins else (False,)
    if "set_point" in config.arms:
        for layers in ((layer,), *([config.layers] if config.layers else [])):
            for dose in config.doses:
                yield from (Arm("set_point", seed, dose, layers, twin) for twin in twins for seed in seeds)
    for kind in RULES:
        if kind in config.arms:
            yield Arm(kind, layers=(layer,))
            if config.twins:
                yield from (Arm(kind, seed, layers=(layer,), twin=True) for seed in seeds)
