"""A job does its share, by any executor, to the bytes of a plain run; and whatever ends it, it can be taken up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from affectlens import plan
from affectlens.cluster import graph, job, job_registry, submission
from affectlens.cluster.graph import Found, Task
from affectlens.errors import PartFailed, UserError
from affectlens.model import subject
from affectlens.run import runner
from affectlens.run.workspace import Workspace
from affectlens.settings import Resources
from affectlens.stages.activations import ActivationsStage
from affectlens.study import STAGES, Study

ROOT = Path(__file__).parent.parent
SMALL = {
    "sae": {"width": 64, "k": 8, "steps": 10, "batch": 64, "health_rows": 200, "health_texts": 1},
    "cluster": {"activations": {"parts_per_job": 3}},
}


@pytest.fixture
def study(study_values, write_study) -> Study:
    return Study.load(write_study({**study_values, **SMALL}))


def contents(study: Study, *names: str) -> dict[str, bytes]:
    """Every file of the results of these stages but the records with times in them."""
    return {
        f"{stage.name}/{path.relative_to(study.folder(stage))}": path.read_bytes()
        for stage in STAGES
        if stage.name in names
        for path in sorted(study.folder(stage).rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "part.json")
    }


def plain_run(study: Study, *names: str) -> dict[str, bytes]:
    """What a plain run leaves, in a cache of its own."""
    cache = study.config.cache.with_name("plain")
    plain = Study.load(Path(study.source), [*study.overrides, f"cache={cache}"])
    runner.run(plain, only=names)
    return contents(plain, *names)


def test_the_parts_are_known_before_the_results_are(study):
    """For every stage whose parts follow from texts, model and config."""
    known = plan.outlook(study)
    foreseen = {stage.name: plan.parts(study, stage, known) for stage in STAGES}
    runner.run(study, only=["sae", "directions"])
    for name in ("corpus", "activations", "sae", "directions"):
        stage = next(stage for stage in STAGES if stage.name == name)
        actual = stage(study.section(stage), study.setting("cpu"), runner.open_results(study, stage.needs)).parts()
        assert [(part.name, part.size) for part in foreseen[name] or ()] == [(part.name, part.size) for part in actual]
    assert all(foreseen[name] for name in ("match", "compare", "geometry", "report"))


def test_jobs_in_this_process_give_the_bytes_of_a_plain_run(study):
    said: list[str] = []
    nodes = submission.submit(submission.Order([study], ["sae"], "debug"), said.append)
    assert [node.jobs for node in nodes] == [1, 4, 1]
    assert contents(study, "corpus", "activations", "sae") == plain_run(study, "corpus", "activations", "sae")
    assert submission.plan(submission.Order([study], ["sae"], "debug")) == []


def test_jobs_as_processes_give_the_bytes_of_a_plain_run(study):
    said: list[str] = []
    two = Study.load(Path(study.source), ["cluster.activations.parts_per_job=4"])
    submission.submit(submission.Order([two], ["activations"], "local"), said.append)
    assert sum(line.endswith(": done") for line in said) == 4
    assert contents(study, "corpus", "activations") == plain_run(study, "corpus", "activations")


def break_part(monkeypatch, name: str, error: Exception) -> None:
    original = ActivationsStage.run_part

    def broken(self, part, out, progress):
        if part.name == name:
            raise error
        original(self, part, out, progress)

    monkeypatch.setattr(ActivationsStage, "run_part", broken)


def test_a_failed_part_takes_only_its_dependants_along(study, monkeypatch):
    order = submission.Order([study], ["sae"], "debug")
    said: list[str] = []
    with monkeypatch.context() as patch:
        break_part(patch, "00001", ZeroDivisionError("planted"))
        with pytest.raises(UserError, match=r"3 of 6 jobs did not succeed.*1 of 3 parts failed, first 00001"):
            submission.submit(order, said.append)
    assert sum("left out" in line for line in said) == 2
    assert Workspace(study, ActivationsStage).finished() == ["00000", "00002", "00003", "00004", "00005", "00006"]
    with pytest.raises(PartFailed, match="submit with --mode retry"):
        submission.submit(order, said.append)
    retry = replace(order, retry=True)
    assert submission.plan(retry)[0].tasks == (Task(("00001",)),)
    submission.submit(retry, said.append)
    assert contents(study, "activations", "sae") == plain_run(study, "activations", "sae")


def test_a_full_disk_fails_the_job_and_is_not_held_against_the_part(study, monkeypatch):
    order = submission.Order([study], ["activations"], "debug")
    with monkeypatch.context() as patch:
        break_part(patch, "00004", OSError(28, "No space left on device"))
        with pytest.raises(UserError, match="No space left on device"):
            submission.submit(order, print)
    assert not list(Workspace(study, ActivationsStage).failed.glob("*"))
    submission.submit(order, print)  # no --mode retry: nothing is wrong with the part
    assert Workspace(study, ActivationsStage).complete


def one_job(study: Study) -> job.Job:
    (node,) = graph.plan([study], ["corpus"], lambda *_: Found(parts=("all",)), lambda *_: Resources())
    return next(iter(submission._jobs(submission.Order([study]), node)))


def test_a_job_refuses_inputs_that_are_not_those_of_the_submission(study):
    with pytest.raises(UserError, match="its inputs are not those of the submission"):
        replace(one_job(study), fingerprint="0" * 64)()


def test_a_merge_refuses_to_go_without_parts(study):
    with pytest.raises(UserError, match="1 of 1 parts are missing, first all; submit again"):
        replace(one_job(study), does="merge")()


def test_a_job_with_nothing_to_do_does_nothing(study):
    runner.run(study, only=["corpus"])
    stamps = {path: path.stat().st_mtime_ns for path in study.config.cache.rglob("*")}
    one_job(study)()
    assert {path: path.stat().st_mtime_ns for path in study.config.cache.rglob("*")} == stamps


SIGNALLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from affectlens.cluster import job
from affectlens.cluster.graph import Task

def requeue(number, frame):
    print("queued again")
    sys.exit(0)

signal.signal(signal.SIGUSR2, requeue)
signal.signal(signal.SIGTERM, lambda number, frame: print("passed over"))

def work(self):
    if {hold}:
        from affectlens.sae.training import termination
        with termination() as asked:
            os.kill(os.getpid(), signal.{name})
            print("asked" if asked() else "not asked")
    else:
        os.kill(os.getpid(), signal.{name})
    print("went on")

job.Job.work = work
job.Job({{}}, "", (), ".", "corpus", "", "both", Task(None), 1, 1)()
"""


@pytest.mark.parametrize(
    ("name", "hold", "status", "said"),
    [
        ("SIGUSR2", False, 0, ["queued again"]),
        ("SIGUSR2", True, 0, ["asked", "queued again"]),
        ("SIGTERM", False, 143, []),
        ("SIGTERM", True, 143, ["asked"]),
    ],
)
def test_signals_before_the_end_of_a_job(name, hold, status, said):
    """A warning is obeyed at once, or when the training has its checkpoint; only then is the job queued again."""
    code = SIGNALLED.format(name=name, hold=hold, tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (status, said), done.stderr


def test_each_worker_gets_a_device_of_its_own_and_the_bytes_stay(study_values, write_study, monkeypatch):
    """Two devices that are not the plain `cpu`, as far as the runner is concerned."""
    values = {**study_values, "compute": {"threads": 1, "device": "auto", "workers": "auto"}}
    study = Study.load(write_study(values))
    monkeypatch.setattr(subject, "device_names", lambda device: ["cpu:0", "cpu:1"])
    runner.run(study, only=["activations"])
    found = contents(study, "activations")
    record = runner.inspect(study, ActivationsStage).record
    assert record is not None
    assert record["workers"] == 2
    assert {part["device"] for part in record["parts"].values()} == {"cpu:0", "cpu:1"}
    monkeypatch.undo()
    assert found == plain_run(study, "activations")


def test_results_of_others_wait_for_no_lock(study):
    """The lock of a submission belongs to living processes: one that is killed hands it on."""
    code = (
        "import time; from pathlib import Path; from affectlens.study import Study\n"
        "from affectlens.cluster import job_registry\n"
        f"with job_registry.lock([Study.load(Path({study.source!r}))]):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    with job_registry.lock([study]):
        assert time.monotonic() - began < 5
