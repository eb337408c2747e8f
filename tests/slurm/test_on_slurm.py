"""Studies as batch jobs on a real Slurm, through everything that clusters do to jobs, to the bytes of a plain run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from affectlens import sweep
from affectlens.cluster import job_registry
from affectlens.cluster.slurm import JobState, states
from affectlens.run import runner
from affectlens.run.workspace import Workspace
from affectlens.sae.training import CHECKPOINT
from affectlens.study import STAGES, Study, stage_named
from safetensors import safe_open
from slurm_node import SlurmNode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 600
"""Minutes of waiting are rare, and come from other work on the machine."""
SMALL_SAE = {"width": 64, "k": 8, "steps": 30, "batch": 128, "health_rows": 500, "health_texts": 0}
LONG_SAE = {**SMALL_SAE, "steps": 2000, "checkpoint_steps": 1_000_000}
"""A training that writes no checkpoint unless a signal asks for one."""
FAILING_PART = """
from affectlens.stages.activations import ActivationsStage
whole = ActivationsStage.run_part
def broken(self, part, out, progress):
    if part.name == "00001":
        raise ZeroDivisionError("planted")
    return whole(self, part, out, progress)
ActivationsStage.run_part = broken
"""
ENDLESS_PART = """
import os, time
from affectlens.stages.activations import ActivationsStage
whole = ActivationsStage.run_part
def endless(self, part, out, progress):
    if part.name == "00002" and "SLURM_RESTART_COUNT" not in os.environ:
        time.sleep(3600)
    return whole(self, part, out, progress)
ActivationsStage.run_part = endless
"""
"""Two parts are done, and the third until somebody ends the job; not when it is queued again."""
SLOW_TRAINING = """
import os, time
from affectlens.stages.sae import SaeStage
whole = SaeStage.run_part
def slow(self, part, out, progress):
    from affectlens.sae.training import Trainer
    step = Trainer.step
    if "SLURM_RESTART_COUNT" not in os.environ:
        Trainer.step = lambda self, rows: (time.sleep({pause}), step(self, rows))[1]
    return whole(self, part, out, progress)
SaeStage.run_part = slow
"""
"""Slow enough to be interrupted; at full speed when it is queued again."""
QUICKSTART = (
    "corpus.emotions=[afraid,calm,happy,sad]",
    "sae.health_texts=1",
    "sae.health_rows=500",
    "match.permutations=99",
    "match.random_saes=1",
    "causal.strengths=[0.1]",
    "causal.frames=2",
    "causal.words=2",
    "causal.stories=1",
    "causal.neutral_texts=1",
    "tracking.mode=disabled",
    "compute.threads=1",
    "cluster.activations.parts_per_job=2",
    "cluster.causal.parts_per_job=3",
)
"""The quickstart with the embedded model, its SAE and every stage, made small enough to be run twice."""


def affectlens(*arguments: str, check: bool = True) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "affectlens.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def until(what: str, ready: Callable[[], Any], seconds: float = LIMIT_S) -> Any:
    """The first true value of ``ready``."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.3)
    return found


def jobs_of(study: Study, name: str) -> dict[str, JobState]:
    """The jobs that were handed over for one stage, and what became of them."""
    entry = job_registry.read(study, stage_named(name))
    assert entry is not None
    return states(entry.ids)


def settled(study: Study, *names: str) -> bool:
    """Whether no job of these stages is going to do anything any more."""
    found = [state for name in names for state in jobs_of(study, name).values()]
    return bool(found) and not any(state.alive for state in found)


def contents(study: Study, *names: str) -> dict[str, bytes]:
    """Every file of the results of these stages, all when none is named, but the records with times in them."""
    return {
        f"{stage.name}/{path.relative_to(study.folder(stage))}": path.read_bytes()
        for stage in STAGES
        if not names or stage.name in names
        for path in sorted(study.folder(stage).rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "part.json")
    }


def in_process(study: Study, cache: Path, *names: str) -> dict[str, bytes]:
    """What a plain run of the same study leaves in another cache."""
    plain = Study.load(Path(study.source), [*study.overrides, f"cache={cache}"])
    runner.run(plain, only=names)
    return contents(plain, *names)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of all plain runs: what studies have in common is computed once."""
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(autouse=True)
def _empty_queue(slurm: SlurmNode) -> Iterator[None]:
    """Jobs that a failed test leaves behind would keep the node from the next."""
    yield
    slurm.empty()


@pytest.fixture
def values(study_values: dict[str, Any], plain: Path) -> dict[str, Any]:
    """Four emotions on a tiny Llama, from files that are the same for every test."""
    neutral = plain / "neutral.jsonl"
    neutral.write_bytes(Path(study_values["corpus"]["neutral"]).read_bytes())
    return {**study_values, "corpus": {**study_values["corpus"], "neutral": str(neutral)}}


@pytest.fixture
def study(slurm: SlurmNode, values: dict[str, Any], write_study) -> Study:
    """Its jobs take one core each and four of seven parts."""
    cluster = {"activations": {"parts_per_job": 4}, "default": {"cpus": 1}}
    return Study.load(write_study({**values, "sae": SMALL_SAE, "cluster": cluster}))


@pytest.fixture
def long_study(slurm: SlurmNode, values: dict[str, Any], write_study) -> Study:
    """The same with a training that can be interrupted; texts are cached already, in this process."""
    study = Study.load(write_study({**values, "sae": LONG_SAE, "cluster": {"default": {"cpus": 2}}}))
    runner.run(study, only=["activations"])
    return study


def in_jobs(tmp_path: Path, code: str) -> str:
    """The override by which every job runs ``code`` when its Python starts."""
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    return f"cluster.setup=['export PYTHONPATH={tmp_path}:{ROOT}/pipeline']"


def test_the_quickstart_gives_the_bytes_of_a_plain_run(slurm, plain, tmp_path):
    """Every stage, the embedded model, one command, and the session that submitted is gone."""
    file = ROOT / "configs" / "quickstart.yaml"
    overrides = [*QUICKSTART, f"cache={tmp_path / 'cache'}"]
    for folder in (plain / "models", tmp_path / "cache"):
        folder.mkdir(exist_ok=True)
    (tmp_path / "cache" / "models").symlink_to(plain / "models")  # converted once, by whoever is first
    said = affectlens("submit", str(file), *overrides)
    assert "jobs submitted" in said
    study = Study.load(file, overrides)
    expected = in_process(study, plain)
    until("the study", lambda: settled(study, *(stage.name for stage in STAGES)), 900)
    told = affectlens("status", str(file), *overrides)
    assert [stage.name for stage in STAGES if not Workspace(study, stage).complete] == [], told
    assert contents(study) == expected
    assert "nothing to submit" in affectlens("submit", str(file), *overrides)


def test_a_failed_part_stops_its_dependants_at_once_and_alone_is_done_again(study, plain, tmp_path):
    limits = ["cluster.activations.parts_per_job=3", "cluster.activations.max_parallel=1"]
    arguments = [study.source, in_jobs(tmp_path, FAILING_PART), *limits]
    affectlens("submit", *arguments, "--stage", "sae")
    first = job_registry.read(study, stage_named("activations"))
    assert first is not None and first.merge is not None
    assert [names and len(names) for names in first.tasks.values()] == [3, 3, 1]
    # The merge and the SAE give up while other parts are still waiting for their turn.
    sae = job_registry.read(study, stage_named("sae"))
    assert sae is not None and sae.merge is not None
    merge = sae.merge
    until("the failure", lambda: not jobs_of(study, "sae")[merge].alive)
    assert any(state.alive for state in jobs_of(study, "activations").values())
    assert jobs_of(study, "activations")[first.merge].state == "CANCELLED"
    until("the other parts", lambda: settled(study, "activations"))
    said = affectlens("status", *arguments)
    assert "activations: parts: 6 done, 1 failed; jobs: 1 CANCELLED, 2 COMPLETED, 1 FAILED" in said
    assert "part 00001: ZeroDivisionError: planted" in said
    assert "1 of 3 parts failed, first 00001" in said, "the last line of the log"
    assert "a job it waits for did not succeed" in said
    refused = affectlens("submit", *arguments, "--stage", "sae", check=False)
    assert "submit with --mode retry" in refused
    stamps = {name: _stamp(study, name) for name in Workspace(study, stage_named("activations")).finished()}
    in_jobs(tmp_path, "")
    affectlens("submit", *arguments, "--stage", "sae", "--mode", "retry")
    again = job_registry.read(study, stage_named("activations"))
    assert again is not None
    assert list(again.tasks.values()) == [["00001"]]
    until("the retry", lambda: settled(study, "activations", "sae"))
    assert {name: _stamp(study, name) for name in stamps} == stamps
    assert contents(study, "activations", "sae") == in_process(study, plain, "activations", "sae")


def _stamp(study: Study, part: str) -> int:
    """When a part of `activations` was finished; it stays in the result."""
    space = Workspace(study, stage_named("activations"))
    folder = space.final if space.complete else space.partial
    return (folder / "parts" / part / "part.json").stat().st_mtime_ns


def checkpointed(study: Study) -> int:
    """The step at which the training stands that was interrupted; 0 if it left nothing."""
    for path in Workspace(study, stage_named("sae")).parts.glob(f"*/{CHECKPOINT}"):
        with safe_open(path, "np") as file:
            return json.loads(file.metadata()["position"])["step"]
    return 0


def running(study: Study, name: str) -> bool:
    """Whether the stage's only job has begun to train, which its progress file tells."""
    (job,) = jobs_of(study, name)
    beat = job_registry.folder(study, stage_named(name)) / job_registry.PROGRESS / f"{job}.json"
    return beat.is_file() and json.loads(beat.read_text(encoding="utf-8"))["done"] > 0


def test_a_preempted_training_goes_on_to_the_same_weights(slurm, long_study, plain, tmp_path):
    slow = in_jobs(tmp_path, SLOW_TRAINING.format(pause=0.03))
    affectlens("submit", long_study.source, slow, "--stage", "sae")
    until("the training", lambda: running(long_study, "sae"))
    urgent = slurm.run("sbatch", "--parsable", "-p", "urgent", "-c2", "-o", "/dev/null", "--wrap", "sleep 1").strip()
    until("the preemption", lambda: states([urgent]).get(urgent, JobState("")).state == "COMPLETED")
    stopped_at = checkpointed(long_study)
    assert 0 < stopped_at < LONG_SAE["steps"]
    until("the end", lambda: settled(long_study, "sae"))
    (job,) = jobs_of(long_study, "sae")
    assert jobs_of(long_study, "sae")[job].state == "COMPLETED"
    assert "preempted" in (job_registry.folder(long_study, stage_named("sae")) / f"{job}_0_log.err").read_text()
    assert contents(long_study, "sae") == in_process(long_study, plain, "sae")


def test_a_training_longer_than_its_time_limit_is_done_in_several_goes(slurm, long_study, plain, tmp_path):
    """Slurm looks every half minute whether a warning is due, and this one is from twenty seconds on."""
    limits = (in_jobs(tmp_path, SLOW_TRAINING.format(pause=0.05)), "cluster.sae.time=1m", "cluster.warning_seconds=10")
    affectlens("submit", long_study.source, *limits, "--stage", "sae")
    stopped_at = until("the warning", lambda: checkpointed(long_study))
    assert stopped_at < LONG_SAE["steps"]
    until("the end", lambda: settled(long_study, "sae"))
    (job,) = jobs_of(long_study, "sae")
    assert jobs_of(long_study, "sae")[job].state == "COMPLETED"
    log = (job_registry.folder(long_study, stage_named("sae")) / f"{job}_0_log.err").read_text()
    assert "this job is timed-out" in log
    assert contents(long_study, "sae") == in_process(long_study, plain, "sae")


def test_a_job_killed_without_a_word_is_taken_up_by_a_retry(slurm, study, plain, tmp_path):
    arguments = [study.source, in_jobs(tmp_path, ENDLESS_PART), "--stage", "activations"]
    affectlens("submit", *arguments)
    space = Workspace(study, stage_named("activations"))
    until("two parts and the other job", lambda: len(space.finished()) == 5)
    until("the third part", lambda: (space.parts / "00002.building").is_dir())
    killed, other = job_registry.read(study, stage_named("activations")).tasks
    number = slurm.run("squeue", "-h", "-j", killed, "-o", "%A").strip()  # scontrol does not know 7_0
    for line in slurm.run("scontrol", "listpids", number).splitlines()[1:]:
        process, _, step, *_ = line.split()
        if step == "0":
            os.kill(int(process), signal.SIGKILL)
    until("the end", lambda: settled(study, "activations"))
    assert jobs_of(study, "activations")[killed].state == "FAILED"
    assert jobs_of(study, "activations")[other].state == "COMPLETED"
    said = affectlens("status", study.source)
    assert "Killed" in said, said
    stamps = {name: _stamp(study, name) for name in space.finished()}
    in_jobs(tmp_path, "")
    affectlens("submit", *arguments, "--mode", "retry")
    assert list(job_registry.read(study, stage_named("activations")).tasks.values()) == [["00002", "00003"]]
    until("the retry", lambda: settled(study, "activations"))
    assert {name: _stamp(study, name) for name in stamps} == stamps
    assert contents(study, "activations") == in_process(study, plain, "activations")


def test_jobs_of_a_node_that_goes_down_are_queued_again_and_go_on(slurm, study, plain, tmp_path):
    affectlens("submit", study.source, in_jobs(tmp_path, ENDLESS_PART), "--stage", "activations")
    space = Workspace(study, stage_named("activations"))
    until("two parts and the other job", lambda: len(space.finished()) == 5)
    until("the third part", lambda: (space.parts / "00002.building").is_dir())
    stamps = {name: _stamp(study, name) for name in space.finished()}
    slurm.run("scontrol", "update", f"NodeName={slurm.name}", "State=DOWN", "Reason=test")
    resume = ("scontrol", "update", f"NodeName={slurm.name}", "State=RESUME")

    def back() -> bool:
        slurm.run(*resume, check=False)  # refused where the node has come back by itself
        return "down" not in slurm.run("sinfo", "-h", "-o", "%t")

    until("the node to come back", back)
    until("the end", lambda: settled(study, "activations"))
    assert {name: _stamp(study, name) for name in stamps} == stamps
    assert contents(study, "activations") == in_process(study, plain, "activations")


def test_a_cancelled_study_leaves_no_job_and_can_be_taken_up(slurm, study, plain):
    affectlens("submit", study.source, "--stage", "sae")
    said = affectlens("cancel", study.source)
    assert "jobs cancelled" in said
    assert not said.startswith("0 ")
    until("silence", lambda: not slurm.run("squeue", "-h").strip(), 60)
    assert "cancelled" in affectlens("status", study.source)
    affectlens("submit", study.source, "--stage", "activations", "--mode", "retry")
    until("the end", lambda: settled(study, "activations"))
    assert contents(study, "activations") == in_process(study, plain, "activations")


def test_a_sweep_of_three_shares_what_it_can(slurm, study, plain):
    overrides = ["sae.k=4,6,8"]
    said = affectlens("submit", study.source, *overrides, "--sweep", "--stage", "sae")
    assert said.count(" corpus: ") == said.count(" activations: ") == 1
    assert said.count(" sae: ") == 3
    assert f"affectlens status {study.source} sae.k=4,6,8 --sweep" in said
    assert f"affectlens compare {study.source} sae.k=4,6,8`" in said
    studies = sweep.load(Path(study.source), overrides)
    assert "jobs cancelled; other studies need activations" in affectlens("cancel", studies[0].source, "sae.k=4")
    until("the others", lambda: settled(studies[2], "sae") and settled(studies[1], "sae"))
    assert not Workspace(studies[0], stage_named("sae")).complete
    affectlens("submit", study.source, *overrides, "--sweep", "--stage", "sae", "--mode", "retry")
    until("the cancelled one", lambda: settled(studies[0], "sae"))
    expected = in_process(studies[1], plain, "activations", "sae")
    assert contents(studies[1], "activations", "sae") == expected
    weights = {contents(each, "sae")["sae/sae/sae_weights.safetensors"] for each in studies}
    assert len(weights) == 3
    compared = affectlens("compare", study.source, *overrides)
    assert "The same result in all: corpus, activations." in compared
    assert "sae/explained_variance" in compared


def test_two_submissions_at_once_hand_over_each_job_once(slurm, study):
    def merges() -> int:
        names = slurm.run("sacct", "-X", "-n", "-P", "-o", "JobName", "-S", "now-1hour").split()
        return names.count(f"{study.config.name}.activations.merge")

    before = merges()
    command = [sys.executable, "-m", "affectlens.cli", "submit", study.source, "--stage", "activations"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert sorted("nothing to submit" in each for each in said) == [False, True]
    until("the end", lambda: settled(study, "corpus", "activations"))
    assert until("the accounts", lambda: merges() - before, 60) == 1
    assert Workspace(study, stage_named("activations")).complete


def test_a_refused_submission_leaves_nothing_behind(slurm, study):
    said = affectlens("submit", study.source, "cluster.sae.partition=nowhere", "--stage", "sae", check=False)
    assert "Slurm refuses tiny.sae (invalid partition specified: nowhere" in said
    assert "Traceback" not in said
    until("silence", lambda: not slurm.run("squeue", "-h").strip(), 60)


def test_the_previewed_scripts_are_those_that_run(slurm, study):
    preview = affectlens("submit", study.source, "--stage", "corpus", "--dry-run")
    assert not Path(study.config.cache, "jobs").exists()
    affectlens("submit", study.source, "--stage", "corpus")
    entry = job_registry.read(study, stage_named("corpus"))
    assert entry is not None
    script = job_registry.folder(study, stage_named("corpus")) / f"{entry.merge}_submission.sh"
    assert script.read_text(encoding="utf-8").strip() in preview
    until("the end", lambda: settled(study, "corpus"))


def test_a_study_file_that_changes_later_does_not_change_the_jobs(slurm, study):
    affectlens("submit", study.source, "--stage", "corpus")
    values = yaml.safe_load(Path(study.source).read_text(encoding="utf-8"))
    Path(study.source).write_text(yaml.safe_dump(values | {"corpus": {"emotions": ["calm", "sad"]}}), encoding="utf-8")
    until("the end", lambda: settled(study, "corpus"))
    assert Workspace(study, stage_named("corpus")).complete
