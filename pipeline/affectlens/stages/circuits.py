"""Circuits of heads: chosen on some topics, sized on others, and tried on a third group, in turn.

Off unless `circuits.run` is set. The circuit is one of attention heads, with MLPs whole; neurons have a curve of their
own inside it. Scores are those of `circuit_units`, sizes those of `circuit_sizes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.circuits import tables
from affectlens.circuits.config import CircuitsConfig
from affectlens.circuits.design import Cell, Rotation, chosen
from affectlens.corpus.documents import EvaluateConfig, writer_documents
from affectlens.corpus.texts import EMBEDDED
from affectlens.files import write_json
from affectlens.settings import Resources
from affectlens.stage import NOTHING, Identity, Metrics, Part, Progress, Stage, StudySettings, paces, register
from affectlens.stages.circuit_sizes import CircuitSizesStage
from affectlens.stages.circuit_units import RESULT, CircuitUnitsStage, contexts
from affectlens.stages.corpus import CorpusStage

if TYPE_CHECKING:
    import numpy as np

    from affectlens.circuits.bench import Bench
    from affectlens.circuits.judging import Judge
    from affectlens.circuits.trials import Plan
    from affectlens.stages.circuit_sizes import Sizes

UNITS, GRAPH, PUBLISHED = "units.safetensors", "graph.json", "published_units.json"
"""Differences of all units with every concept's circuit, as `steer` reads them; the pooled circuit as a graph; circuits
of the published choices."""


@dataclass(frozen=True)
class Circuits:
    """The finished circuits; without files where the study looks for none."""

    folder: Path

    @property
    def units(self) -> Path:
        """What :func:`affectlens.circuits.units.read_units` reads."""
        return self.folder / UNITS

    @property
    def published(self) -> Path:
        """What :func:`affectlens.circuits.units.read_members` reads; missing unless the profile was run."""
        return self.folder / PUBLISHED

    @property
    def graph(self) -> Path:
        """The pooled circuit in the JSON of attribution graphs."""
        return self.folder / GRAPH


@register
class CircuitsStage(Stage[CircuitsConfig, Circuits]):
    """Find circuits and try them."""

    name = "circuits"
    version = 5
    section = "circuits"
    config_class = CircuitsConfig
    needs = ("corpus", "circuit_units", "circuit_sizes")
    reads_model = True
    seeded = True
    keeps_parts = True
    measured_needs = ("circuit_units", "circuit_sizes")
    resources = Resources(parts_per_job=4)
    unit = "contexts"
    switch = "circuits.run"
    pace = paces(differences=2.4, published=1.7, transfer=1.3, report=0.8, other=1.0)
    headline = (
        ("ratio", "of the words' contrast that the head circuit alone gives, on topics that chose nothing"),
        ("left", "of the contrast without the circuit"),
        ("random_ratio", "largest ratio of a random circuit"),
        ("share_specific", "concepts whose own circuit hurts their words most, corrected"),
    )
    tables = tables.TABLES

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: CircuitsConfig = study.circuits
        if config.run and config.transfer_stories and not _writer(config).path.is_file():
            raise ValueError(
                f"`circuits.transfer_stories: {config.transfer_stories}`: there is no such file; give a JSONL file of "
                "stories, an embedded writer, or leave it empty"
            )

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        if not study.circuits.run:
            return {}
        found: dict[str, Identity] = {name: EMBEDDED / name for name in ("lexicon.json", "frames.json", "pairs.jsonl")}
        return found | ({"transfer stories": _writer(study.circuits).path} if study.circuits.transfer_stories else {})

    @cached_property
    def turns(self) -> tuple[Rotation, ...]:
        """The divisions of the topics."""
        return contexts([document for document in self.outlook.documents if document.emotion], self.config)

    def parts(self) -> Sequence[Part]:
        found, width = [], self.config.contexts_per_part
        if self.turns:
            found = [Part("differences", size=10.0), *[Part("published", size=20.0)] * self.config.as_published]
        for turn in self.turns:
            given = {"rotation": turn.index}
            if self.config.neuron_contexts:
                found.append(Part(f"neurons-{turn.index}", size=3.0 * self.config.neuron_contexts, payload=given))
            found.append(Part(f"transfer-{turn.index}", size=30.0, payload=given))
            for number, start in enumerate(range(0, len(turn.report), width)):
                end = min(len(turn.report), start + width)
                part = {"start": start, "end": end}
                found.append(Part(f"report-{turn.index}-{number:03d}", size=5.0 * (end - start), payload=given | part))
        return found or [Part(NOTHING)]

    @cached_property
    def units_stage(self) -> CircuitUnitsStage:
        """The stage before, for its model and contexts."""
        given = {"corpus": self.need(CorpusStage)}
        return CircuitUnitsStage(self.config, self.setting, given)

    @property
    def bench(self) -> Bench:
        """The model with the study's contexts."""
        return self.units_stage.bench

    def plan(self, turn: Rotation) -> Plan:
        """The circuits of a rotation, the same for each of its parts."""
        from affectlens.circuits import trials

        selected, size = trials.select(self.need(CircuitUnitsStage), turn.select), self.sizes.size(turn.index)
        generator = self.generator(f"plan {turn.index}")
        return trials.Plan.of(selected, size, self.config, self.bench.anatomy.heads, generator)

    @property
    def sizes(self) -> Sizes:
        """The circuits that sizes were chosen for."""
        return self.need(CircuitSizesStage)

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        kind = part.name.split("-")[0]
        if part.name == NOTHING:
            progress(part.size)
            return
        if kind == "differences":
            self._differences(out)
        elif kind == "published":
            self._published(out)
        else:
            turn = self.turns[part.payload["rotation"]]
            plan = self.plan(turn)
            arrays: dict[str, np.ndarray]
            if kind == "report":
                arrays = self._report(turn, plan, part, progress)
            elif kind == "neurons":
                arrays = self._neurons(turn, plan)
            else:
                arrays = self._transfer(turn, plan)
            save_file({name: np.array(values, order="C") for name, values in arrays.items()}, out / RESULT)
        if kind != "report":
            progress(part.size)

    def _report(self, turn: Rotation, plan: Plan, part: Part, progress: Progress) -> dict[str, np.ndarray]:
        import numpy as np

        from affectlens.circuits.trials import try_context

        controls = set(chosen(turn.report, self.config.control_contexts))
        thinned = set(chosen(sorted(controls), self.config.minimal_contexts))
        rows = []
        for cell in turn.report[part.payload["start"] : part.payload["end"]]:
            rows.append(
                try_context(
                    self.bench, plan, cell, controls=cell in controls, thinned=cell in thinned, config=self.config
                )
            )
            progress(5.0)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _neurons(self, turn: Rotation, plan: Plan) -> dict[str, np.ndarray]:
        import numpy as np

        from affectlens import stats
        from affectlens.circuits.neurons import Inside, attribute

        found = attribute(
            Inside(self.bench, plan.size.circuit),
            turn.select,
            turn.report,
            self.config,
            self.generator(f"neurons {turn.index}"),
        )
        both, adjusted = np.concatenate([found.order, found.unselected]), stats.benjamini_hochberg(found.p)
        return {
            "neuron": both.astype(np.int64),
            "checked": np.array(len(found.order)),
            "mean": found.mean[both],
            "p": found.p[both],
            "adjusted": adjusted[both],
            "significant": np.array(int((adjusted <= 0.05).sum())),
            "exact": found.exact,
            "screen": found.screen,
            "matched": np.array([found.matched, found.matched_words, found.matchable]),
            "kept": found.kept,
            "whole": found.whole,
            "d_mlp": np.array(self.bench.anatomy.d_mlp),
        }

    def _transfer(self, turn: Rotation, plan: Plan) -> dict[str, np.ndarray]:
        import numpy as np

        from affectlens.circuits import transfer
        from affectlens.corpus.pairs import read_pairs
        from affectlens.interventions.frames import read_frames

        bench, config, size = self.bench, self.config, plan.size
        random = plan.random[:, size.place]
        masks = np.concatenate([size.circuit[None], random])
        found: dict[str, np.ndarray] = {}
        both = np.concatenate([masks, ~masks])
        cells = chosen(turn.report, transfer.TEXTS)
        found["resampled"] = transfer.resampled(bench, cells, both, self.generator(f"resample {turn.index}"))
        if config.transfer_frame:
            other = transfer.another_frame(bench, config.transfer_frame)
            found["frame"] = transfer.elsewhere(other, cells, masks)
        if config.transfer_stories:
            documents = writer_documents(_writer(config), set(bench.concepts))
            stories: dict[Any, str] = {}
            for document in documents:
                stories.setdefault(Cell(document.topic, document.emotion), document.text)
            other, cells = transfer.another_writer(bench, stories)
            if cells:
                found["writer"] = transfer.elsewhere(other, cells, masks)
        pairs = read_pairs(EMBEDDED / "pairs.jsonl", bench.concepts)
        values, groups = transfer.same_words(bench, pairs, masks)
        if groups:
            found["pairs"] = values
        texts = read_frames()["neutral"][:2]
        found["neutral"] = transfer.neutral_losses(bench, turn.report[0].topic, texts, masks)
        members = np.flatnonzero(size.circuit)
        order = members[np.argsort(-np.abs(plan.selected.signed[members]), kind="stable")][: config.edge_nodes]
        if len(order) > 1:
            nodes = sorted(int(each) for each in order)
            weights, _ = transfer.edges(bench, chosen(turn.report, config.edge_contexts), nodes, config.ig_steps)
            found |= {"nodes": np.array(nodes), "edges": weights}
        return found

    def _differences(self, out: Path) -> None:
        """What modulation adds: differences of all units, and every concept's circuit from all scored contexts."""
        import numpy as np

        from affectlens.circuits import curves, trials
        from affectlens.circuits.units import Unit, Units, measure, write_units

        bench, scores = self.bench, self.need(CircuitUnitsStage)
        subject = bench.anatomy.subject
        cells = sorted(bench.stories)
        rows = [bench.tokens(cell)[0].tolist() for cell in cells]
        labels = [bench.concepts.index(cell.concept) for cell in cells]
        measured = measure(
            subject, rows, labels, bench.concepts, first=subject.lead, tokens_per_batch=self.config.tokens_per_batch
        )
        selected = trials.select(scores, scores.cells)
        heads, circuits = bench.anatomy.heads, {}
        count = min(
            selected.signed.size,
            max(
                self.config.concept_heads,
                int(np.median([self.sizes.size(turn.index).circuit.sum() for turn in self.turns])),
            ),
        )
        for at, concept in enumerate(bench.concepts):
            members = np.flatnonzero(curves.top(selected.concepts[at], count))
            circuits[concept] = tuple(Unit("head", int(each) // heads, int(each) % heads) for each in members)
        found = Units(measured.concepts, measured.heads, measured.neurons, measured.residual, measured.norms, circuits)
        write_units(out / UNITS, found)

    def _published(self, out: Path) -> None:
        from affectlens.circuits import published
        from affectlens.circuits.units import write_members

        turn = self.turns[0]
        topics = sorted({cell.topic for cell in turn.select})
        found = published.published(self.bench, topics)
        rows = published.published_rows(
            self.bench,
            found,
            sorted({cell.topic for cell in turn.report}),
            self.config.random_circuits,
            self.generator("published"),
        )
        write_json(out / "published.json", rows)
        anatomy = self.bench.anatomy
        write_members(out / PUBLISHED, published.units_of(found, anatomy.heads, anatomy.d_mlp))

    def judge(self, parts: Mapping[str, Path]) -> Judge:
        """All rotations with their results."""
        import numpy as np
        from safetensors.numpy import load_file

        from affectlens.circuits import trials
        from affectlens.circuits.judging import Judge, Turn

        scores, turns = self.need(CircuitUnitsStage), []
        for turn in self.turns:
            loaded = [
                load_file(path / RESULT) for name, path in parts.items() if name.startswith(f"report-{turn.index}-")
            ]
            arrays = {name: np.concatenate([each[name] for each in loaded]) for name in loaded[0]}
            selected = trials.select(scores, turn.select)
            turns.append(Turn(turn.report, turn.select, arrays, selected, self.sizes.size(turn.index)))
        return Judge(turns, scores, self.config, self.generator)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        import json

        from safetensors.numpy import load_file

        from affectlens.circuits import merging

        if NOTHING in parts:
            for table in self.tables:
                results.write(out, table, [])
            return {}
        judge = self.judge(parts)
        curves, areas = judge.curve_rows()
        verdicts, members = judge.verdict_rows(), judge.member_rows()
        transfers = [load_file(parts[f"transfer-{turn.index}"] / RESULT) for turn in self.turns]
        neurons = [load_file(path / RESULT) for name, path in parts.items() if name.startswith("neurons")]
        checks = [*judge.complete_rows(), *merging.transfer_rows(transfers)]
        neuron_rows, neuron_curve, neuron_checks = merging.neuron_rows(neurons)
        edges = merging.edge_rows(transfers, judge.scores.card["heads"])
        matrix, concepts = judge.specificity, judge.scores.concepts
        specificity = [
            {"measured": one, "removed": other, "loss": float(matrix[row, column])}
            for row, one in enumerate(concepts)
            for column, other in enumerate(concepts)
        ]
        published: list[Any] = []
        if "published" in parts:
            published = json.loads((parts["published"] / "published.json").read_text(encoding="utf-8"))
            (out / PUBLISHED).write_bytes((parts["published"] / PUBLISHED).read_bytes())
        found = {
            tables.CURVES: curves,
            tables.AREAS: areas,
            tables.VERDICTS: verdicts,
            tables.SPECIFICITY: specificity,
            tables.MEMBERS: members,
            tables.CHECKS: [*checks, *neuron_checks],
            tables.NEURONS: neuron_rows,
            tables.NEURON_CURVE: neuron_curve,
            tables.EDGES: edges,
            tables.PUBLISHED: published,
        }
        for table in self.tables:
            results.write(out, table, found[table])
        (out / UNITS).write_bytes((parts["differences"] / UNITS).read_bytes())
        write_json(out / GRAPH, merging.pooled_graph(self, members, edges))
        return merging.metrics(verdicts, areas, self.config.level)

    @classmethod
    def open(cls, folder: Path) -> Circuits:
        return Circuits(folder)


def _writer(config: CircuitsConfig) -> EvaluateConfig:
    """The other writer whose stories circuits are tried on."""
    return EvaluateConfig(stories=config.transfer_stories)
