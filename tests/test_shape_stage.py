"""The stage ``shape`` on a tiny model: an arm a part, every table, the same bytes in any order, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from affectlens import results
from affectlens.corpus.documents import Document
from affectlens.errors import ConfigError
from affectlens.model.config import ModelConfig
from affectlens.model.subject import Subject
from affectlens.probing.control_vectors import unit_rows
from affectlens.shaping import tables
from affectlens.shaping.arms import Arm
from affectlens.shaping.changed import ChangedModel
from affectlens.shaping.config import ShapeConfig
from affectlens.shaping.held_out import FILE, FOLDER
from affectlens.shaping.inference import Alarm, Push
from affectlens.shaping.measures import ANSWERS, ARRAYS, CARD
from affectlens.shaping.settings import MeasuresConfig
from affectlens.stage import Part, Setting
from affectlens.stages.shape import NOTHING, ShapeStage
from affectlens.study import Study
from scripted import run_parts

D, LAYER, CONCEPTS = 32, 1, ("calm", "desperate", "happy", "sad")


def situations(place: Path) -> Path:
    """Three families of two situations."""
    (place / FOLDER).mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"{family}-{n}", "family": family, "setting": f"You stand at door {n}.", "bad": "It burns.",
         "good": "It opens.", "ask": "What do you say?"}
        for family in ("doors", "boats", "shops")
        for n in range(2)
    ]  # fmt: skip
    (place / FOLDER / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def experiment(place: Path) -> Path:
    """An experiment with a forced choice."""
    (place / "stops").mkdir(parents=True, exist_ok=True)
    (place / "stops" / "experiment.yaml").write_text("title: stops\n", encoding="utf-8")
    row = {"messages": [{"role": "user", "content": "Go on?"}], "answer": "So:",
           "options": {"target": ["I stop."], "other": ["I go on."]}}  # fmt: skip
    rows = [{**row, "id": f"s{n}", "group": f"g{n // 2}", "condition": ("main", "twin")[n % 2]} for n in range(6)]
    (place / "stops" / "scenarios.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def documents() -> list[Document]:
    texts = [(concept, f"The {concept} people went home by the road number {n} again.") for concept in CONCEPTS
             for n in range(4)]  # fmt: skip
    found = [Document(n, "story", each, "park", "", "train", text) for n, (each, text) in enumerate(texts)]
    said = [f"The clock says {n} and the door is shut." for n in range(4)]
    return found + [Document(20 + n, "log", "", "", "", "neutral", text) for n, text in enumerate(said)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ShapeConfig:
    place = experiment(situations(tmp_path_factory.mktemp("experiments")))
    measures = MeasuresConfig(
        folder=place, samples=2, tokens=8, stories_each=3, recovery=3, recovery_tokens=16, bursts=3, burst_tokens=2,
        return_tokens=8, task_items=12, neutral_texts=3, choices=("stops",), choice_scenarios=2,
    )  # fmt: skip
    return ShapeConfig(run=True, arms=("add",), seeds=1, measures=measures)


@pytest.fixture(scope="module")
def make(config: ShapeConfig, model_folder: Callable[[str], Path]) -> Callable[..., ShapeStage]:
    folder = model_folder("llama")
    units = unit_rows(np.random.default_rng(0).normal(size=(4, D))).astype(np.float32)
    alarm = Alarm(Push(LAYER, units[0]), units[1], 0.0, 1.0, 0.5, 4)

    class Arms:
        calibration = SimpleNamespace(rule=lambda arm, config: alarm)

        def changed(
            self, arm: Arm, model: ModelConfig, *, device: str, models: Path, subject: Subject | None = None
        ) -> ChangedModel:
            assert subject is not None, "no arm here is trained"
            vector = units[2] if arm.twin else units[0]
            return ChangedModel(subject, None if arm.kind == "base" else Push(LAYER, 8 * vector))

    opened = {
        "directions": SimpleNamespace(
            concepts=CONCEPTS, unit=lambda layer: units, strength_unit=lambda store, layer: 8.0
        ),
        "activations": SimpleNamespace(layers=(LAYER,), d_model=D),
        "corpus": SimpleNamespace(emotions=CONCEPTS, documents=documents()),
        "shape_arms": Arms(),
    }
    setting = Setting(0, ModelConfig(name=str(folder), layer=LAYER, dtype="float32"), "cpu", 1, folder / "models")

    def stage(**changes: Any) -> ShapeStage:
        return ShapeStage(ShapeConfig.model_validate({**config.model_dump(), **changes}), setting, opened)

    return stage


@pytest.fixture(scope="module")
def finished(
    make: Callable[..., ShapeStage], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    out, stage = tmp_path_factory.mktemp("shape"), make()
    return out, stage.finish(run_parts(stage, out), out)


def test_an_arm_is_a_part_and_leaves_what_was_asked(finished: tuple[Path, dict[str, float]]):
    names = sorted(path.name for path in (finished[0] / "parts").iterdir())
    assert names == ["add", "add-random-s0", "base"]
    for name in names:
        assert {path.name for path in (finished[0] / "parts" / name).iterdir()} == {ARRAYS, ANSWERS, CARD}


def test_every_table_is_there_and_says_something(finished: tuple[Path, dict[str, float]]):
    out, metrics = finished
    for table in tables.ALL:
        assert len(results.read(out, table.name)), table.name
    assert set(results.read(out, "verdicts")["arm"]) == {"add", "add-random"}
    assert {"nll", "addition", "recall", "pattern", "instructions", "repetition"} == set(
        results.read(out, "abilities")["measure"]
    )
    heard = set(results.read(out, "dynamics")["measure"])
    assert {"still_state", "back", "back_random", "pushed", "alarmed_bad", "alarmed_good"} <= heard
    assert "add.state" in metrics
    axes = results.read(out, "axes")
    assert min(map(float, axes["cosine"])) > 0.2, "a push turns axes by little"


@pytest.mark.slow
def test_parts_are_the_same_bytes_in_any_order(make: Callable[..., ShapeStage], tmp_path: Path):
    for order in (1, -1):
        run_parts(make(), tmp_path / str(order), order)
    for path in sorted((tmp_path / "1").rglob("*.*")):
        other = tmp_path / "-1" / path.relative_to(tmp_path / "1")
        assert path.read_bytes() == other.read_bytes(), path.name


def test_what_only_judges_asks_no_arm_anew(make: Callable[..., ShapeStage]):
    stage = make()
    part = next(part for part in stage.parts() if part.name == "add")
    reads = stage.part_reads(part)
    judged = {**stage.config.measures.model_dump(), "reading": "later", "text": "classifier"}
    assert make(measures=judged, rules={"least_fall": 0.9}).part_reads(part) == reads
    longer = {**stage.config.measures.model_dump(), "tokens": 9}
    assert make(measures=longer).part_reads(part) != reads
    assert make(strength=0.5).part_reads(part) != reads


def test_a_study_that_shapes_nothing_has_one_part_and_empty_tables(make: Callable[..., ShapeStage], tmp_path: Path):
    stage = make(run=False)
    assert [part.name for part in stage.parts()] == [NOTHING]
    assert stage.part_reads(Part(NOTHING)) == {}
    assert stage.finish(run_parts(stage, tmp_path), tmp_path) == {}
    assert all(len(results.read(tmp_path, table.name)) == 0 for table in tables.ALL)


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ({"folder": "nowhere"}, "no such file; give the folder that holds"),
        ({"situations": 9}, "not 9; ask for fewer"),
        ({"recovery": 400}, "there are 48 situations"),
        ({"stories": "nobody.jsonl"}, "no such file; name an embedded writer"),
        ({"stories": "embedded"}, "name another writer's"),
        ({"choices": ["declares"]}, "no such experiment"),
        ({"choices": ["preferences"]}, "no options `target` and `other`"),
        ({"layers": [3, 99]}, "the model has layers 0 to 29"),
        ({"tokens": 1}, "measures.tokens"),
    ],
)
def test_bad_settings_are_one_sentence_before_anything_runs(measures: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        Study.of({"name": "s", "shape": {"run": True, "measures": measures}}, "s.yaml").check()
