"""The size of every rotation's circuit, chosen on its second group of topics, once for all that try the circuit.

Off unless `circuits.run` is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from affectlens import results
from affectlens.circuits.config import CircuitsConfig
from affectlens.circuits.design import Cell, Rotation
from affectlens.circuits.tables import SIZES
from affectlens.corpus.texts import EMBEDDED
from affectlens.settings import Resources
from affectlens.stage import NOTHING, Identity, Metrics, Part, Progress, Stage, StudySettings, paces, register
from affectlens.stages.circuit_units import RESULT, CircuitUnitsStage, contexts
from affectlens.stages.corpus import CorpusStage

if TYPE_CHECKING:
    from affectlens.circuits.bench import Bench
    from affectlens.circuits.trials import Selected, Size


@dataclass(frozen=True)
class Sizes:
    """The finished choices; none where the study looks for no circuits."""

    folder: Path

    def size(self, turn: int) -> Size:
        """Of one rotation."""
        import numpy as np
        from safetensors.numpy import load_file

        from affectlens.circuits.trials import Size

        found = load_file(self.folder / RESULT)
        ranking, place = (int(each) for each in found["chosen"][turn])
        return Size(ranking, place, np.asarray(found["circuit"][turn], dtype=bool))


@register
class CircuitSizesStage(Stage[CircuitsConfig, Sizes]):
    """Choose how large circuits are."""

    name = "circuit_sizes"
    version = 1
    section = "circuits"
    fields = (
        "run", "story_tokens", "frame", "words", "rotations", "select_contexts", "size_contexts", "sizes",
        "contexts_per_part", "tokens_per_batch",
    )  # fmt: skip
    config_class = CircuitsConfig
    needs = ("corpus", "circuit_units")
    reads_model = True
    seeded = True
    keeps_parts = True
    measured_needs = ("circuit_units",)
    resources = Resources(parts_per_job=4)
    unit = "contexts"
    switch = "circuits.run"
    pace = paces(size=1.9)
    headline = (("heads", "in a circuit, mean over the divisions of the topics"),)
    tables = (SIZES,)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        return {"lexicon.json": EMBEDDED / "lexicon.json"} if study.circuits.run else {}

    @cached_property
    def turns(self) -> tuple[Rotation, ...]:
        """The divisions of the topics."""
        return contexts([document for document in self.outlook.documents if document.emotion], self.config)

    def slices(self, turn: Rotation) -> list[tuple[Cell, ...]]:
        """The contexts of each part."""
        width = self.config.contexts_per_part
        return [turn.size[start : start + width] for start in range(0, len(turn.size), width)]

    def parts(self) -> Sequence[Part]:
        found = [
            Part(f"size-{turn.index}-{at:03d}", size=len(cells), payload={"rotation": turn.index, "slice": at})
            for turn in self.turns
            for at, cells in enumerate(self.slices(turn))
        ]
        return found or [Part(NOTHING)]

    @cached_property
    def bench(self) -> Bench:
        """The model with the study's contexts."""
        return CircuitUnitsStage(self.config, self.setting, {"corpus": self.need(CorpusStage)}).bench

    def selected(self, turn: Rotation) -> Selected:
        """What a rotation's selection topics choose."""
        from affectlens.circuits import trials

        return trials.select(self.need(CircuitUnitsStage), turn.select)

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        from affectlens.circuits import trials

        if part.name == NOTHING:
            progress(part.size)
            return
        turn = self.turns[part.payload["rotation"]]
        masks, rows = trials.ranked_circuits(self.selected(turn), self.config), []
        for cell in self.slices(turn)[part.payload["slice"]]:
            rows.append(trials.sized(self.bench, masks, cell))
            progress(1.0)
        kept, whole = (np.array(each, np.float32) for each in zip(*rows, strict=True))
        save_file({"kept": kept, "whole": whole}, out / RESULT)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        import numpy as np
        from safetensors.numpy import load_file, save_file

        from affectlens.circuits import trials

        rows, chosen, circuits = [], [], []
        for turn in self.turns:
            loaded = [
                load_file(path / RESULT) for name, path in parts.items() if name.startswith(f"size-{turn.index}-")
            ]
            kept, whole = (np.concatenate([each[name] for each in loaded]) for name in ("kept", "whole"))
            masks = trials.ranked_circuits(self.selected(turn), self.config)
            size = trials.choose(masks, kept, whole, self.generator(f"size {turn.index}"))
            rows += trials.size_rows(turn.index, self.config.sizes, masks, kept, whole, size)
            chosen.append((size.ranking, size.place))
            circuits.append(size.circuit)
        results.write(out, SIZES, rows)
        if not circuits:
            return {}
        save_file({"chosen": np.array(chosen), "circuit": np.stack(circuits).astype(np.uint8)}, out / RESULT)
        return {"heads": float(np.mean([each.sum() for each in circuits]))}

    @classmethod
    def open(cls, folder: Path) -> Sizes:
        return Sizes(folder)
