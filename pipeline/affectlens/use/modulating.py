"""A study's circuits as something to steer by: ``circuit:desperate`` beside directions and features."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from affectlens.circuits.units import UNITS, Push, Units, edits, read_units, scaled, total_norm
from affectlens.config import nearest
from affectlens.errors import UserError
from affectlens.model.steering import Edit
from affectlens.use.opened import Opened

CIRCUIT = "circuit:"
"""Before the emotion's name."""
SOURCES = ("circuits", "modulation")
"""Stages whose result may hold units, the first that does counts."""


class Circuits:
    """The circuits of a study."""

    def __init__(self, study: Opened) -> None:
        self._study = study
        self._pushes: dict[str, Push] = {}
        """At a total norm of 1, by name: a server asks for the same again and again."""

    @cached_property
    def units(self) -> Units | None:
        """Differences and circuits; None where the study has none."""
        found = [self._study.folders[stage] / UNITS for stage in SOURCES if stage in self._study.folders]
        path = next((each for each in found if each.is_file()), None)
        return None if path is None else read_units(path)

    @property
    def names(self) -> list[str]:
        """As they are called."""
        return [f"{CIRCUIT}{concept}" for concept in sorted(self.units.circuits)] if self.units else []

    def push(self, name: str, amount: float, generator: np.random.Generator | None = None) -> Push:
        """What is added, with a total norm of so many mean norms of the residual stream; taken away where negative.

        Args:
            name: with its prefix.
            amount: the total norm.
            generator: draws random units of the same layers and kinds in place of the circuit's, for a control.

        Raises:
            UserError: the study has no such circuit.
        """
        if self.units is None:
            raise UserError(
                f"`{name}`: this study has no circuits; set `circuits.run: true` and run the stage `circuits`, or "
                "`modulation.run: true` and the stage `modulation`"
            )
        if name not in self.names:
            raise UserError(f"the study has no circuit called `{name}`; {nearest(name, self.names)}")
        if generator is None and name in self._pushes:
            return scaled(self._pushes[name], amount)
        concept = name.removeprefix(CIRCUIT)
        members = self.units.circuit(concept)
        if generator is not None:
            members = self.units.matched(members, generator)
        push = self.units.push(members, concept)
        length = total_norm(push, self._model, self.units.norms)
        if not length:
            raise UserError(f"`{name}`: its units write nothing in texts of the emotion; steer by its direction")
        push = scaled(push, 1 / length)
        if generator is None:
            self._pushes[name] = push
        return scaled(push, amount)

    @property
    def _model(self) -> Any:
        """Whichever loaded model there is; its weights say how long a push is."""
        return self._study.decoder if "decoder" in self._study.__dict__ else self._study.subject

    def edits(self, rows: list[Push]) -> list[Edit]:
        """What is done to a batch whose rows get these pushes, at every position behind the begin token."""
        return edits(rows, self._study.lead, self._study.device)


def joined(pushes: list[Push]) -> Push:
    """Their sum."""
    total: dict[Any, np.ndarray] = {}
    for push in pushes:
        for where, values in push.items():
            total[where] = total.get(where, np.zeros_like(values)) + values
    return total
