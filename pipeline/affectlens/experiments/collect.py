"""From the parts of an experiment to everything seen in it, on shared axes and under one centre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from affectlens.corpus.ratings import read_ratings
from affectlens.corpus.texts import EMBEDDED
from affectlens.experiments.conditions import compared, grid
from affectlens.experiments.experiment import Experiment, PairwiseConfig, Scenario
from affectlens.experiments.organism import planted
from affectlens.experiments.pairwise import steered_items
from affectlens.experiments.results import Measured
from affectlens.experiments.serialization import COMPLETIONS, completion_of, read_jsonl
from affectlens.experiments.tuning import OrganismConfig
from affectlens.probing.axes import AXES
from affectlens.probing.control_vectors import unit_rows
from affectlens.probing.methods import Vocabulary

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

    from affectlens.corpus.documents import Corpus
    from affectlens.probing.directions import Directions
    from affectlens.stage import Part

RESULT = "part.safetensors"
KINDS = ("manipulation", "read", "against", "choice", "pairwise", "completions")


@dataclass(frozen=True)
class Assembly:
    """What all experiments of a study are put together with.

    Attributes:
        corpus, directions: results of the earlier stages.
        layer: the study's.
        readout_layer: where the state under steering was read.
        tuned: emotions on whose stories the second model was tuned; empty where it was given.
        organism: that was measured in place of the study's model.
    """

    corpus: Corpus
    directions: Directions
    layer: int
    readout_layer: int
    tuned: tuple[str, ...] = ()
    organism: OrganismConfig | None = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """TF-IDF of the study's training stories."""
        train = self.corpus.indices("train")
        return Vocabulary.fit([self.corpus.documents[index].text for index in train], self.corpus.labels(train))

    def measured(self, experiment: Experiment, parts: Sequence[tuple[Part, Path]]) -> Measured:
        """Everything seen in one experiment."""
        config, concepts = experiment.config, self.corpus.emotions
        found = {kind: _joined(parts, kind) for kind in KINDS}
        # Readings under every condition, and of the second model, under the first model's centre.
        under = config.read_under_steering and config.steering is not None
        usual = np.array([each.condition not in config.prompted for each in experiment.scenarios])
        groups = np.array([scenario.group for scenario in experiment.scenarios])
        readings, against = {}, {}
        for reading in config.readings:
            key = f"{'feature' if reading.by == 'features' else 'residual'}.{reading.name}"
            plain = found["choice"][key] if under else found["read"][key][None]
            sides = {"readings": plain, "against": found["against"].get(key)}
            if reading.by == "directions":
                centre, layer = (
                    group_centre(plain[0][usual], groups[usual]),
                    self.readout_layer if under else self.layer,
                )
                sides = {
                    name: None if values is None else self._cosines(values, centre, layer)
                    for name, values in sides.items()
                }
            readings[reading.name] = sides["readings"]
            against |= {} if sides["against"] is None else {reading.name: sides["against"]}
        # Sampled answers: the state meanwhile, and the same concepts read from the text and from its words.
        folders = [folder for part, folder in parts if part.payload["kind"] == "completions"]
        rows = [row for folder in folders for row in read_jsonl(folder / COMPLETIONS)]
        answers: dict[str, np.ndarray] = {}
        if rows:
            said = np.array([row["scenario"] for row in rows])
            plain = usual[said] & np.array([row["condition"] == 0 for row in rows])
            for name in ("state", "text"):
                centre = group_centre(found["completions"][name][plain], groups[said[plain]])
                answers[f"completion_{name}"] = self._cosines(found["completions"][name], centre, self.readout_layer)
            words = self.vocabulary.scores([row["text"] for row in rows])
            answers["completion_words"] = words.astype(np.float32)
        ratings = read_ratings(EMBEDDED / "ratings.csv")
        pairwise: PairwiseConfig | None = config.outcome(PairwiseConfig)
        items = len(experiment.scenarios)
        return Measured(
            experiment=experiment,
            concepts=concepts,
            ratings={
                axis: np.array([ratings.get(concept, {}).get(axis, np.nan) for concept in concepts]) for axis in AXES
            },
            directions=self.directions.unit(self.layer),
            grid=grid(config.steering, concepts),
            manipulation=manipulation(found["manipulation"], len(grid(config.steering, concepts))),
            readings=readings,
            words=self.vocabulary.scores([words_of(scenario) for scenario in experiment.scenarios]).astype(np.float32),
            against=against,
            residuals={
                reading.name: found["read"][f"residual.{reading.name}"]
                for reading in config.readings
                if reading.keep_residual
            },
            choice=found["choice"].get("choice"),
            choice_per_token=found["choice"].get("choice_per_token"),
            comparisons=found["pairwise"].get("comparisons"),
            compared=compared(config, concepts),
            steered=None if pairwise is None else np.isin(np.arange(items), steered_items(items, pairwise)),
            tuned=self.tuned if config.against else (),
            organism=self.organism.follows if self.organism else "",
            planted=planted(experiment, self.organism) if self.organism else {},
            completions=tuple(completion_of(row) for row in rows),
            **answers,
        )

    def _cosines(
        self, residuals: Float[np.ndarray, "... d_model"], centre: Float[np.ndarray, "d_model"], layer: int
    ) -> Float[np.ndarray, "... concepts"]:
        """Cosines of centred residuals with the unit directions of a layer."""
        moved = residuals - centre
        norms = np.linalg.norm(moved, axis=-1, keepdims=True)
        return (moved / np.where(norms > 0, norms, 1) @ unit_rows(self.directions.unit(layer)).T).astype(np.float32)


def manipulation(measured: Mapping[str, np.ndarray], conditions: int) -> dict[str, np.ndarray]:
    """The manipulation check as analyses get it: that of the grid, and that of every concept's vector."""
    if not measured:
        return {"rises": np.zeros((1, 0)), "perplexity": np.ones(1)}
    rises, perplexity = measured["rises"], measured["perplexity"]
    vectors = rises[conditions:].reshape(rises.shape[1], -1, rises.shape[1])
    return {"rises": rises[:conditions], "perplexity": perplexity[:conditions], "vectors": vectors}


def group_centre(
    residuals: Float[np.ndarray, "rows d_model"], groups: Shaped[np.ndarray, " rows"]
) -> Float[np.ndarray, "d_model"]:
    """Mean over groups of their means, so that a scenario with many variants weighs no more; NaN rows are left out."""
    there = np.isfinite(residuals).all(axis=1)
    means = [
        residuals[there & (groups == name)].mean(axis=0, dtype=np.float64)
        for name in dict.fromkeys(groups[there].tolist())
    ]
    return np.mean(means, axis=0) if means else np.zeros(residuals.shape[1])


def words_of(scenario: Scenario) -> str:
    """All that a scenario says."""
    return scenario.text or "\n".join(message["content"] for message in scenario.messages)


def _joined(parts: Sequence[tuple[Part, Path]], kind: str) -> dict[str, np.ndarray]:
    """The arrays of all parts of a kind: slices of scenarios side by side, blocks of conditions one above the other."""
    from safetensors.numpy import load_file

    slices: dict[int, dict[str, list[np.ndarray]]] = {}
    own = [(part.payload, folder) for part, folder in parts if part.payload["kind"] == kind]
    for payload, folder in sorted(own, key=lambda each: (each[0]["start"], each[0].get("conditions", [0]))):
        for key, values in load_file(folder / RESULT).items():
            slices.setdefault(payload["start"], {}).setdefault(key, []).append(values)
    columns = [{key: np.concatenate(blocks) for key, blocks in each.items()} for each in slices.values()]
    axis = 1 if kind in ("choice", "pairwise") else 0
    keys = columns[0] if columns else ()
    return {key: np.concatenate([each[key] for each in columns], axis=axis) for key in keys}
