"""The stages of circuits on a tiny model: off unless asked for, resumable, the same bytes in any order."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import affectlens
import numpy as np
import pytest
import yaml
from affectlens import results
from affectlens.circuits import graph, units
from affectlens.circuits.scores import Scores, sign_flip_p
from affectlens.errors import ConfigError, UserError
from affectlens.report.evidence import Rows
from affectlens.report.render import render
from affectlens.run.workspace import Workspace
from affectlens.study import Study
from test_runner import result_bytes
from tiny import EMOTIONS

CIRCUITS = {
    "run": True,
    "story_tokens": 12,
    "rotations": 1,
    "select_contexts": 8,
    "size_contexts": 4,
    "report_contexts": 4,
    "control_contexts": 2,
    "neuron_contexts": 4,
    "neurons_checked": 5,
    "neurons_unselected": 4,
    "neuron_check_contexts": 2,
    "feature_contexts": 4,
    "edge_contexts": 2,
    "minimal_contexts": 2,
    "ig_steps": 2,
    "concept_heads": 2,
    "sizes": [0.1, 0.3, 0.5],
    "removed_up_to": 0.3,
    "contexts_per_part": 3,
    "permutations": 99,
    "as_published": True,
}


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("circuits")
    values = {
        "name": "tiny",
        "cache": str(folder / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": list(EMOTIONS)},
        "activations": {"texts_per_part": 64, "pooled_layers": []},
        "circuits": CIRCUITS,
        "tracking": {"mode": "disabled"},
        "compute": {"threads": 1, "device": "cpu"},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    affectlens.run_study(path, stages=["circuits"])
    return {"path": path, "values": values, "folder": folder}


def test_writers_sum_and_heads_are_tested(finished) -> None:
    study = affectlens.open_study(finished["path"])
    writers = study.table("circuit_units/writers")
    for _, rows in writers[writers["unit"] == "all"].groupby("concept"):
        direct = rows.set_index("kind")["direct"]
        assert abs(float(direct.drop("reading").to_numpy().sum()) - direct.to_dict()["reading"]) < 1e-4
    heads = study.table("circuit_units/heads")
    assert len(heads) == 16
    assert heads["effect"].abs().to_numpy().max() > 0
    assert (heads["p_adjusted"].to_numpy() >= heads["p"].to_numpy()).all()
    features = study.table("circuit_units/features").set_index("unit")["effect"]
    assert {"feature", "other features", "error"} == set(features.index)


def test_the_arrays_hold_every_context(finished) -> None:
    study = Study.load(finished["path"])
    scores = Scores(study.folder(study.stage_named("circuit_units")))
    assert len(scores.cells) == 8
    assert scores.arrays["effect"].shape == (8, 16, 4)
    assert scores.effects.shape == (8, 16)
    assert np.abs(scores.arrays["effect"].sum(axis=2)).max() < 1e-4, "contrasts of all concepts sum to 0"


def test_with_shuffled_labels_at_most_a_twentieth_of_the_heads_is_significant(finished) -> None:
    study = Study.load(finished["path"])
    scores = Scores(study.folder(study.stage_named("circuit_units")))
    effect, generator = scores.arrays["effect"], np.random.default_rng(0)
    shares = []
    for _ in range(200):
        own = generator.integers(effect.shape[2], size=len(effect))
        values = np.take_along_axis(effect, own[:, None, None], axis=2)[..., 0]
        shares.append(float((sign_flip_p(values, 199, generator)[0] <= 0.05).mean()))
    assert np.mean(shares) <= 0.05


def test_a_study_names_circuits_or_has_none(study_values, write_study) -> None:
    path = write_study(study_values)
    study = Study.load(path)
    assert not study.config.circuits.run
    study_values["circuits"] = {"run": True, "sizes": [0.3, 0.1]}
    with pytest.raises(ConfigError, match="sizes"):
        Study.load(write_study(study_values))


def test_a_model_of_noise_has_no_contrast_to_explain(finished) -> None:
    study = affectlens.open_study(finished["path"])
    verdicts = study.table("circuits/verdicts")
    said = verdicts.set_index("concept")["verdict"].to_dict()
    assert said.pop("all concepts") == "no contrast to explain"
    assert set(said.values()) == {"too few contexts"}, "one reported context each has no interval"
    halves = verdicts.set_index("concept")["halves"].to_dict()
    assert 0 <= halves["all concepts"] <= 1
    assert len(verdicts) == 1 + len(EMOTIONS)
    curves = study.table("circuits/curves")
    assert set(curves["ranking"]) == {"signed effect", "size of effect", "activation", "random"}
    checks = set(study.table("circuits/checks")["check"])
    assert {"completeness", "another frame", "another writer's stories", "neutral text", "neurons"} <= checks
    assert "one other story as reference" in checks


def test_every_division_of_the_topics_has_one_size(finished) -> None:
    study = Study.load(finished["path"])
    sizes, members = (
        affectlens.open_study(finished["path"]).table(name) for name in ("circuit_sizes/sizes", "circuits/members")
    )
    assert len(sizes) == 2 * len(CIRCUITS["sizes"])
    assert set(sizes["contexts"]) == {CIRCUITS["size_contexts"]}
    (chosen,) = sizes[sizes["chosen"]]["heads"]
    kind = study.stage_named("circuit_sizes")
    assert kind.open(study.folder(kind)).size(0).circuit.sum() == chosen == len(members)


def test_what_modulation_and_viewers_read_is_written(finished) -> None:
    study = Study.load(finished["path"])
    folder = study.folder(study.stage_named("circuits"))
    found = units.read_units(folder / "units.safetensors")
    assert set(found.circuits) == set(EMOTIONS)
    graph.validate(json.loads((folder / "graph.json").read_text(encoding="utf-8")))
    published = units.read_members(folder / "published_units.json")
    rows = affectlens.open_study(finished["path"]).table("circuits/published").set_index("concept")
    for concept, members in published.items():
        kinds = [unit.kind for unit in members]
        assert (kinds.count("head"), kinds.count("neuron")) == tuple(rows.loc[concept, ["heads", "neurons"]])
        found.push(members, concept)


def test_the_published_choices_stand_beside_chance(finished) -> None:
    rows = affectlens.open_study(finished["path"]).table("circuits/published")
    assert set(rows["concept"]) == {"sad", "afraid"}
    assert set(rows["contexts"]) == {3}
    assert (rows["heads_chance"].to_numpy() > 0).all()


def test_a_graph_that_lacks_a_field_is_refused() -> None:
    made = graph.graph("a", "m", "p", ["p"], [{"layer": 0, "head": 1, "effect": 0.2}], [], "words")
    graph.validate(made)
    del made["nodes"][0]["ctx_idx"]
    with pytest.raises(UserError, match="ctx_idx"):
        graph.validate(made)
    made = graph.graph("a", "m", "p", ["p"], [], [], "words")
    made["links"].append({"source": "nowhere", "target": "E_0_0", "weight": 1.0})
    with pytest.raises(UserError, match="no node"):
        graph.validate(made)


def test_parts_in_any_order_give_the_same_bytes(finished, tmp_path) -> None:
    study = Study.load(finished["path"])
    kind = study.stage_named("circuits")
    folder = study.folder(kind)
    results = {name: study.stage_named(name).open(study.folder(study.stage_named(name))) for name in kind.needs}
    stage = kind(study.section(kind), study.setting("cpu"), results)
    wanted = [part for part in stage.parts() if part.name in ("transfer-0", "report-0-001")]
    for part in reversed(wanted):
        out = tmp_path / part.name
        out.mkdir()
        stage.run_part(part, out, lambda units: None)
        assert (out / "part.safetensors").read_bytes() == (
            folder / "parts" / part.name / "part.safetensors"
        ).read_bytes()


def test_missing_stories_of_another_writer_are_named(study_values, write_study) -> None:
    study_values["circuits"] = {"run": True, "transfer_stories": "nowhere.jsonl"}
    with pytest.raises(ConfigError, match=r"transfer_stories: nowhere\.jsonl"):
        Study.load(write_study(study_values))


def test_the_page_shows_circuits_where_a_study_has_them(finished) -> None:
    from test_report import study as evidence_of

    evidence = evidence_of()
    assert 'id="circuits"' not in render(evidence)
    study = Study.load(finished["path"])
    found = dict(evidence.tables)
    for name in ("circuit_units", "circuit_sizes", "circuits"):
        folder = study.folder(study.stage_named(name))
        found |= {f"{name}/{each}": Rows.of(results.read(folder, each)) for each in results.names(folder)}
    html = render(dataclasses.replace(evidence, tables=found))
    for name in ("writers", "heads", "kept", "left", "specificity"):
        assert f'id="circuits-{name}"' in html
    assert "No contrast to explain: " in html
    assert "Zero is no value that a head has" in html


SPOKEN = {
    "run": True, "units": "circuits", "emotions": ["sad", "calm"], "outcomes": ["neutral"], "tuning_events": 1,
    "tokens": 4, "divergence": [0.01], "random_circuits": 1, "chooser_texts": 4,
}  # fmt: skip


@pytest.mark.slow
def test_killed_runs_of_all_stages_resume_to_the_same_bytes(finished, tmp_path) -> None:
    """``kill -9`` in the middle of each stage: finished parts are not repeated, and no byte is another."""
    few = {"rotations": 1, "select_contexts": 4, "report_contexts": 4, "contexts_per_part": 1, "edge_nodes": 0}
    values = {**finished["values"], "circuits": CIRCUITS | few, "modulation": SPOKEN}
    values |= {"corpus": {"emotions": list(EMOTIONS)}}
    studies = []
    for name in ("undisturbed", "killed"):
        cache = tmp_path / name
        shutil.copytree(finished["folder"] / "cache", cache, ignore=shutil.ignore_patterns("circuit*", "modulation"))
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**values, "cache": str(cache)}), encoding="utf-8")
        studies.append(Study.load(tmp_path / f"{name}.yaml"))
    affectlens.run_study(studies[0].source, stages=["modulation"])
    whole, killed = studies
    command = [sys.executable, "-m", "affectlens.cli", "run", str(killed.source), "--stage", "modulation"]
    stamps: dict[Path, int] = {}
    for name in ("circuit_units", "circuit_sizes", "circuits", "modulation"):
        space = Workspace(killed, killed.stage_named(name))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(space.finished()) < 2 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not space.complete, "it was killed before the merge"
        stamps |= {
            space.parts / each: (space.parts / each / "part.json").stat().st_mtime_ns for each in space.finished()
        }
    affectlens.run_study(killed.source, stages=["modulation"])
    assert len(stamps) >= 6
    for part, stamp in stamps.items():
        kept = Path(str(part).replace(".partial", ""))
        assert (kept / "part.json").stat().st_mtime_ns == stamp, f"{kept.name} was made again"
    for name in ("circuit_units", "circuit_sizes", "circuits", "modulation"):
        stage = whole.stage_named(name)
        assert result_bytes(killed.folder(stage)) == result_bytes(whole.folder(stage))
    texts = affectlens.open_study(whole.source).table("modulation/texts")
    published = texts[texts["arm"] == "as_published"]
    assert set(published["concept"]) == {"sad"}, "of the published six the study has this one among those that speak"
