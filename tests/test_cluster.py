"""Jobs: planned right, described right to Slurm, and watched right."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from affectlens import sweep
from affectlens.cli import app
from affectlens.cluster import compat, graph, job, job_registry, local_executor, progress, slurm, submission
from affectlens.cluster import config as settings
from affectlens.cluster.graph import Found, Task
from affectlens.cluster.job_registry import Entry
from affectlens.cluster.slurm import JobState
from affectlens.errors import ConfigError, PartFailed, UserError
from affectlens.run import runner
from affectlens.run.workspace import Workspace
from affectlens.settings import Resources, minutes
from affectlens.stage import Part
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.study import STAGES, ClusterConfig, Study
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
SMALL = {
    "sae": {"width": 64, "k": 8, "steps": 10, "batch": 64, "health_rows": 200, "health_texts": 1},
    "cluster": {"activations": {"parts_per_job": 3}},
}


@pytest.fixture
def study(study_values, write_study) -> Study:
    return Study.load(write_study({**study_values, **SMALL}))


# What jobs ask for


@pytest.mark.parametrize(
    ("time_limit", "expected"),
    [("2:00:00", 120), ("0:00:30", 1), ("0:01:01", 2), ("1-12:00:00", 2160), ("2-0", 2880), ("90m", 90), ("2h", 120),
     ("1d", 1440), (" 1-06:30 ", 1830)],
)  # fmt: skip
def test_time_limits(time_limit, expected):
    assert minutes(time_limit) == expected


@pytest.mark.parametrize("time_limit", ["", "90", "2:00", "2 hours", "h", "1:2:3", "0:00:00", "0m", "-1h"])
def test_time_limits_that_could_mean_something_else_are_refused(time_limit):
    with pytest.raises(ValueError, match=r"time limit|at least a minute"):
        minutes(time_limit)


def test_an_unquoted_time_in_yaml_is_explained(study):
    with pytest.raises(ConfigError, match=r"`cluster.sae.time`: `7200` could mean seconds or minutes; write a quoted"):
        Study.load(Path(study.source), ["cluster.sae.time=2:00:00"])


def test_the_study_beats_the_profile_beats_what_is_built_in():
    profile = ClusterConfig.model_validate(
        {"default": {"partition": "long", "mem_gb": 8}, "sae": {"gpus": 1, "options": {"nice": 1}}, "requeues": 3}
    )
    study = ClusterConfig.model_validate({"sae": {"partition": "gpu", "options": {"comment": "mine"}}})
    settled = settings.settle(study, profile)
    sae, corpus = settings.resources(settled, "sae"), settings.resources(settled, "corpus")
    assert (sae.partition, sae.gpus, sae.mem_gb, sae.parts_per_job) == ("gpu", 1, 8, 1)
    assert sae.options == {"nice": 1, "comment": "mine"}
    assert (corpus.partition, corpus.gpus, corpus.time) == ("long", 0, "1:00:00")
    assert settled.requeues == 3


def test_an_accelerator_by_default_is_not_asked_for_by_merges():
    profile = ClusterConfig.model_validate({"default": {"gpus": 1}})
    settled = settings.settle(ClusterConfig(), profile)
    assert settings.resources(settled, "match").gpus == 1
    assert settings.resources(settled, "merge").gpus == 0


def test_every_stage_has_its_section():
    assert {stage.name for stage in STAGES} <= set(ClusterConfig.model_fields)


def test_the_profiles_that_come_along_are_right():
    found = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))
    assert found
    for path in found:
        settled = settings.settle(ClusterConfig(), settings.read_profile(path))
        for stage in STAGES:
            assert settings.resources(settled, stage.name).time


def test_the_section_of_the_last_release_is_read_with_a_warning():
    with pytest.warns(FutureWarning, match="`measure` now"):
        config: Any = ClusterConfig.model_validate({"experiments": {"gpus": 1}})
    assert config.measure.gpus == 1


def test_mistakes_in_a_profile_are_one_line(tmp_path):
    profile = tmp_path / "site.yaml"
    profile.write_text("sae: {gpu: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"site.yaml: unknown key `sae.gpu`; did you mean `gpus`\?"):
        settings.read_profile(profile)


# Which jobs, in which order


def one_part_each(study, stage) -> Found:
    return Found(parts=("a",))


def default_wants(study, stage) -> Resources:
    return settings.resources(settings.settle(study.config.cluster), stage.name)


def test_nodes_come_after_what_they_wait_for(study):
    nodes = graph.plan([study], (), one_part_each, default_wants)
    assert [node.stage for node in nodes] == list(STAGES)
    seen = set()
    for node in nodes:
        assert set(node.waits) <= seen
        seen.add(node.key)
    # What a need waits for already is not named again, so that scripts stay readable.
    waits = {node.stage.name: [name for name, _ in node.waits] for node in nodes}
    assert waits["match"] == ["sae"]
    assert waits["sae"] == ["activations"]


def test_finished_stages_and_parts_are_left_out(study):
    def found(study, stage):
        if stage is CorpusStage:
            return Found(complete=True)
        return Found(parts=tuple("abcdefg"), done=frozenset("bcd"))

    (node,) = graph.plan([study], ["activations"], found, default_wants)
    assert node.tasks == (Task(("a", "e", "f")), Task(("g",)))
    assert node.waits == ()
    assert node.merges


def test_parts_that_are_done_but_not_merged_need_only_the_merge(study):
    def found(study, stage):
        return Found(complete=stage is CorpusStage, parts=("a", "b"), done=frozenset("ab"))

    (node,) = graph.plan([study], ["activations"], found, default_wants)
    assert (node.tasks, node.merges) == ((), True)


def test_a_stage_of_one_job_merges_in_it(study):
    (node,) = graph.plan([study], ["corpus"], one_part_each, default_wants)
    assert (len(node.tasks), node.merges, node.jobs) == (1, False, 1)


def test_studies_share_what_has_the_same_fingerprint(study):
    studies = sweep.load(Path(study.source), ["sae.k=4,6,8"])
    nodes = graph.plan(studies, ["sae"], one_part_each, default_wants)
    assert [node.stage.name for node in nodes] == ["corpus", "activations", "sae", "sae", "sae"]
    assert {node.waits for node in nodes[2:]} == {(nodes[1].key,)}


def test_a_failed_part_has_to_be_retried_in_so_many_words(study):
    def found(study, stage):
        failures = {"b": "planted"} if stage is ActivationsStage else {}
        return Found(complete=stage is CorpusStage, parts=("a", "b"), done=frozenset("a"), failures=failures)

    with pytest.raises(PartFailed, match=r"first b \(planted\); remove the cause and submit with --mode retry"):
        graph.plan([study], ["sae"], found, default_wants)
    nodes = graph.plan([study], ["sae"], found, default_wants, retry=True)
    assert nodes[0].tasks == (Task(("b",)),)
    assert nodes[0].retried == ("b",)
    assert [node.stage.name for node in nodes] == ["activations", "sae"]


def test_what_is_queued_is_not_submitted_again(study):
    def found(study, stage):
        name = stage.name
        return Found(parts=("a", "b"), tasks={f"{name}_0": ("a", "b")}, merge=f"{name}_m")

    assert graph.plan([study], (), found, default_wants) == []
    tasks = {"corpus": Found(parts=("a",), tasks={"1": ("a",)}, merge="1")}
    nodes = graph.plan([study], ["activations"], lambda s, t: tasks.get(t.name, Found(parts=("a",))), default_wants)
    assert [node.stage.name for node in nodes] == ["activations"]
    assert nodes[0].after == ("1",)


def test_a_retry_keeps_what_runs_and_replaces_what_waits_in_vain(study):
    def found(study, stage):
        if stage is CorpusStage:
            return Found(complete=True)
        if stage is ActivationsStage:  # 5_0 died, 5_1 still runs, 6 was the merge
            return Found(parts=tuple("abcd"), done=frozenset("a"), tasks={"5_1": ("c", "d")}, merge="6")
        return Found(parts=("x",), tasks={"7": ("x",)}, merge="7")

    first, second = graph.plan([study], ["sae"], found, default_wants, retry=True)
    assert first.tasks == (Task(("b",)),)
    assert first.merges
    assert dict(first.kept) == {"5_1": ("c", "d")}
    assert first.stale == ("6",)
    assert second.tasks == (Task(("x",)),)
    assert second.stale == ("7",)
    assert second.waits == (first.key,)


def test_a_part_that_failed_in_a_job_that_goes_on_is_done_by_another(study):
    def found(study, stage):
        running = {"5_0": ("a", "b", "c")}
        return Found(complete=stage is CorpusStage, parts=("a", "b", "c"), failures={"a": "planted"}, tasks=running)

    (node,) = graph.plan([study], ["activations"], found, default_wants, retry=True)
    assert node.tasks == (Task(("a",)),)


def test_an_array_stays_within_what_slurm_takes(study):
    parts = tuple(f"{index:05d}" for index in range(20_001))
    found = {CorpusStage: Found(complete=True), ActivationsStage: Found(parts=parts)}
    (node,) = graph.plan([study], ["activations"], lambda s, t: found[t], default_wants)
    assert len(node.tasks) <= 1000
    assert tuple(itertools.chain.from_iterable(task.parts or () for task in node.tasks)) == parts


def test_parts_that_cannot_be_foreseen_are_dealt_out_when_jobs_start(study):
    wants = Resources(jobs=3)
    nodes = graph.plan([study], ["corpus"], lambda s, t: Found(parts=None), lambda s, t: wants)
    parts = [Part(str(index)) for index in range(8)]
    dealt = [part.name for task in nodes[0].tasks for part in task.choose(parts)]
    assert sorted(dealt) == sorted(part.name for part in parts)
    assert len(nodes[0].tasks) == 3


def test_only_jobs_that_nobody_else_waits_for_are_cancelled():
    corpus = Entry("corpus", "c", "one", "", {"1": ["a"]}, "1")
    shared = Entry("activations", "a", "one", "", {"2_0": ["a"], "2_1": ["b"]}, "3", needs=["1"])
    mine = Entry("sae", "s1", "one", "", {"4": ["a"]}, "4", needs=["3"])
    other = Entry("sae", "s2", "two", "", {"5": ["a"]}, "5", needs=["3"])
    keys = {("corpus", "c"), ("activations", "a"), ("sae", "s1")}
    alive = {"1", "2_0", "2_1", "3", "4", "5"}
    ids, stay = graph.cancellable([corpus, shared, mine, other], keys, alive)
    assert ids == ["4"]
    assert sorted(stay) == ["activations", "corpus"]
    ids, stay = graph.cancellable([corpus, shared, mine, other], keys, alive - {"5"})
    assert sorted(ids) == ["1", "2_0", "2_1", "3", "4"]
    assert stay == []


# What Slurm is told, and what it says


def test_a_script_says_everything_that_matters(tmp_path):
    config = settings.settle(
        ClusterConfig.model_validate(
            {
                "setup": ["module load cuda"],
                "warning_seconds": 77,
                "sae": {"gpus": 2, "mem_gb": 1.5, "time": "1-00:00:00", "partition": "a100", "options": {"nice": 5}},
            }
        )
    )
    told = slurm.parameters(config, settings.resources(config, "sae"), name="s.sae", threads=3, after=["7_0", "7_1"])
    text = slurm.script(told, tmp_path, config, count=4)
    for line in (
        "--array=0-3%4", "--dependency=afterok:7_0:7_1", "--kill-on-invalid-dep=yes", "--requeue", "--signal=USR2@77",
        "--time=1440", "--partition=a100", "--gpus-per-node=2", "--cpus-per-task=6", "--mem=1536MB", "--nice=5",
        "--job-name=s.sae",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in text, line
    assert text.index("module load cuda") < text.index("srun")
    assert "--array" not in slurm.script(told, tmp_path, config, count=1)


def test_the_words_of_slurm():
    found = slurm.parse(
        "7_0|COMPLETED|None\n7_1|CANCELLED by 1000|None\n7_[2-4,7%2]|PENDING|JobArrayTaskLimit\n"
        "8|PENDING|DependencyNeverSatisfied\n9|RUNNING|\n10|OUT_OF_MEMORY|None\n7_[10-14:2]|PENDING|Priority\n"
    )
    assert set(found) == {"7_0", "7_1", "7_2", "7_3", "7_4", "7_7", "7_10", "7_12", "7_14", "8", "9", "10"}
    alive = {key for key, state in found.items() if state.alive}
    assert alive == {"7_2", "7_3", "7_4", "7_7", "7_10", "7_12", "7_14", "9"}
    assert {key for key, state in found.items() if state.failed} == {"7_1", "8", "10"}


def test_without_slurm_nothing_is_known_and_nothing_breaks(monkeypatch, study, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    job_registry.write(
        study, CorpusStage, Entry("corpus", study.fingerprint(CorpusStage), "s", "", {"1": ["all"]}, "1")
    )
    assert slurm.states(["1"]) == {}
    assert progress.of_study(study)["corpus"].done == 0
    with pytest.raises(UserError, match="this machine has no sbatch; log in where Slurm is, or use --cluster local"):
        submission.submit(submission.Order([study], ["corpus"]), print)


@pytest.mark.parametrize(
    ("complaint", "silent"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", True),
        ("slurm_load_jobs error: Invalid job id specified", False),
    ],
)
def test_silence_of_slurm_is_not_taken_for_the_absence_of_jobs(monkeypatch, study, tmp_path, complaint, silent):
    """Else a busy controller would get every job twice."""
    for name in ("squeue", "sacct", "sbatch"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job_registry.write(
        study, CorpusStage, Entry("corpus", study.fingerprint(CorpusStage), "s", "", {"1": ["all"]}, "1")
    )
    order = submission.Order([study], ["corpus"])
    assert progress.of_study(study)["corpus"].jobs == {}
    if silent:
        for ask in (lambda: submission.plan(order), lambda: submission.cancel([study])):
            with pytest.raises(UserError, match=r"Slurm does not answer \(squeue: .*connect failure"):
                ask()
    else:
        assert len(submission.plan(order)) == 1


# How far jobs are


def test_the_rate_is_that_of_the_last_minutes(tmp_path):
    now = [0.0]
    beat = job.Heartbeat(tmp_path / "7.json", ["a"], clock=lambda: now[0])
    beat.stage_started("sae", total=100_000, done=0, unit="tokens")
    beat.advanced(50_000)  # a training that goes on from a checkpoint
    for _ in range(300):
        now[0] += 1
        beat.advanced(10)
    said = progress.heartbeat(tmp_path.parent, "7") or {}
    assert said == {}
    (tmp_path / "progress").mkdir()
    (tmp_path / "7.json").rename(tmp_path / "progress" / "7.json")
    said = progress.heartbeat(tmp_path, "7") or {}
    assert said["rate"] == pytest.approx(10, rel=0.05)
    assert said["done"] == pytest.approx(53_000, abs=30)


def test_the_time_left_counts_what_running_jobs_have_begun():
    parts = [Part(name, size=100) for name in "abcd"]
    beats = [{"parts": ["a", "b"], "done": 150.0}]  # a is done, b half
    assert progress.time_left(parts, ["a"], beats, rate=10) == pytest.approx(25)
    assert progress.time_left(parts, ["a"], beats, rate=0) is None
    assert progress.time_left(None, ["a"], beats, rate=10) is None


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("Traceback\naffectlens.errors.PartFailed: `sae`: 1 of 2\nsrun: error: n1: task 0: Exited with exit code 1\n",
         "`sae`: 1 of 2"),
        ("working\nslurmstepd: error: *** STEP 3.0 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***\n"
         "srun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n",
         "slurmstepd: error: *** STEP 3.0 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***"),
        ("srun: error: n1: task 0: Killed\n", "srun: error: n1: task 0: Killed"),
        ("srun: error: n1: task 0: Exited with exit code 1\n", "srun: error: n1: task 0: Exited with exit code 1"),
        ("\n\n", ""),
    ],
)  # fmt: skip
def test_the_line_that_says_why(log, expected):
    assert progress.last_words(log) == expected


def test_status_names_counts_states_and_reasons(study, capsys, monkeypatch):
    runner.run(study, only=["corpus"])
    space, folder = Workspace(study, ActivationsStage), job_registry.folder(study, ActivationsStage)
    (space.parts / "00000").mkdir(parents=True)
    (space.parts / "00000" / "part.json").write_text("{}", encoding="utf-8")
    space.failed.mkdir()
    (space.failed / "00003.json").write_text('{"error": "ZeroDivisionError: planted"}', encoding="utf-8")
    tasks: dict[str, list[str] | None] = {"5_0": ["00000", "00001"], "5_1": ["00002", "00003"], "5_2": ["00004"]}
    job_registry.write(
        study, ActivationsStage, Entry("activations", study.fingerprint(ActivationsStage), "s", "", tasks, "6")
    )
    (folder / "progress").mkdir()
    (folder / "progress" / "5_0.json").write_text('{"parts": ["00000", "00001"], "done": 12, "rate": 4.0}')
    (folder / "5_1_0_log.err").write_text("affectlens.errors.PartFailed: it was planted\n", encoding="utf-8")
    known = {
        "5_0": JobState("RUNNING"), "5_1": JobState("FAILED", "NonZeroExitCode"),
        "5_2": JobState("PENDING", "Priority"), "6": JobState("CANCELLED", "DependencyNeverSatisfied"),
    }  # fmt: skip
    monkeypatch.setattr(slurm, "states", lambda ids: {key: known[key] for key in ids})
    with space.lock("part-00001", wait=False):
        found = progress.of_study(study)["activations"]
        assert CliRunner().invoke(app, ["status", study.source]).exit_code == 0
        said = CliRunner().invoke(app, ["status", study.source]).output
    assert (found.total, found.done, found.running, found.failed, found.pending) == (7, 1, 1, 1, 4)
    assert found.left == pytest.approx((56 - 12) / 4)
    assert (
        "activations: parts: 1 done, 1 running, 1 failed, 4 pending; jobs: 1 CANCELLED, 1 FAILED, 1 PENDING, "
        "1 RUNNING; 4 texts/s; 0:00:11 left\n"
    ) in said
    assert "part 00003: ZeroDivisionError: planted" in said
    assert "job 5_1 FAILED: it was planted" in said
    assert "job 6 CANCELLED: " in said


def test_a_dry_run_prints_the_graph_and_the_scripts_and_writes_nothing(study):
    done = CliRunner().invoke(app, ["submit", study.source, "--dry-run", "cluster.sae.partition=gpu"])
    assert done.exit_code == 0, done.output
    (line,) = (line for line in done.output.splitlines() if line.startswith("tiny activations:"))
    assert "7 parts" in line and "3 jobs" in line and "corpus" in line
    assert "#SBATCH --array=0-2%3" in done.output
    assert "#SBATCH --partition=gpu" in done.output
    assert "#SBATCH --dependency='afterok:<activations>'" in done.output
    assert done.output.endswith(" jobs; nothing was submitted\n")
    # Hashes of large inputs are remembered by every command.
    assert {path.name for path in study.config.cache.rglob("*")} <= {"digests.json"}


def test_a_dry_run_of_a_finished_study_says_so(study):
    runner.run(study, only=["corpus"])
    done = CliRunner().invoke(app, ["submit", study.source, "--stage", "corpus", "--dry-run"])
    assert done.output.startswith("nothing to submit") and "sbatch" not in done.output.lower()


def test_a_sweep_ends_with_the_commands_that_follow_and_compare_it(study):
    """With the values that say which studies they are, quoted where a shell needs it."""
    arguments = [study.source, "sae.k=4,6", "report.title='a b'"]
    done = CliRunner().invoke(app, ["submit", *arguments, "--sweep", "--stage", "corpus", "--cluster", "debug"])
    assert done.exit_code == 0, done.output
    last = done.output.splitlines()[-1]
    assert last.startswith("1 job done; `affectlens compare ")
    command = last.split("`")[1]
    assert shlex.split(command) == ["affectlens", "compare", *arguments]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "--cluster", "pbs"], "--cluster pbs: choose slurm, local or debug"),
        (["submit", "--mode", "force"], "--mode force: choose cached or retry"),
        (["submit", "--stage", "sea"], "did you mean `sae`"),
        (["submit", "--profile", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["submit", "cluster.sae.gpus=-1"], "`cluster.sae.gpus: -1`"),
    ],
)
def test_mistakes_are_one_line(study, arguments, message):
    done = CliRunner().invoke(app, [arguments[0], study.source, *arguments[1:]])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def test_submitting_needs_no_heavy_import(study):
    code = (
        "import sys; from affectlens.cli import app\n"
        f"app(['submit', {study.source!r}, '--dry-run'], standalone_mode=False)\n"
        f"app(['status', {study.source!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'sae_lens', 'transformer_lens', 'h5py', 'sklearn', 'scipy', 'wandb'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A stand-in for Slurm's commands: ``sbatch`` notes its environment and answers what it is told to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct", "scancel", "scontrol"):
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
    given = tmp_path / "given"

    def answer(script: str = "echo Submitted batch job 4711") -> Path:
        (folder / "sbatch").write_text(f"#!/bin/sh\nenv > {given}\n{script}\n")
        for path in folder.iterdir():
            path.chmod(0o755)
        return given

    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return answer


def test_jobs_do_not_inherit_the_allocation_around_the_submission(study, sbatch, monkeypatch):
    inside = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_MEM_PER_CPU": "300", "SLURMD_NODENAME": "n1"}
    kept = {"SLURM_CONF": "/etc/elsewhere/slurm.conf", "SLURM_JWT": "token"}
    for name, value in {**inside, **kept}.items():
        monkeypatch.setenv(name, value)
    given = sbatch()
    submission.submit(submission.Order([study], ["corpus"]), lambda line: None)
    environment = dict(line.split("=", 1) for line in given.read_text().splitlines() if "=" in line)
    assert not inside.keys() & environment.keys()
    assert {name: environment[name] for name in kept} == kept
    assert {name: os.environ[name] for name in inside} == inside, "the caller keeps its own"


def test_an_array_that_the_site_finds_too_large_is_refused_with_the_key_to_change(study, sbatch):
    sbatch("echo 'sbatch: error: Batch job submission failed: Invalid job array specification' >&2; exit 1")
    with pytest.raises(UserError, match=r"MaxArraySize.*`parts_per_job`"):
        submission.submit(submission.Order([study], ["corpus"]), lambda line: None)


def test_a_cache_with_a_pattern_of_slurms_in_its_path_is_refused(study_values, write_study, tmp_path, sbatch):
    sbatch()
    study = Study.load(write_study({**study_values, "cache": str(tmp_path / "cache%j")}))
    with pytest.raises(UserError, match="`%`"):
        submission.submit(submission.Order([study], ["corpus"]), lambda line: None)


def test_a_home_that_does_not_exist_is_named(study_values, write_study, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="HOME"):
        Study.load(write_study({**study_values, "cache": "~/cache"}))


def test_what_is_used_of_submitit_beyond_its_documentation_is_there(tmp_path):
    script = compat.batch_script("echo hi", tmp_path, 3, {"time": 5, "array_parallelism": 2})
    assert "#SBATCH --array=0-2%2" in script
    assert "#SBATCH --time=5" in script
    assert "echo hi" in script
    assert "--array" not in compat.batch_script("echo hi", tmp_path, 1, {"time": 5})
    assert importlib.util.find_spec(compat.LOADER) is not None
    assert compat.requeue_handler() is None


def test_the_cores_of_a_machine_without_affinity_are_counted(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert local_executor.available_cores() == os.cpu_count()
