"""Results appear whole or not at all; nothing finished is lost or repeated; the same study gives the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from affectlens.corpus.texts import EMBEDDED
from affectlens.errors import ConfigError, DamagedResult, MissingResult, PartFailed, UserError
from affectlens.run import runner, verify
from affectlens.run.workspace import Workspace
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.study import Study, stage_named


def result_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a result but the records of how it was made, which hold times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("manifest.json", "part.json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run_cached(study: Study, **options) -> dict[str, runner.Outcome]:
    return {outcome.stage: outcome for outcome in runner.run(study, only=["activations"], **options)}


@pytest.fixture
def study(study_values, write_study) -> Study:
    return Study.load(write_study(study_values))


@pytest.fixture
def undisturbed(study) -> dict[str, bytes]:
    """What an undisturbed run leaves; its cache is moved away."""
    folder = run_cached(study)["activations"].folder
    kept = result_bytes(folder)
    study.config.cache.rename(study.config.cache.with_name("undisturbed"))
    return kept


def test_a_second_run_computes_nothing_and_changes_nothing(study):
    first = run_cached(study)
    assert {outcome.state for outcome in first.values()} == {"computed"}
    stamps = {path: path.stat().st_mtime_ns for path in study.config.cache.rglob("*") if path.is_file()}
    second = run_cached(study)
    assert {outcome.state for outcome in second.values()} == {"cached"}
    assert {path: path.stat().st_mtime_ns for path in study.config.cache.rglob("*") if path.is_file()} == stamps
    assert second["activations"].metrics == first["activations"].metrics


def test_the_manifest_says_how_a_result_came_about(study):
    folder = run_cached(study)["activations"].folder
    record = json.loads((folder / "manifest.json").read_text())
    assert record["needs"] == {"corpus": study.fingerprint(CorpusStage)}
    assert record["config"]["texts_per_part"] == 8
    assert record["model_identity"].startswith("folder:")
    assert {"torch", "transformers", "numpy", "python"} <= set(record["versions"])
    assert record["run"]["seconds"] > 0
    assert set(record["files"]) == set(result_bytes(folder))
    assert verify.damages(Workspace(study, ActivationsStage), ActivationsStage, contents=True) == []
    assert verify.strays(Workspace(study, ActivationsStage)) == []
    assert set(record["inputs"]) == {"corpus"}
    assert not list(folder.parent.glob("*.partial"))
    assert not list(folder.parent.glob("*.locks"))


def test_killed_runs_resume_to_the_same_bytes(study, undisturbed, tmp_path):
    """``kill -9`` again and again in the middle of caching: finished parts are not repeated."""
    command = [sys.executable, "-m", "affectlens.cli", "run", study.source, "--stage", "activations"]
    space = Workspace(study, ActivationsStage)
    finished: dict[str, int] = {}
    for wanted in (1, 3, 4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(space.finished()) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {name: (space.parts / name / "part.json").stat().st_mtime_ns for name in space.finished()}
        for name, stamp in finished.items():
            assert now.get(name, stamp) == stamp
        finished = now
    assert finished or study.folder(ActivationsStage).is_dir()
    outcome = run_cached(study)["activations"]
    for name, stamp in finished.items():
        assert (outcome.folder / "parts" / name / "part.json").stat().st_mtime_ns == stamp
    assert result_bytes(outcome.folder) == undisturbed


def test_the_number_of_workers_changes_no_byte(study, undisturbed):
    outcome = run_cached(study, workers=2)["activations"]
    assert result_bytes(outcome.folder) == undisturbed


def test_a_worker_that_waits_for_its_neighbour_is_not_worth_a_word(study):
    told = []

    class Reporter(runner.Reporter):
        def waiting(self, message: str) -> None:
            told.append(message)

    class Pool:
        def run(self, jobs, heard):
            heard("waiting", "a")
            assert not told
            heard("waiting", "b")

    pool: Any = Pool()
    runner.Session(study, pool, reporter=Reporter()).share(ActivationsStage, (), ["cpu", "cpu"])
    assert told == ["b"], "nobody of this run works: another one does"


def test_workers_end_in_order(tmp_path):
    """What they hold is released, so that Python has nothing to warn of after the result."""
    script = tmp_path / "holding.py"
    script.write_text(
        "import multiprocessing\n"
        "from affectlens.run.workers import Workers\n"
        "held = []\n"
        "def body(send):\n"
        "    held.append(multiprocessing.get_context('spawn').Lock())\n"
        "if __name__ == '__main__':\n"
        "    with Workers(body) as pool:\n"
        "        pool.run([(), ()], print)\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_two_runs_at_once_share_the_parts(study, undisturbed):
    command = [sys.executable, "-m", "affectlens.cli", "run", study.source, "--stage", "activations"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert result_bytes(study.folder(ActivationsStage)) == undisturbed


def break_part(monkeypatch, name: str, error: Exception) -> None:
    """Make one part of the activations stage raise."""
    original = ActivationsStage.run_part

    def broken(self, part, out, progress):
        if part.name == name:
            raise error
        original(self, part, out, progress)

    monkeypatch.setattr(ActivationsStage, "run_part", broken)


def test_a_failed_part_is_remembered_kept_apart_and_retried(study, undisturbed, monkeypatch):
    with monkeypatch.context() as patch:
        break_part(patch, "00002", ZeroDivisionError("planted"))
        with pytest.raises(PartFailed, match=r"1 of \d+ parts failed, first 00002 \(ZeroDivisionError: planted\)"):
            run_cached(study)
    state = runner.inspect(study, ActivationsStage)
    assert state.state == "failed"
    assert set(state.failures) == {"00002"}
    assert state.parts_done == 6
    with pytest.raises(PartFailed, match="--mode retry"):
        run_cached(study)
    assert result_bytes(run_cached(study, mode="retry")["activations"].folder) == undisturbed


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UserError("planted"), MemoryError()])
def test_a_fault_of_the_world_is_not_held_against_the_part(study, undisturbed, monkeypatch, error):
    with monkeypatch.context() as patch:
        break_part(patch, "00002", error)
        with pytest.raises(type(error)):
            run_cached(study)
    assert runner.inspect(study, ActivationsStage).state == "partial"
    assert result_bytes(run_cached(study)["activations"].folder) == undisturbed


def test_force_computes_the_named_stage_anew_and_only_it(study):
    before = run_cached(study)
    stamp = (before["corpus"].folder / "manifest.json").stat().st_mtime_ns
    again = run_cached(study, mode="force")
    assert again["activations"].state == "computed"
    assert again["corpus"].state == "cached"
    assert (before["corpus"].folder / "manifest.json").stat().st_mtime_ns == stamp


def test_read_only_computes_nothing(study):
    with pytest.raises(MissingResult, match="stage `corpus` has no finished result"):
        run_cached(study, mode="read-only")
    run_cached(study)
    assert run_cached(study, mode="read-only")["activations"].state == "cached"


def test_a_lost_file_is_named_and_a_rerun_repairs_just_that(study, undisturbed):
    folder = run_cached(study)["activations"].folder
    shards = {path: path.stat().st_mtime_ns for path in folder.glob("parts/*/activations.h5")}
    lost = folder / "parts" / "00001" / "activations.h5"
    lost.unlink()
    with pytest.raises(DamagedResult, match=r"00001/activations\.h5 is gone; leave out --mode read-only"):
        run_cached(study, mode="read-only")
    assert result_bytes(run_cached(study)["activations"].folder) == undisturbed
    assert [path for path, stamp in shards.items() if path.stat().st_mtime_ns != stamp] == [lost]


def test_an_unwritable_cache_is_one_sentence(study_values, write_study, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    study = Study.load(write_study({**study_values, "cache": str(tmp_path / "file" / "cache")}))
    with pytest.raises(UserError, match="set `cache:` to a writable folder"):
        run_cached(study)


def test_a_killed_worker_is_reported_and_costs_nothing(study):
    process = subprocess.Popen(
        [sys.executable, "-m", "affectlens.cli", "run", study.source, "--stage", "activations", "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline, workers = time.monotonic() + 120, []
    while not workers and time.monotonic() < deadline:
        found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
        workers = [int(line) for line in found.stdout.split()]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    _, complaint = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "1 of 2 workers died (signal 9" in complaint
    assert "Traceback" not in complaint
    assert run_cached(study)["activations"].state == "computed"


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("report.title=Other", {"report"}),
        ("tracking.project=other", set()),
        ("compute.threads=2", set()),
        ("sae.k=7", {"sae", "match", "compare", "writers", "causal", "circuit_units", "circuit_sizes", "circuits",
                       "modulation", "monitor", "measure", "grade", "conclude", "report"}),
        ("geometry.components=3", {"geometry", "report"}),
        ("directions.neutral_variance=0.2", {"directions", "compare", "writers", "geometry", "causal",
                                             "circuit_units", "circuit_sizes", "circuits", "modulation", "monitor",
                                             "shape_arms", "shape", "measure", "grade", "conclude", "report"}),
        ("activations.first_token=40", {"activations", "sae", "directions", "match", "compare", "writers", "geometry",
                                        "causal", "circuit_units", "circuit_sizes", "circuits", "modulation", "monitor",
                                        "shape_arms", "shape", "measure", "grade", "conclude", "report"}),
    ],
)  # fmt: skip
def test_a_change_reaches_just_the_stages_that_depend_on_it(study_values, write_study, override, changed):
    from affectlens.study import STAGES

    path = write_study(study_values)
    before, after = Study.load(path), Study.load(path, [override])
    assert {stage.name for stage in STAGES if before.fingerprint(stage) != after.fingerprint(stage)} == changed


def test_the_model_counts_by_content_not_by_path(study_values, write_study, model_folder, tmp_path):
    import shutil

    path = write_study(study_values)
    copied = shutil.copytree(model_folder("llama"), tmp_path / "copy")
    before, after = Study.load(path), Study.load(path, [f"model.name={copied}"])
    assert before.fingerprint(ActivationsStage) == after.fingerprint(ActivationsStage)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}), encoding="utf-8")
    changed = Study.load(path, [f"model.name={copied}"])
    assert before.fingerprint(ActivationsStage) != changed.fingerprint(ActivationsStage)


def test_changed_stories_change_every_stage(study_values, write_study, tmp_path):
    values = {**study_values, "corpus": {**study_values["corpus"]}}
    own = tmp_path / "stories.jsonl"
    original = EMBEDDED / "stories.jsonl"
    own.write_bytes(original.read_bytes())
    values["corpus"]["stories"] = str(own)
    before = Study.load(write_study(values)).fingerprint(stage_named("report"))
    own.write_text(own.read_text(encoding="utf-8").replace("chickpea", "pea"), encoding="utf-8")
    after = Study.load(write_study(values))
    assert before != after.fingerprint(stage_named("report"))


def test_stages_that_cannot_run_with_a_config_are_refused_before_any_that_can(study_values, write_study):
    """SAEs need token rows; the same study runs as far as directions."""
    study_values["activations"]["token_rows"] = False
    study = Study.load(write_study(study_values))
    with pytest.raises(ConfigError, match=r"study\.yaml: `activations\.token_rows: false`"):
        runner.run(study)
    assert not (Path(study_values["cache"]) / "corpus").exists()
    assert [stage.name for stage in runner.needed_for(study, ["directions"])][-1] == "directions"
