"""Tracking: what arrives in Weights & Biases, and that nothing of it can harm or delay a study.

Offline runs are looked at as a user would: sent with ``wandb sync``, here to a server on loopback.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from affectlens import results
from affectlens.config import validate
from affectlens.errors import ConfigError, PartFailed
from affectlens.run import manifest, runner
from affectlens.run.observer import Outcome
from affectlens.settings import TrackingConfig
from affectlens.stage import LIVE
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage
from affectlens.study import Study
from affectlens.tracking.artifact import Artifact
from affectlens.tracking.observer import RUNS, SAMPLED, SUMMARY, WandbObserver, mode, run_id
from affectlens.tracking.process import Process
from wandb_server import API_KEY, WandbServer

EFFECTS = results.Table(
    "effects",
    "One vector of one concept.",
    (
        results.text("concept", "it"),
        results.text("vector", "its kind"),
        results.number("effect", "rise of the concept's words", "nats"),
        results.integer("words", "words scored"),
        results.flag("shown", "whether it is shown"),
    ),
    key=("concept", "vector"),
    charts=(
        results.Line("dose", "words", "effect", "concept", split="vector"),
        results.Heatmap("map", "vector", "concept", "effect"),
    ),
)
ROWS = [
    {"concept": "calm", "vector": "direction", "effect": 0.5, "words": 7, "shown": True},
    {"concept": "calm", "vector": "feature", "effect": math.nan, "words": None, "shown": None},
    {"concept": "afraid", "vector": "direction", "effect": math.inf, "words": 3, "shown": False},
    {"concept": "afraid", "vector": "feature", "effect": 2.0, "words": 3, "shown": True},
]


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does: home and current folder stay empty, and W&B is never imported into this process."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_")) or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    before = set(sys.modules)
    yield
    assert "wandb" not in set(sys.modules) - before
    assert list(home.rglob("*")) == []
    assert list(here.rglob("*")) == []


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
    """What tracking says to the user."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("affectlens.tracking")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def study(study_values: dict, write_study: Any) -> Study:
    return Study.load(write_study({**study_values, "tracking": {"mode": "offline", "tags": ["pilot"]}}))


def folders(directory: Path) -> list[Path]:
    """Of all offline runs, oldest first."""
    return sorted(directory.glob("wandb/offline-run-*"), key=lambda path: path.name)


def sync(runs: list[Path], server: WandbServer, scratch: Path) -> None:
    """`wandb sync`, one run at a time, in the order in which they were made."""
    environment = {**os.environ, **server.environment(), "WANDB_ERROR_REPORTING": "false", "HOME": str(scratch)}
    environment.pop("WANDB_MODE", None)
    for run in runs:
        command = [sys.executable, "-m", "wandb", "sync", str(run)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=scratch)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def synced(tmp_path: Path) -> Iterator[Any]:
    """``synced(directory)`` -> a server that has got all offline runs below it."""
    servers = []

    def send(directory: Path) -> WandbServer:
        server = WandbServer().__enter__()
        servers.append(server)
        scratch = tmp_path / f"scratch{len(servers)}"
        scratch.mkdir()
        sync(folders(directory), server, scratch)
        return server

    yield send
    for server in servers:
        server.close()


def events(result: Path, run: str = "match-1") -> list[dict[str, Any]]:
    """One of each kind of event."""
    result.mkdir(exist_ok=True)
    results.write(result, EFFECTS, ROWS)
    (result / "page.html").write_text("<p>seen</p>", encoding="utf-8")
    (result / "a b.bin").write_bytes(b"weights")
    made = Artifact("features", "match", {"a b.bin": result / "a b.bin"}, metadata={"count": 2})
    arguments = {"project": "emotions", "group": "tiny", "job_type": "match", "name": "tiny/match", "id": run}
    arguments |= {"tags": ["pilot"], "resume": "allow", "config": {"k": 32, "nested": {"layer": 15}}}
    return [
        {"action": "open", "arguments": arguments},
        *({"action": "log", "values": {"loss": 1 / step, "step": step}} for step in (5, 3, 3, 9)),
        {"action": "config", "values": {"k": 16}},
        {"action": "summary", "values": {"match/auroc": 0.91, "match/undefined": math.nan}},
        {"action": "tables", "stage": "match", "folder": str(result)},
        {"action": "html", "name": "match/page", "path": str(result / "page.html")},
        {"action": "artifact", "made": made.to_json(), "uses": []},
        {"action": "finish", "exit_code": 0},
    ]


def send(process: Process, sequence: list[dict[str, Any]], run: str = "match-1") -> None:
    for event in sequence:
        process.send(run=run, **event)


def check(server: WandbServer, run: str = "match-1") -> None:
    """That all of :func:`events` is there."""
    sent = server.runs[run]
    fields = {key: sent.fields[key] for key in ("project", "groupName", "jobType", "displayName", "tags")}
    assert list(fields.values()) == ["emotions", "tiny", "match", "tiny/match", ["pilot"]]
    assert (sent.exit_code, server.unknown) == (0, [])
    rows = [(row["step"], row["loss"]) for _, row in sorted(sent.history.items()) if "loss" in row]
    assert rows == [(step, 1 / step) for step in (5, 3, 3, 9)]  # none dropped where steps run backwards
    assert {key: sent.config[key]["value"] for key in ("k", "nested")} == {"k": 16, "nested": {"layer": 15}}
    assert sent.summary["match/auroc"] == 0.91

    def media(key: str) -> Any:
        return json.loads(sent.files[sent.values(key)[-1]["path"]])

    assert media("match/effects") == {
        "columns": ["concept", "vector", "effect", "words", "shown"],
        "data": [
            ["calm", "direction", 0.5, 7, True],
            ["calm", "feature", None, None, None],
            ["afraid", "direction", None, 3, False],
            ["afraid", "feature", 2.0, 3, True],
        ],
    }
    for vector in ("direction", "feature"):
        chart = sent.config["_wandb"]["value"]["visualize"][f"match/dose_{vector}"]["panel_config"]
        assert chart["fieldSettings"] == {"x": "words", "y": "effect", "stroke": "concept"}
    assert media("match/dose_feature_table")["data"] == [["afraid", "feature", 2.0, 3, True]]
    figure = media("match/map")
    (heat,) = figure["data"]
    assert (heat["x"], heat["y"]) == (["calm", "afraid"], ["direction", "feature"])
    assert (heat["z"][0][0], heat["z"][1]) == (0.5, [None, 2.0])
    assert figure["layout"]["yaxis"]["autorange"] == "reversed"
    assert sent.files[sent.values("match/page")[-1]["path"]] == b"<p>seen</p>"
    artifact = server.artifact("features")
    assert (artifact.committed, artifact.made_by, artifact.type) == (True, run, "match")
    assert (artifact.files, artifact.metadata) == ({"a b.bin": b"weights"}, {"count": 2})


# What arrives


def test_an_offline_run_holds_all_that_was_sent(directory: Path, tmp_path: Path, synced: Any) -> None:
    reports: list[dict[str, Any]] = []
    process = Process("offline", directory, 5, reports.append)
    send(process, events(tmp_path / "result"))
    process.close()
    assert (process.lost, [report["state"] for report in reports][-1]) == ("", "finished")
    assert folders(directory) == [Path(reports[0]["folder"])]
    check(synced(directory))


def test_an_online_run_is_sent_as_it_comes(directory: Path, tmp_path: Path, server: WandbServer) -> None:
    reports: list[dict[str, Any]] = []
    process = Process("online", directory, 10, reports.append)
    sequence = events(tmp_path / "result")
    send(process, sequence[:2])
    end = time.monotonic() + 20
    while not server.runs and time.monotonic() < end:
        time.sleep(0.05)
    assert server.runs["match-1"].exit_code is None  # seen before it has ended
    send(process, sequence[2:])
    process.close()
    assert (process.lost, reports[-1]["state"]) == ("", "finished")
    check(server)
    assert folders(directory) == []


def make_chain(process: Process, folder: Path) -> None:
    """Activations, by reference, and an SAE made from them."""
    folder.mkdir(exist_ok=True)
    (folder / "0 %.h5").write_bytes(b"12345")
    (folder / "sae.bin").write_bytes(b"weights")
    shard = {"0 %.h5": folder / "0 %.h5"}
    activations = Artifact("activations-1", "activations", shard, True, {"0 %.h5": "5ha"}).to_json()
    sae = Artifact("sae-2", "sae", {"inner/sae.bin": folder / "sae.bin"}).to_json()
    for run, made, uses in (("activations", activations, []), ("sae", sae, [activations])):
        process.send("open", run, arguments={"project": "p", "id": run, "resume": "allow"})
        process.send("artifact", run, made=made, uses=uses)
        process.send("finish", run, exit_code=0)


def check_chain(server: WandbServer, folder: Path) -> None:
    """One version of each, nothing of the activations uploaded, and an arrow between them."""
    activations, sae = server.artifact("activations-1"), server.artifact("sae-2")
    assert {each.name: each.version for each in server.artifacts} == {"activations-1": 0, "sae-2": 0}
    assert (activations.committed, activations.made_by, activations.used_by) == (True, "activations", ["sae"])
    assert (sae.committed, sae.made_by, sae.used_by) == (True, "sae", [])
    assert (activations.files, sae.files) == ({}, {"inner/sae.bin": b"weights"})
    entry = activations.manifest["contents"]["0 %.h5"]
    assert (entry["ref"], entry["size"], entry["digest"]) == (f"file://{folder / '0 %.h5'}", 5, "5ha")


def test_artifacts_form_a_lineage(directory: Path, tmp_path: Path, server: WandbServer) -> None:
    for _ in range(2):  # the second time as after --mode force: nothing is there twice
        reports: list[dict[str, Any]] = []
        process = Process("online", directory, 10, reports.append)
        make_chain(process, tmp_path / "shards")
        process.close()
        assert [report["reason"] for report in reports if report["state"] == "failed"] == []
    check_chain(server, tmp_path / "shards")
    assert server.unknown == []


def test_the_lineage_of_offline_runs_arrives_when_they_are_synced(directory: Path, tmp_path: Path, synced: Any) -> None:
    """Inputs of offline runs are declared through :mod:`affectlens.tracking.compat`."""
    process = Process("offline", directory, 5, lambda report: None)
    make_chain(process, tmp_path / "shards")
    process.close()
    check_chain(synced(directory), tmp_path / "shards")


# A study, watched


def test_a_stage_is_a_run_from_its_start_and_a_cached_one_leaves_a_run_once(
    study: Study, monkeypatch: pytest.MonkeyPatch, synced: Any, warnings: list[str]
) -> None:
    compute = CorpusStage.run_part

    def slowly(stage: CorpusStage, part: Any, out: Path, progress: Any) -> None:
        for step in (10, 20):
            with (out / LIVE).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
            progress(0.5)
        (out / LIVE).open("a", encoding="utf-8").write('{"step": 30')  # a row that is being written
        compute(stage, part, out, lambda units: None)

    monkeypatch.setattr(CorpusStage, "run_part", slowly)
    directory = study.config.cache / "wandb"
    runner.run(study, only=["corpus"], observer=WandbObserver(every_s=0))
    fingerprint = study.fingerprint(CorpusStage)
    identity = run_id("tiny", "corpus", fingerprint)
    server = synced(directory)
    sent = server.runs[identity]
    assert (sent.fields["groupName"], sent.fields["jobType"], sent.fields["tags"]) == ("tiny", "corpus", ["pilot"])
    (part,) = {key.split("/")[1] for row in sent.history.values() for key in row if key.startswith("live/")}
    assert sent.values(f"live/{part}/loss") == [1 / 10, 1 / 20]
    assert sent.values("progress/units")[:2] == [0.5, 1.0]
    half, whole = sent.values("progress/share")[:2]
    assert half == whole / 2 > 0
    assert sent.summary["corpus/documents"] == 56
    config = {key: item["value"] for key, item in sent.config.items()}
    assert (config["fingerprint"], config["seed"], config["device"]) == (fingerprint, study.config.seed, "cpu")
    artifact = server.artifact(f"corpus-{fingerprint[:16]}")
    assert (artifact.made_by, artifact.committed) == (identity, True)
    assert LIVE not in artifact.files
    # One run of the stage, and one that sums up the study and shows what it rests on.
    (summary,) = (run for run in server.runs.values() if run.fields["jobType"] == SUMMARY)
    assert len(server.runs) == len(folders(directory)) == 2
    assert len(artifact.used_by) == 1
    assert set(summary.config["stages"]["value"]) == {"corpus"}

    runner.run(study, only=["corpus"], observer=WandbObserver())
    assert len(folders(directory)) == 2  # both were tracked before
    (directory / RUNS / f"{identity}.json").unlink()
    runner.run(study, only=["corpus"], observer=WandbObserver())
    assert len(folders(directory)) == 3  # as from a cache that another study filled
    again = synced(directory)
    assert again.runs[identity].summary["corpus/documents"] == 56
    assert [(each.type, each.version) for each in again.artifacts if each.type == "corpus"] == [("corpus", 0)]
    assert warnings == []


def test_a_stage_that_fails_leaves_a_failed_run(
    study: Study, monkeypatch: pytest.MonkeyPatch, synced: Any, warnings: list[str]
) -> None:
    monkeypatch.setattr(CorpusStage, "run_part", lambda *_: 1 / 0)
    with pytest.raises(PartFailed):
        runner.run(study, only=["corpus"], observer=WandbObserver())
    (run,) = synced(study.config.cache / "wandb").runs.values()
    assert (run.exit_code, warnings) == (1, [])


def test_the_summary_shows_headline_figures_the_page_and_sampled_texts(study: Study, synced: Any) -> None:
    (corpus,) = runner.run(study, only=["corpus"])
    figures = {name: 0.5 for name, _ in DirectionsStage.headline}
    outcomes = []
    for stage, metrics in (("directions", figures | {"another": 1.0}), ("report", {})):
        folder = study.config.cache / stage / ("0" * 16)
        folder.mkdir(parents=True)
        record = {"stage": stage, "files": {}, "sizes": {}, "needs": {}, "fingerprint": "0" * 64}
        manifest.write(folder, (manifest.read(corpus.folder) or {}) | record)
        outcomes.append(Outcome(stage, "computed", folder, 1.0, metrics))
    (folder / "report.html").write_text("<p>page</p>", encoding="utf-8")
    folder = study.config.cache / "causal" / ("0" * 16)
    folder.mkdir(parents=True)
    record = {"stage": "causal", "fingerprint": "1" * 64, "config": {"reference": 0.1}}
    manifest.write(folder, (manifest.read(outcomes[0].folder) or {}) | record)
    sampled = {"vector": "direction calm", "words_banned": False, "opening": "She said", "text": '<b>"quiet"</b>'}
    others = {"vector": "none", "words_banned": False, "opening": "She said", "text": "so"}
    (folder / "texts.jsonl").write_text(f"{json.dumps(sampled)}\n{json.dumps(others)}\n", encoding="utf-8")
    outcomes.append(Outcome("causal", "computed", folder, 1.0, {}))
    observer = WandbObserver()
    observer.study_finished(study, outcomes)
    observer.close()
    (run,) = synced(study.config.cache / "wandb").runs.values()
    table = json.loads(run.files[run.values(SAMPLED)[-1]["path"]])
    assert table["columns"] == ["source", "family", "concept", "strength", "prompt", "text"]
    assert table["data"] == [
        ["causal", "direction", "calm", 0.1, "She said", '<b>"quiet"</b>'],
        ["causal", "none", "", 0.0, "She said", "so"],
    ]
    kept = {name: value for name, value in run.summary.items() if name.startswith("directions/")}
    assert kept == {f"directions/{name}": 0.5 for name in figures}
    assert run.files[run.values("report/report")[-1]["path"]] == b"<p>page</p>"


def test_online_a_study_leaves_no_copy_behind(study: Study, server: WandbServer, warnings: list[str]) -> None:
    study = Study.load(Path(study.source), ["tracking.mode=online"])
    runner.run(study, only=["corpus"], observer=WandbObserver())
    assert {run.fields["jobType"]: run.exit_code for run in server.runs.values()} == {"corpus": 0, SUMMARY: 0}
    assert (folders(study.config.cache / "wandb"), server.unknown, warnings) == ([], [], [])
    operations = len(server.operations)
    runner.run(study, only=["corpus"], observer=WandbObserver())
    assert len(server.operations) == operations


# What stays away


@pytest.mark.parametrize(
    ("configured", "variables", "effective"),
    [
        ("online", {}, "online"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "dryrun"}, "offline"),
        ("online", {"WANDB_MODE": "Offline"}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_DISABLED": "true"}, "disabled"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("offline", {"WANDB_MODE": "disabled"}, "disabled"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("online", {"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online"),
    ],
)
def test_the_environment_can_lower_the_mode_and_never_raise_it(
    monkeypatch: pytest.MonkeyPatch, configured: Any, variables: dict[str, str], effective: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mode(TrackingConfig(mode=configured)) == effective


def test_disabled_starts_nothing_and_writes_nothing(study: Study) -> None:
    study = Study.load(Path(study.source), ["tracking.mode=disabled"])
    runner.run(study, only=["corpus"], observer=WandbObserver())
    assert not (study.config.cache / "wandb").exists()


def test_no_key_and_nothing_of_the_machine_is_written_or_sent(
    study: Study, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "5ec2e7" * 6 + "abcd"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_RUN_GROUP", "another")
    monkeypatch.setenv("WANDB_PROJECT", "another")
    for wanted in ("online", "offline"):
        study = Study.load(Path(study.source), [f"tracking.mode={wanted}", f"name={wanted}"])
        runner.run(study, only=["corpus"], observer=WandbObserver())
    sent = json.dumps([variables for _, variables in server.operations])
    sent += repr([run.files for run in server.runs.values()]) + repr([run.config for run in server.runs.values()])
    written = [path for path in study.config.cache.rglob("*") if path.is_file()]
    assert len(written) > 10
    for path in written:
        assert key.encode() not in path.read_bytes(), path
    assert key not in sent
    for secret in (socket.gethostname(), str(Path(__file__).parent), sys.argv[0], "another"):
        # A short host name may lie within a digest by chance.
        assert re.search(rf"(?<![\w+/=-]){re.escape(secret)}(?![\w+/=-])", sent) is None, secret
    assert {run.fields["project"] for run in server.runs.values()} == {"affectlens"}


# What may go wrong


def _refusing(status: int) -> Any:
    def prepare(server: WandbServer) -> None:
        server.refuse = status

    return prepare


@pytest.mark.parametrize(
    "prepare", [_refusing(500), _refusing(401), WandbServer.close], ids=["500", "401", "closed port"]
)
def test_a_server_that_refuses_leaves_offline_runs(
    study: Study, server: WandbServer, warnings: list[str], prepare: Any, synced: Any
) -> None:
    prepare(server)
    study = Study.load(Path(study.source), ["tracking.mode=online", "tracking.timeout=2"])
    runner.run(study, only=["corpus"], observer=WandbObserver())
    kept = folders(study.config.cache / "wandb")
    (warning,) = warnings
    assert len(kept) == 2
    assert all(str(folder) in warning for folder in kept)
    assert "wandb sync" in warning
    assert {run.fields["jobType"] for run in synced(study.config.cache / "wandb").runs.values()} == {"corpus", SUMMARY}


def test_a_missing_key_is_never_asked_for(study: Study, warnings: list[str]) -> None:
    study = Study.load(Path(study.source), ["tracking.mode=online", "tracking.timeout=2"])
    runner.run(study, only=["corpus"], observer=WandbObserver())
    (warning,) = warnings
    assert "WANDB_API_KEY" in warning
    assert len(folders(study.config.cache / "wandb")) == 2


def test_a_server_that_never_answers_delays_the_end_and_nothing_else(
    study: Study, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        study = Study.load(Path(study.source), ["tracking.mode=online", "tracking.timeout=1"])
        observer = WandbObserver()
        began = time.monotonic()
        observer.stage_started(study, CorpusStage, 1.0)
        observer.advanced(1.0)
        observer.stage_failed(study, CorpusStage, RuntimeError())
        assert time.monotonic() - began < 1
        observer.close()
    assert len(folders(study.config.cache / "wandb")) == len(warnings) == 1


def test_a_server_lost_on_the_way_costs_no_data(
    study: Study, server: WandbServer, monkeypatch: pytest.MonkeyPatch, warnings: list[str], synced: Any
) -> None:
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    study = Study.load(Path(study.source), ["tracking.mode=online", "tracking.timeout=2"])
    observer = WandbObserver(every_s=0)
    (outcome,) = runner.run(study, only=["corpus"])
    observer.stage_started(study, CorpusStage, 1.0)
    end = time.monotonic() + 20
    while not server.runs and time.monotonic() < end:
        time.sleep(0.05)
    assert len(server.runs) == 1
    server.close()
    observer.advanced(1.0)
    record = json.loads((outcome.folder / "manifest.json").read_text(encoding="utf-8"))
    observer.stage_finished(study, CorpusStage, record, outcome.metrics, outcome.folder, computed=True)
    observer.close()
    assert len(warnings) == 1
    (run,) = synced(study.config.cache / "wandb").runs.values()
    assert (run.summary["corpus/documents"], run.exit_code) == (56, 0)
    assert run.values("progress/units")[0] == 1.0


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_process_that_dies_or_hangs_is_given_up(directory: Path, tmp_path: Path, kind: signal.Signals) -> None:
    reports: list[dict[str, Any]] = []
    process = Process("offline", directory, 0.5, reports.append, margin_s=0.5)
    sequence = events(tmp_path / "result")
    send(process, sequence[:2])
    end = time.monotonic() + 20
    while not reports and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, kind)
    send(process, sequence[2:])
    began = time.monotonic()
    process.close()
    process.close()
    assert time.monotonic() - began < 5
    assert process.lost


@pytest.mark.parametrize("content", ["raise ImportError('planted')", "raise SystemExit(3)"])
def test_a_wandb_that_cannot_be_imported_stops_nothing(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str], content: str
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text(content, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "broken"), os.environ.get("PYTHONPATH", "")]))
    outcomes = runner.run(study, only=["corpus"], observer=WandbObserver())
    assert [outcome.state for outcome in outcomes] == ["computed"]
    (warning,) = warnings
    assert "\n" not in warning
    assert not (study.config.cache / "wandb" / RUNS).exists()


def test_a_failure_of_one_run_is_not_the_next_ones(directory: Path, tmp_path: Path, synced: Any) -> None:
    reports: list[dict[str, Any]] = []
    process = Process("offline", directory, 5, reports.append)
    sequence = events(tmp_path / "result", "first")
    send(process, [*sequence[:2], {"action": "tables", "stage": "match", "folder": 3}, *sequence[2:]], "first")
    send(process, events(tmp_path / "result", "second"), "second")
    process.close()
    states = {run: [report["state"] for report in reports if report["run"] == run] for run in ("first", "second")}
    assert states["first"].count("failed") == 1
    assert "finished" not in states["first"]
    assert states["second"][-1] == "finished"
    server = synced(directory)
    assert server.runs["first"].exit_code == 1
    check(server, "second")


# The config


def test_the_id_depends_on_study_stage_and_fingerprint_alone() -> None:
    assert run_id("a", "b", "c") == run_id("a", "b", "c")
    keys = [("a", "b", "c"), ("a", "b", "d"), ("a", "x", "c"), ("y", "b", "c"), ("ab", "", "c"), ("a", "bc", "")]
    assert len({run_id(*key) for key in keys}) == 6


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"mode": "offlin"}, "`mode: offlin`"),
        ({"projct": "x"}, "`project`"),
        ({"project": "a/b"}, "`project: a/b`"),
        ({"tags": [""]}, "`tags.0: `"),
        ({"timeout": 0}, "`timeout: 0`"),
    ],
)
def test_a_bad_section_is_refused_by_name(section: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(TrackingConfig, section, "study.yaml")
    assert named in str(refused.value)
