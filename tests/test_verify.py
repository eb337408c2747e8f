"""Nothing finished is ever lost: damage is named and only what is damaged is computed again, to the same bytes."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from affectlens import plan
from affectlens.activations.size import count_tokens
from affectlens.cli import app
from affectlens.errors import UserError
from affectlens.model.subject import load_tokenizer
from affectlens.run import manifest, parts, rates, runner, verify
from affectlens.run.workspace import Workspace, standing
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.study import Study

KILLS = 20


def result_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a result but the records of how it was made, which hold times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("manifest.json", "part.json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def cached(study: Study, **options) -> dict[str, runner.Outcome]:
    torch.set_num_threads(1)
    return {outcome.stage: outcome for outcome in runner.run(study, only=["activations"], **options)}


@pytest.fixture
def study(study_values, write_study) -> Study:
    return Study.load(write_study(study_values))


@pytest.fixture
def undisturbed(study) -> dict[str, bytes]:
    """The bytes of the finished result, which stays where it is."""
    return result_bytes(cached(study)["activations"].folder)


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["affectlens.run.runner", "affectlens.activations.caching", "transformers.models.llama.modeling_llama"]
)


def main_in_child(ready, source: str, said: Path, file_limit: int, stages: str) -> None:
    """``affectlens run`` in a process that begins with everything imported."""
    import contextlib

    from affectlens import cli

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    sys.argv = ["affectlens", "run", source, "--stage", stages]
    ready.set()
    with said.open("w") as stream, contextlib.redirect_stderr(stream):
        cli.main()


def start(study: Study, said: Path, file_limit: int = resource.RLIM_INFINITY, stages: str = "activations"):
    """Such a process, begun."""
    ready = SERVER.Event()
    child = SERVER.Process(target=main_in_child, args=(ready, study.source, said, file_limit, stages))
    child.start()
    assert ready.wait(120)
    return child


def stamps(study: Study) -> dict[str, int]:
    """When the shard of each finished part was written."""
    shards = study.config.cache.glob("activations/*/parts/*/*.h5")
    return {path.parent.name: path.stat().st_mtime_ns for path in shards if path.parent.suffix != ".building"}


def command(*arguments: str) -> tuple[int, str]:
    """Exit status and output of ``affectlens``, run in this process."""
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, list(arguments))
    return (1 if result.exception else 0), result.output + str(result.exception or "")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-777])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (flip, "has other bytes than were written"),
        (truncate, r"has \d+ bytes instead of \d+"),
        (Path.unlink, "is gone"),
    ],
)
def test_verify_names_what_is_damaged_and_a_rerun_repairs_just_that(study, undisturbed, damage, fault):
    status, printed = command("verify", study.source)
    assert status == 0
    assert printed.count("sound: ") == 2
    before = stamps(study)
    damage(study.folder(ActivationsStage) / "parts" / "00003" / "activations.h5")
    status, printed = command("verify", study.source)
    assert status == 1
    assert "1 damaged file" in printed
    assert re.search(rf"parts/00003/activations\.h5 {fault}", printed)
    outcomes = cached(study)
    assert outcomes["corpus"].state == "cached"
    assert result_bytes(outcomes["activations"].folder) == undisturbed
    after = stamps(study)
    assert [part for part in before if before[part] != after[part]] == ["00003"]
    assert command("verify", study.source)[0] == 0


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_rerun_sees_what_is_missing_without_being_told(study, undisturbed, damage):
    before, told = stamps(study), []
    damage(study.folder(ActivationsStage) / "parts" / "00003" / "activations.h5")

    class Reporter(runner.Reporter):
        def waiting(self, message: str) -> None:
            told.append(message)

    assert result_bytes(cached(study, reporter=Reporter())["activations"].folder) == undisturbed
    assert [part for part, stamp in stamps(study).items() if before[part] != stamp] == ["00003"]
    assert len(told) == 1
    assert "parts/00003/activations.h5" in told[0]
    assert told[0].endswith("computing just that again")


@pytest.mark.parametrize("name", ["index.json", "activations.h5", "metrics.json", "manifest.json"])
def test_a_damaged_merge_costs_no_part(study, undisturbed, name):
    before = stamps(study)
    file = study.folder(ActivationsStage) / name
    file.write_bytes(b"#" + file.read_bytes()[1:])
    status, printed = command("verify", study.source)
    assert status == 1
    assert name in printed
    assert result_bytes(cached(study)["activations"].folder) == undisturbed
    assert stamps(study) == before


def test_a_lost_record_of_a_part_costs_just_that_part(study, undisturbed):
    before = stamps(study)
    (study.folder(ActivationsStage) / "parts" / "00002" / "part.json").unlink()
    assert "parts/00002/part.json is gone" in command("verify", study.source)[1]
    assert result_bytes(cached(study)["activations"].folder) == undisturbed
    assert [part for part, stamp in stamps(study).items() if before[part] != stamp] == ["00002"]


def test_a_damaged_stage_without_parts_is_computed_again_alone(study, undisturbed):
    before = stamps(study)
    flip(study.folder(CorpusStage) / "documents.jsonl")
    status, printed = command("verify", study.source)
    assert status == 1 and "documents.jsonl" in printed
    outcomes = cached(study)
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "corpus": "computed",
        "activations": "cached",
    }
    assert stamps(study) == before
    assert command("verify", study.source)[0] == 0


def stop_after(monkeypatch, parts: int) -> None:
    """The run ends by a full disk when so many parts are finished."""
    original, done = ActivationsStage.run_part, []

    def run_part(self, part, out, progress):
        if len(done) == parts:
            raise OSError(28, "No space left on device")
        original(self, part, out, progress)
        done.append(part)

    monkeypatch.setattr(ActivationsStage, "run_part", run_part)


def test_an_unfinished_result_is_verified_and_repaired_too(study, undisturbed, monkeypatch):
    study.config.cache.rename(study.config.cache.with_name("undisturbed"))
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(OSError, match="No space left"):
            cached(study)
    status, printed = command("verify", study.source)
    assert status == 0
    assert "unfinished, 4 parts sound" in printed
    before = stamps(study)
    flip(Workspace(study, ActivationsStage).parts / "00001" / "activations.h5")
    assert "parts/00001/activations.h5 has other bytes" in command("verify", study.source)[1]
    assert runner.inspect(study, ActivationsStage).parts_done == 3
    assert result_bytes(cached(study)["activations"].folder) == undisturbed
    assert [part for part, stamp in before.items() if stamps(study)[part] != stamp] == ["00001"]


@pytest.mark.parametrize("step", [0, 1, 2])
def test_setting_aside_may_be_interrupted_anywhere(study, undisturbed, monkeypatch, step):
    shard = study.folder(ActivationsStage) / "parts" / "00003" / "activations.h5"
    truncate(shard)
    replace, calls = os.replace, []

    def killed(source, target):
        calls.append(source)
        if len(calls) > step:
            raise KeyboardInterrupt
        replace(source, target)

    space = Workspace(study, ActivationsStage)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        if step < 2:
            with pytest.raises(KeyboardInterrupt):
                verify.set_aside(space, ActivationsStage, contents=False)
        else:
            verify.set_aside(space, ActivationsStage, contents=False)
    assert result_bytes(cached(study)["activations"].folder) == undisturbed


def test_two_runs_may_repair_at_once(study, undisturbed, tmp_path):
    truncate(study.folder(ActivationsStage) / "parts" / "00003" / "activations.h5")
    both = [start(study, tmp_path / name) for name in ("one", "two")]
    for child in both:
        child.join(240)
    assert [child.exitcode for child in both] == [0, 0], (tmp_path / "one").read_text() + (tmp_path / "two").read_text()
    assert result_bytes(study.folder(ActivationsStage)) == undisturbed


def test_five_runs_at_once_share_the_work(study, undisturbed, tmp_path):
    study.config.cache.rename(study.config.cache.with_name("undisturbed"))
    every = [start(study, tmp_path / str(number)) for number in range(5)]
    for child in every:
        child.join(240)
    assert [child.exitcode for child in every] == [0] * 5, [path.read_text() for path in tmp_path.glob("[0-4]")]
    assert result_bytes(study.folder(ActivationsStage)) == undisturbed
    space = Workspace(study, ActivationsStage)
    assert not space.partial.exists() and not space.locks.exists()
    assert command("verify", study.source)[0] == 0


def test_a_clock_that_goes_back_changes_nothing_but_the_time_of_day(study, undisturbed, monkeypatch):
    study.config.cache.rename(study.config.cache.with_name("undisturbed"))
    clock = itertools.count(2_000_000_000, -3600)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: float(next(clock)))
        folder = cached(study)["activations"].folder
    assert result_bytes(folder) == undisturbed
    record = manifest.read(folder)
    assert record is not None
    assert all(run["seconds"] >= 0 for run in (record["run"], *record["parts"].values()))
    assert {outcome.state for outcome in cached(study).values()} == {"cached"}
    assert command("verify", study.source)[0] == 0


def test_a_model_changed_behind_the_same_path_is_noticed(
    study_values, write_study, model_folder, tmp_path, monkeypatch
):
    """Parts computed before stay; the part in progress is not kept, for it may hold either model's values."""
    import shutil

    folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))
    study_values["model"]["name"] = str(folder)
    study = Study.load(write_study(study_values))
    original = ActivationsStage.run_part
    config = (folder / "config.json").read_text(encoding="utf-8")

    def run_part(self, part, out, progress):
        if part.name == "00002":
            changed = config.replace('"hidden_act"', '"note": 1, "hidden_act"')
            (folder / "config.json").write_text(changed, encoding="utf-8")
        original(self, part, out, progress)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationsStage, "run_part", run_part)
        with pytest.raises(UserError, match=r"the model's files .* changed since the run began"):
            cached(study)
    assert Workspace(study, ActivationsStage).finished() == ["00000", "00001"]
    changed = Study.load(write_study(study_values))
    assert changed.fingerprint(ActivationsStage) != study.fingerprint(ActivationsStage)
    (folder / "config.json").write_text(config, encoding="utf-8")
    before = stamps(study)
    assert sorted(before) == ["00000", "00001"]
    assert cached(Study.load(write_study(study_values)))["activations"].state == "computed"
    assert {part: stamps(study)[part] for part in before} == before


def test_a_disk_too_small_is_refused_before_the_first_byte(study, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("usage", "total used free")(10**9, 0, 10**5))
    with pytest.raises(UserError, match=r"stage `activations`: about .* needed in .*, but 100 kB are free; free space"):
        cached(study)
    assert not list(study.config.cache.rglob("*.h5"))
    assert not list(study.config.cache.rglob("*.building"))


def test_a_disk_that_fills_up_costs_no_finished_part(study, undisturbed, tmp_path):
    """A real limit of the system on the size of files, hit in the middle of a shard."""
    study.config.cache.rename(study.config.cache.with_name("undisturbed"))
    child = start(study, tmp_path / "said", file_limit=100_000)
    child.join(240)
    assert child.exitcode == 1
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert "activations.h5: the disk refuses the shard (File too large); free space or set `cache:`" in said
    assert "Traceback" not in said
    assert result_bytes(cached(study)["activations"].folder) == undisturbed


def test_a_dry_run_tells_the_cost_and_writes_nothing(study, undisturbed):
    folder = study.folder(ActivationsStage)
    rows = json.loads((folder / "index.json").read_text(encoding="utf-8"))["rows"]
    written = sum(len(data) for data in undisturbed.values())

    def row() -> plan.Estimate:
        known = partial(standing, study), partial(rates.of_stage, study), runner.tokenizer_of(study)
        return plan.plan(study, [ActivationsStage], *known).rows[0]

    assert row() == plan.Estimate("activations", done=True, seconds=0.0)
    study.config.cache.rename(study.config.cache.with_name("undisturbed"))
    status, printed = command("run", study.source, "--dry-run", "--stage", "activations")
    assert status == 0
    assert f"activations  missing 7 parts: {rows:,} tokens, about " in printed
    assert " are free in " in printed
    assert not list(study.config.cache.rglob("*.h5"))
    cost = row()
    assert (cost.parts, cost.amount) == ((7, 7), f"{rows:,} tokens")
    assert 0.7 * written < cost.bytes < 1.4 * written
    assert cost.seconds is not None
    assert 0 < cost.seconds < 600


def test_many_texts_are_counted_by_a_sample(study):
    documents, tokenizer = plan.outlook(study).documents, load_tokenizer(study.config.model, study.config.cache)
    tokens, exact = count_tokens(tokenizer, documents)
    assert exact
    sampled, exact = count_tokens(tokenizer, documents, sample=10)
    assert not exact
    assert sampled == pytest.approx(tokens, rel=0.1)


def test_the_order_of_parts_changes_no_byte(study, undisturbed):
    study.config.cache.rename(study.config.cache.with_name("undisturbed"))
    cached_corpus = runner.run(study, only=["corpus"])
    assert cached_corpus[0].state == "computed"
    shuffled = list(runner.parts_of(study, ActivationsStage))
    random.Random(0).shuffle(shuffled)
    for part in shuffled:
        parts.claim(study, ActivationsStage, {part.name}, "cpu")
    assert result_bytes(cached(study)["activations"].folder) == undisturbed


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_always_ends_with_the_same_bytes(study_values, write_study, tmp_path, kills):
    """``kill -9`` at moments spread over the whole run, each followed by a run that goes on."""
    study_values["activations"]["texts_per_part"] = 4
    study = Study.load(write_study(study_values))
    expected, length = None, 0.0
    moments = random.Random(0)
    interrupted = 0
    for attempt in range(kills + 1):
        child = start(study, tmp_path / "said")
        began = time.monotonic()
        if expected is not None:
            child.join(moments.uniform(0, length))
            child.kill()
        child.join()
        kept = stamps(study)
        if expected is None:
            assert child.exitcode == 0
            length = time.monotonic() - began
            expected = result_bytes(study.folder(ActivationsStage))
        else:
            interrupted += child.exitcode == -signal.SIGKILL
            folder = cached(study)["activations"].folder
            assert result_bytes(folder) == expected, attempt
            after = stamps(study)
            assert {part: after[part] for part in kept} == kept  # what was finished was not computed again
            assert command("verify", study.source)[0] == 0
        study.config.cache.rename(study.config.cache.with_name(f"attempt-{attempt}"))
    assert interrupted >= kills // 2


@pytest.mark.slow
def test_a_whole_study_that_is_killed_again_and_again_ends_with_the_same_bytes(study_values, write_study, tmp_path):
    """``kill -9`` at random moments of one study, each run going on where the last one was killed."""
    values = {
        **study_values,
        "sae": {"width": 64, "k": 8, "steps": 60, "batch": 64, "checkpoint_steps": 5, "health_rows": 200,
                "health_texts": 1},
        "match": {"permutations": 19, "random_saes": 1, "contexts": 1},
        "directions": {"permutations": 19, "stability_draws": 5},
    }  # fmt: skip
    undisturbed = Study.load(write_study({**values, "cache": str(tmp_path / "undisturbed")}, "undisturbed.yaml"))
    study = Study.load(write_study(values))
    stages = ",".join(stage.name for stage in study.stages)
    began = time.monotonic()
    child = start(undisturbed, tmp_path / "said", stages=stages)
    child.join()
    assert child.exitcode == 0
    length, moments, killed = time.monotonic() - began, random.Random(0), 0
    while True:
        child = start(study, tmp_path / "said", stages=stages)
        if killed < KILLS:
            child.join(moments.uniform(0, length / 4))
            child.kill()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL, (tmp_path / "said").read_text()
        killed += 1
    assert killed >= KILLS // 4
    for stage in study.stages:
        assert result_bytes(study.folder(stage)) == result_bytes(undisturbed.folder(stage)), stage.name
        assert not Workspace(study, stage).locks.exists()
        assert not Workspace(study, stage).partial.exists()
    assert command("verify", study.source)[0] == 0
