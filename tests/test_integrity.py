"""What a result was made of and whether it still is: records, inputs, and disks that refuse a write."""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from affectlens import files
from affectlens.cli import app
from affectlens.errors import DamagedResult, PartFailed, UnreadableResult, UserError
from affectlens.run import manifest, runner, verify
from affectlens.run.workers import Workers
from affectlens.run.workspace import Workspace
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.study import Study
from safetensors import SafetensorError
from typer.testing import CliRunner


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a result but the records of how it was made, which hold times."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("manifest.json", "part.json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return (1 if result.exception else 0), result.output + str(result.exception or "")


def compute(study: Study, **options) -> dict[str, runner.Outcome]:
    return {outcome.stage: outcome for outcome in runner.run(study, only=["activations"], **options)}


@pytest.fixture
def study(study_values, write_study) -> Study:
    return Study.load(write_study(study_values))


@pytest.fixture
def whole(study) -> dict[str, bytes]:
    """The bytes of finished activations, which stay where they are."""
    return bytes_of(compute(study)["activations"].folder)


class TestRecords:
    @pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "null", '{"files": [1]}', "[" * 100_000])
    @pytest.mark.parametrize("name", ["manifest.json", "metrics.json", "parts/00001/part.json"])
    def test_of_another_shape_are_named_and_repaired(self, study, whole, name, text):
        if name == "metrics.json" and text == "{}":
            pytest.skip("a stage may have no metrics")
        path = study.folder(ActivationsStage) / name
        path.write_text(text)
        if "part" not in name:
            assert runner.inspect(study, ActivationsStage).state == "damaged"
            assert command("status", study.source)[0] == 0
        status, printed = command("verify", study.source)
        assert status == 1
        assert str(path) in printed
        assert bytes_of(compute(study)["activations"].folder) == whole
        assert command("verify", study.source)[0] == 0

    def test_a_changed_value_in_a_record_is_seen(self, study, whole):
        folder = study.folder(ActivationsStage)
        record = json.loads((folder / "manifest.json").read_text())
        record["run"]["seconds"] += 1
        (folder / "manifest.json").write_text(json.dumps(record))
        with pytest.raises(DamagedResult, match="other bytes than were written"):
            manifest.read(folder)

    def test_a_lost_manifest_costs_no_part(self, study, whole):
        folder = study.folder(ActivationsStage)
        stamps = {path: path.stat().st_mtime_ns for path in folder.glob("parts/*/*.h5")}
        (folder / "manifest.json").unlink()
        assert bytes_of(compute(study)["activations"].folder) == whole
        assert {path: path.stat().st_mtime_ns for path in stamps} == stamps

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"error": 1}'])
    def test_the_record_of_a_failure_may_be_cut_short(self, study, text):
        failed = Workspace(study, CorpusStage).failed
        failed.mkdir(parents=True)
        (failed / "all.json").write_text(text)
        assert runner.inspect(study, CorpusStage).failures == {"all": "its record was cut short"}
        with pytest.raises(PartFailed, match="cut short"):
            runner.run(study, only=["corpus"])
        assert runner.run(study, only=["corpus"], mode="retry")[0].state == "computed"

    def test_files_that_nobody_recorded_are_named_and_change_nothing(self, study, whole):
        stray = study.folder(ActivationsStage) / "notes" / "mine.txt"
        stray.parent.mkdir()
        stray.write_text("x")
        status, printed = command("verify", study.source)
        assert status == 0
        assert str(stray) in printed
        assert stray.is_file()


class TestUnreadable:
    def test_is_told_and_not_thrown_away(self, study, whole, monkeypatch):
        folder = study.folder(CorpusStage)

        def refuse(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        space = Workspace(study, CorpusStage)
        faults = verify.damages(space, CorpusStage, contents=True, digest=refuse)
        assert faults
        assert not any(fault.certain for fault in faults)
        monkeypatch.setattr(verify, "file_digest", refuse)
        verify.set_aside(space, CorpusStage, contents=True)
        assert (folder / "manifest.json").is_file()

    def test_records_stop_a_run_with_one_sentence(self, study, whole, monkeypatch):
        original = Path.read_bytes

        def read(path):
            if path == study.folder(CorpusStage) / "manifest.json":
                raise OSError(errno.EIO, "Input/output error")
            return original(path)

        monkeypatch.setattr(Path, "read_bytes", read)
        with pytest.raises(UnreadableResult, match="Input/output error"):
            compute(study)
        monkeypatch.undo()
        assert {outcome.state for outcome in compute(study).values()} == {"cached"}


class TestInputs:
    def test_damaged_ones_are_computed_again_before_they_are_used(self, study, whole):
        documents = study.folder(CorpusStage) / "documents.jsonl"
        original = documents.read_bytes()
        Workspace(study, ActivationsStage).discard()
        documents.write_bytes(original.replace(b"e", b"a", 1))
        outcomes = compute(study)
        assert outcomes["corpus"].state == "computed"
        assert documents.read_bytes() == original
        assert bytes_of(outcomes["activations"].folder) == whole

    def test_results_of_other_bytes_are_named_and_computed_again(self, study, whole):
        space = Workspace(study, CorpusStage)
        record = manifest.read(space.final)
        assert record is not None
        documents = space.final / "documents.jsonl"
        documents.write_bytes(documents.read_bytes() + b"\n")
        record["files"]["documents.jsonl"] = files.file_digest(documents)
        record["sizes"]["documents.jsonl"] += 1
        manifest.write(space.final, record)
        assert verify.damages(space, CorpusStage, contents=True) == []
        status, printed = command("verify", study.source)
        assert status == 1
        assert "activations" in printed and "`corpus`" in printed
        assert compute(study)["activations"].state == "computed"
        assert command("verify", study.source)[0] == 0

    def test_files_of_the_users_that_change_meanwhile_are_refused(
        self, study_values, write_study, tmp_path, monkeypatch
    ):
        own = tmp_path / "own.jsonl"
        own.write_bytes(Path(study_values["corpus"]["neutral"]).read_bytes())
        study_values["corpus"]["neutral"] = str(own)
        study = Study.load(write_study(study_values))
        original = CorpusStage.run_part

        def run_part(self, part, out, progress):
            original(self, part, out, progress)
            own.write_bytes(own.read_bytes() + b"\n")

        with monkeypatch.context() as patch:
            patch.setattr(CorpusStage, "run_part", run_part)
            with pytest.raises(UserError, match="changed since the run began"):
                runner.run(study, only=["corpus"])
        assert Workspace(study, CorpusStage).finished() == []


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        [
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
            ImportError("lib.so: failed to map segment from shared object"),
            MemoryError(),
        ],
        ids=["disk", "torch", "loader", "memory"],
    )
    def test_of_the_world_are_not_held_against_a_part(self, study, fault, monkeypatch):
        def fail(*_):
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr(CorpusStage, "run_part", fail)
            with pytest.raises(type(fault)):
                runner.run(study, only=["corpus"])
        assert runner.inspect(study, CorpusStage).failures == {}
        assert runner.run(study, only=["corpus"])[0].state == "computed"

    @pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
    @pytest.mark.parametrize("nth", [1, 3, 8, 20])
    def test_at_any_write_cost_nothing_but_the_rerun(
        self, study_values, write_study, whole, study, call, nth, monkeypatch
    ):
        """The n-th fsync, rename or folder is refused once; the same command then gives the same bytes."""
        study_values["cache"] += f"-{call}-{nth}"
        again = Study.load(write_study(study_values, "again.yaml"))
        original, calls = getattr(os, call), [0]

        def refuse(*arguments, **options):
            calls[0] += 1
            if calls[0] == nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with suppress(OSError, UserError):
                compute(again)
        assert bytes_of(compute(again)["activations"].folder) == whole
        assert not list(again.config.cache.rglob(f"*{files.WRITING}"))
        assert command("verify", again.source)[0] == 0


def test_force_does_not_pull_the_folder_from_under_another_run(study):
    space = Workspace(study, CorpusStage)
    with space.lock("part-all", wait=True), pytest.raises(UserError, match="another run is working on 1 of its parts"):
        runner.run(study, only=["corpus"], mode="force")
    assert runner.run(study, only=["corpus"], mode="force")[0].state == "computed"


def test_an_interrupted_part_leaves_its_checkpoint_alone(study, whole, monkeypatch):
    space = Workspace(study, ActivationsStage)
    space.discard()
    monkeypatch.setattr(ActivationsStage, "checkpoint", "checkpoint")
    building = space.parts / "00001.building"
    (building / "checkpoint").mkdir(parents=True)
    (building / ".tmpKilled").write_bytes(b"half")
    (building / "sub").mkdir()
    seen = []
    original = ActivationsStage.run_part

    def run_part(self, part, out, progress):
        if part.name == "00001":
            seen.extend(path.name for path in out.iterdir())
            (out / "checkpoint").rmdir()
        original(self, part, out, progress)

    monkeypatch.setattr(ActivationsStage, "run_part", run_part)
    assert bytes_of(compute(study)["activations"].folder) == whole
    assert seen == ["checkpoint"]


def test_locks_of_a_run_that_was_killed_after_its_merge_are_cleared(study, whole):
    locks = Workspace(study, ActivationsStage).locks
    locks.mkdir()
    (locks / "part-00001.lock").touch()
    compute(study)
    assert not locks.exists()


class Unpicklable(Exception):
    def __init__(self, text: str, handle: object) -> None:
        super().__init__(text)
        self.handle = handle


def fail(how: str, send) -> None:
    """What a worker may do wrong outside of a part."""
    if how == "bug":
        raise ValueError("planted")
    if how == "unpicklable":
        raise Unpicklable("planted", lambda: None)
    if how == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")


@contextmanager
def pool():
    with Workers(fail) as workers:
        yield workers


def test_what_a_worker_raises_reaches_the_caller_as_itself():
    with pool() as workers:
        for how, kind in (
            ("bug", ValueError),
            ("unpicklable", RuntimeError),
            ("disk", OSError),
            ("memory", MemoryError),
        ):
            with pytest.raises(kind) as raised:
                workers.run([(how,)], lambda *_: None)
            if kind in (ValueError, RuntimeError):
                assert "planted" in str(raised.value)
                assert "test_integrity.py" in raised.value.__notes__[0]
