"""Tracking: what arrives in Weights & Biases, and that nothing of it can harm a study."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from affectlens.config import validate
from affectlens.errors import ConfigError
from affectlens.settings import TrackingConfig
from affectlens.tracking import interface as tracking
from affectlens.tracking import session as wandb_session
from affectlens.tracking.interface import Artifact, NullRun, Run
from wandb_offline import OfflineRun, read_runs
from wandb_server import API_KEY, WandbServer

FINGERPRINT = "0123456789abcdef" * 4
SETTINGS = {"k": 32, "lr": 1e-3, "emotions": ["joy", "dread"], "nested": {"layer": 15}}
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does: home and current folder stay empty, the process as it was, and nothing is left running."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_")) or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    before = _process_state()
    yield
    assert _process_state()[1:] == before[1:]
    assert list(home.rglob("*")) == []
    assert list(here.rglob("*")) == []
    assert helpers() == []
    for thread in threading.enumerate():
        if thread.name == "NetStatThr":  # it would print a traceback once it finds its helper process gone
            thread.join(0.5)
            assert not thread.is_alive()


def helpers() -> list[psutil.Process]:
    """W&B's helper processes that belong to this one."""
    children = psutil.Process().children()
    return [child for child in children if "wandb" in child.name() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "wandb"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What tracking told the user."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("affectlens.tracking")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def start(directory: Path, stage: str = "match", **config: Any) -> Run:
    before = _process_state()
    run = tracking.start(
        TrackingConfig(**config),
        study="tiny",
        stage=stage,
        fingerprint=FINGERPRINT,
        settings=SETTINGS,
        directory=directory,
    )
    assert _process_state() == before
    return run


def _process_state() -> tuple[Any, ...]:
    """What W&B likes to change for the whole process."""
    return dict(os.environ), sys.excepthook, sys.exit, signal.getsignal(signal.SIGINT), logging.getLogger().handlers[:]


def only(directory: Path) -> OfflineRun:
    (run,) = read_runs(directory)
    return run


def files_of(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their path inside it."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def send_everything(run: Run, folder: Path) -> None:
    """One of each kind of thing that a stage may send."""
    folder.mkdir(exist_ok=True)
    (folder / "a b.bin").write_bytes(b"weights")
    (folder / "inner").mkdir(exist_ok=True)
    (folder / "inner" / "c.json").write_text("{}")
    for step in range(3):
        run.log({"match/loss": 1 / (step + 1)}, step=step * 10)
    run.summary({"match/auroc": 0.91})
    run.table("match/top", ["feature", "concept", "auroc"], [[np.int64(7), "joy", np.float32(0.5)], [8, "dread", 1]])
    run.line("match/dose", ["x", "y", "who"], [[0, 1.0, "joy"], [1, 2.0, "dread"]], x="x", y="y", series="who")
    run.heatmap("match/map", np.array([[1.0, math.nan], [3.0, 4.0]]), rows=["0", "1"], columns=["joy", "dread"])
    run.artifact(Artifact("features", "match", files_of(folder), metadata={"count": np.int64(2)}))


def check_everything(config: dict[str, Any], values: Any, summary: dict[str, Any], files: dict[str, bytes]) -> None:
    """That all of :func:`send_everything` is there, however it travelled."""
    assert values("match/loss") == [1.0, 0.5, 1 / 3]
    assert {key: config[key] for key in SETTINGS} == SETTINGS
    assert config["fingerprint"] == FINGERPRINT
    assert summary["match/auroc"] == 0.91
    table = json.loads(files[_path(values, "match/top")])
    assert table == {"columns": ["feature", "concept", "auroc"], "data": [[7, "joy", 0.5], [8, "dread", 1]]}
    chart = config["_wandb"]["visualize"]["match/dose"]["panel_config"]
    assert chart["fieldSettings"] == {"x": "x", "y": "y", "stroke": "who"}
    dose = json.loads(files[_path(values, "match/dose_table")])
    assert dose == {"columns": ["x", "y", "who"], "data": [[0, 1.0, "joy"], [1, 2.0, "dread"]]}
    figure = json.loads(files[_path(values, "match/map")])
    heat = figure["data"][0]
    assert figure["layout"]["yaxis"]["autorange"] == "reversed"
    assert (heat["z"], heat["x"], heat["y"]) == ([[1.0, None], [3.0, 4.0]], ["joy", "dread"], ["0", "1"])


def _path(values: Any, key: str) -> str:
    return values(key)[-1]["path"]


def unwrapped(config: dict[str, Any]) -> dict[str, Any]:
    """A config as the server keeps it, where every value is wrapped."""
    return {key: item["value"] for key, item in config.items()}


def sync(folder: Path, server: WandbServer) -> None:
    """`wandb sync`, as a user would type it."""
    environment = {**os.environ, **server.environment(), "WANDB_ERROR_REPORTING": "false", "HOME": str(folder)}
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


# What arrives


def test_an_offline_run_holds_all_that_was_sent(directory: Path, tmp_path: Path) -> None:
    with start(directory, tags=("pilot", "gpu")) as run:
        assert run.active
        send_everything(run, tmp_path / "result")
    read = only(directory)
    assert (read.name, read.group, read.job_type, read.project) == ("tiny/match", "tiny", "match", "affectlens")
    assert (read.tags, read.exit_code) == (["pilot", "gpu"], 0)
    assert (read.values("step")[:3], read.x_axes) == ([0, 10, 20], {"*": "step"})
    check_everything(read.config, read.values, read.summary, read.files)
    artifact = read.artifacts["features"]
    assert (artifact.type, artifact.aliases, artifact.input) == ("match", ["latest"], False)
    assert artifact.metadata == {"count": 2, "fingerprint": FINGERPRINT, "uses": []}
    assert artifact.entries == {  # where they lie: nothing was copied
        name: str(tmp_path / "result" / name) for name in ("a b.bin", "inner/c.json")
    }


def test_an_online_run_is_sent_whole(directory: Path, tmp_path: Path, server: WandbServer, warnings: list[str]) -> None:
    with start(directory, mode="online", project="emotions", entity="lab", tags=("pilot",)) as run:
        send_everything(run, tmp_path / "result")
    ((identity, sent),) = server.runs.items()
    assert identity == tracking.run_id("tiny", "match", FINGERPRINT)
    assert {key: sent.fields[key] for key in ("project", "groupName", "jobType", "displayName", "tags")} == {
        "project": "emotions",
        "groupName": "tiny",
        "jobType": "match",
        "displayName": "tiny/match",
        "tags": ["pilot"],
    }
    assert (sent.complete, sent.exit_code) == (True, 0)
    check_everything(unwrapped(sent.config), sent.values, sent.summary, sent.files)
    artifact = server.artifact("features")
    assert (artifact.committed, artifact.made_by, artifact.type) == (True, identity, "match")
    assert artifact.files == {"a b.bin": b"weights", "inner/c.json": b"{}"}
    assert (server.unknown, warnings) == ([], [])


def test_a_synced_offline_run_arrives_like_an_online_one(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(directory) as run:
        send_everything(run, tmp_path / "result")
    with WandbServer() as server:
        sync(only(directory).folder, server)
    ((identity, sent),) = server.runs.items()
    assert identity == tracking.run_id("tiny", "match", FINGERPRINT)
    assert (sent.fields["groupName"], sent.fields["jobType"], sent.exit_code) == ("tiny", "match", 0)
    check_everything(unwrapped(sent.config), sent.values, sent.summary, sent.files)
    assert server.artifact("features").files == {"a b.bin": b"weights", "inner/c.json": b"{}"}
    assert server.artifact("features").committed


def make_chain(directory: Path, shards: Path, **config: Any) -> None:
    """Activations, and an SAE made from them."""
    shards.mkdir(exist_ok=True)
    (shards / "0 %.h5").write_bytes(b"12345")
    activations = Artifact("activations-1", "activations", files_of(shards), reference=True, digests={"0 %.h5": "5ha"})
    (shards.parent / "sae.bin").write_bytes(b"weights")
    sae = Artifact("sae-2", "sae", {"inner/sae.bin": shards.parent / "sae.bin"})
    with start(directory, "activations", **config) as run:
        run.artifact(activations)
    with start(directory, "sae", **config) as run:
        run.artifact(sae, uses=[activations])


def check_chain(server: WandbServer, shards: Path) -> None:
    """One version of each, nothing of the activations uploaded, and an arrow between them."""
    maker, consumer = (tracking.run_id("tiny", stage, FINGERPRINT) for stage in ("activations", "sae"))
    activations, sae = server.artifact("activations-1"), server.artifact("sae-2")
    assert {each.name: each.version for each in server.artifacts} == {"activations-1": 0, "sae-2": 0}
    assert (activations.committed, activations.made_by, activations.used_by) == (True, maker, [consumer])
    assert (sae.committed, sae.made_by, sae.used_by) == (True, consumer, [])
    assert sae.metadata["uses"] == ["activations-1"]
    assert (activations.files, sae.files) == ({}, {"inner/sae.bin": b"weights"})
    entry = activations.manifest["contents"]["0 %.h5"]
    assert (entry["ref"], entry["size"], entry["digest"]) == (f"file://{shards / '0 %.h5'}", 5, "5ha")


def test_artifacts_form_a_lineage(directory: Path, tmp_path: Path, server: WandbServer, warnings: list[str]) -> None:
    for _ in range(2):  # the second time as after --mode force: nothing is there twice
        make_chain(directory, tmp_path / "shards", mode="online")
    check_chain(server, tmp_path / "shards")
    assert (server.unknown, warnings) == ([], [])


def test_the_lineage_of_offline_runs_arrives_when_they_are_synced(directory: Path, tmp_path: Path) -> None:
    make_chain(directory, tmp_path / "shards")
    runs = read_runs(directory)
    assert [(name, each.input) for run in runs for name, each in run.artifacts.items()] == [
        ("activations-1", False),
        ("activations-1", True),
        ("sae-2", False),
    ]
    with WandbServer() as server:
        for run in runs:
            sync(run.folder, server)
        check_chain(server, tmp_path / "shards")


def test_an_input_whose_own_run_was_never_sent_is_still_an_arrow(
    directory: Path, tmp_path: Path, server: WandbServer, warnings: list[str]
) -> None:
    (tmp_path / "a.bin").write_bytes(b"a")
    used, made = (Artifact(name, "sae", {"a.bin": tmp_path / "a.bin"}) for name in ("used", "made"))
    with start(directory, mode="online") as run:
        run.artifact(made, uses=[used])
        assert run.active
    assert (server.artifact("made").committed, warnings) == (True, [])
    assert server.artifact("used").used_by == [tracking.run_id("tiny", "match", FINGERPRINT)]


def test_a_resumed_stage_goes_on_in_the_same_run(directory: Path, server: WandbServer) -> None:
    with start(directory, mode="online") as run:
        run.log({"sae/loss": 2.0}, step=100)
    with start(directory, mode="online") as run:
        run.log({"sae/loss": 1.0}, step=50)  # from the last checkpoint, behind what was logged before
    (sent,) = server.runs.values()
    assert (sent.values("sae/loss"), sent.values("step")) == ([2.0, 1.0], [100, 50])


def test_the_id_depends_on_study_stage_and_fingerprint_alone(directory: Path) -> None:
    for _ in range(2):
        start(directory).finish()
    first, second = read_runs(directory)
    assert first.id == second.id
    assert first.folder != second.folder
    ids = {tracking.run_id(*key) for key in [("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c"), ("y", "b", "c")]}
    assert len(ids | {tracking.run_id("ab", "", "c"), tracking.run_id("a", "bc", "")}) == 6


def test_metrics_keep_their_values(directory: Path) -> None:
    sent = {
        "numpy": np.float32(0.5),
        "integer": np.int64(2**53 - 1),
        "zero_d": np.array(3.0),
        "nan": math.nan,
        "inf": -math.inf,
        "yes": True,
        "no": np.bool_(False),
        "deep": {"er": {"loss": 1}},
    }
    with start(directory) as run:
        run.log(sent)
        run.summary({"best": {"nan": np.float64("nan"), "layer": np.int32(15)}})
    read = only(directory)
    (row,) = read.history
    assert math.isnan(row["nan"])
    expected = {"numpy": 0.5, "integer": 2**53 - 1, "zero_d": 3.0, "inf": -math.inf, "deep/er/loss": 1}
    assert {key: row[key] for key in expected} == expected
    assert [(row[key], type(row[key])) for key in ("yes", "no")] == [(1, int), (0, int)]
    assert read.summary["best/layer"] == 15
    assert read.summary["best/nan"] is None  # so W&B writes it


def test_torch_scalars_are_numbers(directory: Path) -> None:
    torch = pytest.importorskip("torch")
    with start(directory) as run:
        run.log({"half": torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), "count": torch.tensor(3)})
    assert (only(directory).values("half"), only(directory).values("count")) == ([0.5], [3])


def test_no_row_is_dropped_when_steps_run_backwards(directory: Path) -> None:
    with start(directory) as run:
        for step in (5, 3, 3, 9):
            run.log({"part/loss": step}, step=step)
    assert only(directory).values("part/loss") == only(directory).values("step") == [5, 3, 3, 9]


def test_tables_take_what_stages_have(directory: Path) -> None:
    rows = [
        [1, np.float64("nan"), "a", True, None, [1, 2], 3],
        [2.5, np.inf, None, np.False_, None, {"k": np.int8(1)}, "three"],
    ]
    with start(directory) as run:
        run.table("t", list("abcdefg"), rows)
        run.table("empty", ["a"], [])
    read = only(directory)
    assert read.media("t")["data"] == [
        [1, None, "a", True, None, "[1, 2]", "3"],
        [2.5, None, None, False, None, '{"k": 1}', "three"],
    ]
    assert read.media("empty") == {"columns": ["a"], "data": []}


def test_a_table_longer_than_wandb_keeps_is_cut_with_a_word(
    directory: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setattr(tracking, "TABLE_ROWS", 2)
    with start(directory) as run:
        run.table("t", ["a"], [[1], [2], [3]])
    assert only(directory).media("t")["data"] == [[1], [2]]
    assert "the first 2 of the 3 rows of table t" in warnings[0]


def test_files_of_one_name_in_different_folders_are_all_kept(
    directory: Path, tmp_path: Path, warnings: list[str]
) -> None:
    for name in ("one", "two"):
        (tmp_path / "parts" / name).mkdir(parents=True)
        (tmp_path / "parts" / name / "part.bin").write_text(name)
    with start(directory) as run:
        run.artifact(Artifact("parts", "hdf5", files_of(tmp_path / "parts")))
        run.artifact(Artifact("places", "hdf5", files_of(tmp_path / "parts"), reference=True))
    assert warnings == []
    for artifact in only(directory).artifacts.values():
        assert set(artifact.entries) == {"one/part.bin", "two/part.bin"}


def test_an_error_in_the_stage_passes_through_and_marks_the_run(directory: Path) -> None:
    with pytest.raises(ZeroDivisionError), start(directory):
        _ = 1 / 0
    assert only(directory).exit_code == 1


# What stays away


@pytest.mark.parametrize(("configured", "asked"), [("disabled", None), ("online", "disabled"), ("offline", "disabled")])
def test_disabled_does_not_even_import_wandb(directory: Path, configured: str, asked: str | None) -> None:
    code = f"""
import sys
from pathlib import Path
from affectlens import settings
from affectlens.tracking import interface as tracking, session as wandb_session
with tracking.start(settings.TrackingConfig(mode={configured!r}), study="s", stage="t", fingerprint="f", settings={{}},
                    directory=Path({str(directory)!r})) as run:
    assert type(run) is tracking.NullRun and not run.active
    run.log({{"a": 1}}); run.summary({{"a": 1}}); run.table("t", ["a"], [[1]]); run.heatmap("h", [[1]], ["r"], ["c"])
    run.line("l", ["x", "y"], [[1, 2]], x="x", y="y"); run.artifact(tracking.Artifact("a", "b", {{}}))
assert not {{"wandb", "plotly"}} & set(sys.modules)
"""
    environment = {**os.environ, **({"WANDB_MODE": asked} if asked else {}), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert not directory.exists()


def test_wandb_mode_can_lower_the_mode_and_never_raise_it(
    directory: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    start(directory, mode="online").finish()
    monkeypatch.setenv("WANDB_MODE", "online")
    start(directory, mode="offline").finish()
    assert (len(read_runs(directory)), server.operations, warnings) == (2, [], [])


def test_variables_of_other_runs_do_not_leak_in(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"RUN_ID": "other", "PROJECT": "other", "NAME": "other", "RUN_GROUP": "other", "SWEEP_ID": "other"}
    for name, value in others.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    start(directory).finish()
    read = only(directory)
    assert (read.id, read.project, read.name, read.group) == (
        tracking.run_id("tiny", "match", FINGERPRINT),
        "affectlens",
        "tiny/match",
        "tiny",
    )


def test_nothing_is_said_about_the_machine(directory: Path, server: WandbServer) -> None:
    start(directory, mode="online").finish()
    (sent,) = server.runs.values()
    assert set(sent.files) <= {"config.yaml", "wandb-summary.json"}
    assert sent.fields["program"] == "affectlens"
    said = json.dumps([variables for _, variables in server.operations]) + repr(sent.files)
    for secret in (socket.gethostname(), str(REPOSITORY), sys.argv[0], API_KEY):
        assert secret not in said


def test_a_missing_key_is_never_asked_for(directory: Path) -> None:
    """At a terminal W&B would show a prompt; here the run is kept offline and the warning names the remedy."""
    code = f"""
from pathlib import Path
from affectlens import settings
from affectlens.tracking import interface as tracking, session as wandb_session
run = tracking.start(settings.TrackingConfig(mode="online"), study="s", stage="t", fingerprint="f", settings={{}},
                     directory=Path({str(directory)!r}))
run.finish()
print("went on")
"""
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    said = _read_terminal(master, seconds=30)
    assert process.wait(timeout=5) == 0, said
    assert "went on" in said
    assert said.count("WANDB_API_KEY") == 1
    assert len(read_runs(directory)) == 1


def _read_terminal(master: int, seconds: float) -> str:
    said, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if not select.select([master], [], [], 0.2)[0]:
            continue
        try:
            said += os.read(master, 4096)
        except OSError:  # the other end was closed: the process is over
            break
    os.close(master)
    return said.decode()


# What may go wrong


def _refusing(status: int) -> Any:
    def prepare(server: WandbServer) -> None:
        server.refuse = status

    return prepare


@pytest.mark.parametrize(
    "prepare", [_refusing(500), _refusing(401), WandbServer.close], ids=["500", "401", "closed port"]
)
def test_a_server_that_refuses_gives_an_offline_run(
    directory: Path, server: WandbServer, warnings: list[str], prepare: Any
) -> None:
    prepare(server)
    began = time.monotonic()
    with start(directory, mode="online", timeout=1) as run:
        run.log({"a": 1.0})
    assert time.monotonic() - began < 6
    read = only(directory)
    assert (read.values("a"), read.exit_code) == ([1.0], 0)
    (warning,) = warnings
    assert "the server cannot be used" in warning
    assert f"`wandb sync {read.folder}`" in warning


def test_a_server_that_never_answers_gives_an_offline_run(
    directory: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        began = time.monotonic()
        start(directory, mode="online", timeout=1).finish()
        assert time.monotonic() - began < 6
    assert len(read_runs(directory)) == len(warnings) == 1


@pytest.mark.parametrize(
    ("when", "lose"),
    [
        ("before anything is sent", WandbServer.close),
        ("after a table", WandbServer.close),
        ("before the end", WandbServer.close),
        ("before the end", _refusing(500)),
    ],
    ids=["gone at once", "gone after a table", "gone before the end", "500 before the end"],
)
def test_a_server_lost_on_the_way_costs_seconds_and_no_data(
    directory: Path,
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
    when: str,
    lose: Any,
) -> None:
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setattr(wandb_session, "CLOSE_LIMIT_S", 0.5)
    run = start(directory, mode="online", timeout=3)
    assert len(server.runs) == 1
    began = time.monotonic()
    if when == "after a table":
        run.table("first", ["a"], [[1]])
    if when != "before the end":
        lose(server)
    send_everything(run, tmp_path / "result")
    if when == "after a table":
        file = {"a b.bin": tmp_path / "result" / "a b.bin"}
        run.artifact(Artifact("last", "match", file), uses=[Artifact("earlier", "match", file)])
    lose(server)
    run.finish()
    assert time.monotonic() - began < 9
    read = only(directory)
    check_everything(read.config, read.values, read.summary, read.files)
    assert set(read.artifacts["features"].entries) == {"a b.bin", "inner/c.json"}
    assert (when == "after a table") == ("last" in read.artifacts) == ("first" in read.summary)
    assert (read.id, read.exit_code) == (tracking.run_id("tiny", "match", FINGERPRINT), 0)
    (warning,) = warnings
    assert f"`wandb sync {read.folder}`" in warning


def test_a_helper_process_that_hangs_is_ended(
    directory: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setattr(wandb_session, "CLOSE_LIMIT_S", 1.0)
    run = start(directory, timeout=1)
    (helper,) = helpers()
    helper.suspend()
    began = time.monotonic()
    run.log({"a": 1})
    run.finish()
    assert time.monotonic() - began < 1 + 1 + 2 * 1 + 2
    assert (run.active, len(warnings)) == (False, 1)


def _boom(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("boom\nin two lines")


def _exit(*args: Any, **kwargs: Any) -> Any:
    raise SystemExit(3)


@pytest.mark.parametrize(("where", "failure"), [("init", _boom), ("init", _exit), ("Settings", _boom)])
def test_wandb_failing_at_the_start_gives_a_null_run(
    directory: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str], where: str, failure: Any
) -> None:
    import wandb

    monkeypatch.setattr(wandb, where, failure)
    with start(directory) as run:
        send_everything(run, directory / "result")
    assert type(run) is NullRun
    (warning,) = warnings
    assert "tiny/match is not tracked (RuntimeError: " in warning
    assert "\n" not in warning


def test_wandb_missing_gives_a_null_run(directory: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert type(start(directory)) is NullRun
    assert "ModuleNotFoundError" in warnings[0]


@pytest.mark.parametrize(
    "where", ["Table", "Artifact.add_file", "Plotly", "plot.line", "Run.log", "Run.log_artifact", "Run.finish"]
)
def test_wandb_failing_later_ends_the_tracking_with_one_warning(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str], where: str
) -> None:
    import wandb

    run = start(directory)
    owner, _, name = where.rpartition(".")
    with monkeypatch.context() as patch:
        patch.setattr(getattr(wandb, owner) if owner else wandb, name, _boom)
        send_everything(run, tmp_path / "result")
        run.finish()
    assert not run.active
    (warning,) = warnings
    assert "RuntimeError: boom in two lines" in warning
    warnings.clear()
    with start(directory, "compare") as run:
        run.log({"a": 1})
    assert read_runs(directory)[-1].values("a") == [1]
    assert warnings == []


def test_a_killed_helper_process_ends_the_tracking_and_not_the_study(
    directory: Path, tmp_path: Path, warnings: list[str]
) -> None:
    run = start(directory)
    (helper,) = helpers()
    helper.kill()
    helper.wait()
    send_everything(run, tmp_path / "result")
    run.finish()
    assert (run.active, len(warnings)) == (False, 1)


def test_a_folder_that_cannot_be_made_gives_a_null_run(directory: Path, warnings: list[str]) -> None:
    directory.parent.parent.mkdir(exist_ok=True)
    directory.parent.write_text("a file where the cache should be")
    assert type(start(directory)) is NullRun
    assert len(warnings) == 1


# Several at once


def test_runs_may_overlap(directory: Path) -> None:
    first, second = start(directory, "corpus"), start(directory, "match")
    first.log({"a": 1})
    first.finish()
    second.log({"b": 2})
    second.finish()
    second.finish()
    read = {run.job_type: run for run in read_runs(directory)}
    assert (read["corpus"].values("a"), read["match"].values("b")) == ([1], [2])
    assert (read["corpus"].exit_code, read["match"].exit_code) == (0, 0)


def test_studies_in_one_process_keep_to_their_own_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with start(tmp_path / name) as run:
            run.table("t", ["a"], [[name]])
    for name in ("one", "two"):
        assert only(tmp_path / name).media("t")["data"] == [[name]]
        assert list((tmp_path / name).rglob("core-debug-*.log"))


def _track_in_worker(directory: Path) -> None:
    with start(directory, "worker") as run:
        run.log({"a": 1})


def test_a_worker_process_tracks_for_itself(directory: Path) -> None:
    run = start(directory)
    worker = multiprocessing.get_context("spawn").Process(target=_track_in_worker, args=(directory,))
    worker.start()
    worker.join(30)
    run.log({"b": 2})
    run.finish()
    read = {run.job_type: run for run in read_runs(directory)}
    assert (worker.exitcode, read["worker"].values("a"), read["match"].values("b")) == (0, [1], [2])


# The config


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"mode": "offlin"}, "`mode: offlin`"),
        ({"projct": "x"}, "did you mean `project`?"),
        ({"project": "a/b"}, "`project: a/b`"),
        ({"tags": [""]}, "`tags.0: `"),
        ({"timeout": 0}, "`timeout: 0`"),
    ],
)
def test_a_bad_section_is_refused_by_name(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(TrackingConfig, section, "study.yaml")
    assert said in str(refused.value)
