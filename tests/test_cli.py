"""The command line answers with one sentence, and says what it is doing where nobody sees a progress bar."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from affectlens import console
from affectlens.cli import app
from affectlens.entry import printable
from affectlens.run import runner
from affectlens.run.workspace import Workspace
from affectlens.stages.activations import ActivationsStage
from affectlens.study import STAGES, Study
from rich.console import Console as RichConsole
from typer.main import get_command
from typer.testing import CliRunner


def affectlens(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "affectlens.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def study(study_values, write_study) -> Study:
    return Study.load(write_study(study_values))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runn", "x.yaml"], "'runn'"),
        (["run", "--no-such-option"], "--no-such-option"),
        (["run"], "'CONFIG'"),
        (["run", "x.yaml", "--mode"], "'--mode'"),
        (["run", "folder.yaml"], "is a folder"),
        (["run", "\x1b[31mred.yaml"], r"\x1b[31mred.yaml"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    done = affectlens(*arguments, PYTHONPATH=os.pathsep.join(sys.path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"affectlens: [^\n]+\n", done.stderr)
    assert said in done.stderr


def test_every_command_prints_tracebacks_on_demand(tmp_path, monkeypatch):
    for command in vars(get_command(app))["commands"].values():
        assert any("--debug" in parameter.opts for parameter in command.params), command.name
    missing = str(tmp_path / "missing.yaml")
    plain, debug = affectlens("status", missing), affectlens("status", missing, "--debug")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert debug.stderr.splitlines()[-1] == plain.stderr.strip()
    assert plain.returncode == debug.returncode == 2


def test_every_command_that_reads_a_study_takes_changes_by_set(study):
    """Alike everywhere, and the same as an argument where arguments are no texts; the option wins."""
    readers = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in get_command(app).commands.items()  # pyright: ignore[reportAttributeAccessIssue]
        if any(parameter.name in ("config", "studies") for parameter in command.params)
    }
    assert {"run", "status", "serve", "read", "steer", "compare"} <= set(readers)
    assert [name for name, options in readers.items() if "--set" not in options] == []
    as_given = [
        CliRunner().invoke(app, ["status", study.source, "--json", *given]).output
        for given in ([], ["seed=5"], ["--set", "seed=5"], ["seed=4", "--set", "seed=5"])
    ]
    assert as_given[0] != as_given[1] == as_given[2] == as_given[3]
    assert "sede" in str(CliRunner().invoke(app, ["run", study.source, "--dry-run", "--set", "sede=5"]).exception)


def test_stages_are_named_together_or_again(study):
    for given in (["--stage", "corpus,activations"], ["--stage", "corpus", "--stage", "activations"]):
        result = CliRunner().invoke(app, ["run", study.source, "--dry-run", *given])
        stages, closing = result.output.split("\n\n")
        assert [line.split()[0] for line in stages.splitlines()] == ["corpus", "activations"]
        assert closing.startswith("In all about ")


@pytest.mark.parametrize(("number", "status", "workers"), [("SIGINT", 130, 1), ("SIGTERM", 143, 2), ("SIGHUP", 129, 1)])
def test_a_signal_ends_a_run_with_one_sentence_and_no_leak(study, number, status, workers):
    slower = "activations.texts_per_part=1"  # many parts, so that the signal comes before the last of them
    command = [sys.executable, "-m", "affectlens.cli", "run", study.source, slower, "--stage", "activations"]

    def heed() -> None:  # what nohup and background jobs of a shell have their children ignore
        for each in (signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)

    process = subprocess.Popen(
        [*command, "--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,
    )
    parts = Workspace(Study.load(Path(study.source), [slower]), ActivationsStage).parts
    deadline = time.monotonic() + 120
    while not list(parts.glob("*.building")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert re.fullmatch(r"affectlens: [^\n]*finished parts are kept[^\n]*\n", said)


def test_the_page_is_written_again(study, tmp_path):
    runner.run(study)
    page = study.config.cache / "report"
    (path,) = page.glob("*/report.html")
    content = path.read_bytes()
    path.write_bytes(b"of an older program")
    before = {file: file.stat().st_mtime_ns for file in study.config.cache.glob("causal/*/*")}
    result = CliRunner().invoke(app, ["report", study.source])
    assert result.exception is None
    assert path.read_bytes() == content
    assert {file: file.stat().st_mtime_ns for file in study.config.cache.glob("causal/*/*")} == before


def test_status_fits_a_terminal_of_80_columns(study, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["status", study.source])
    table = [line for line in result.output.splitlines() if "│" in line]
    assert len(table) == len(STAGES)
    assert all(len(line) <= 80 for line in table)
    assert study.fingerprint(ActivationsStage)[:16] in result.output
    assert str(study.config.cache) in result.output


def test_without_a_terminal_a_long_stage_says_how_far_it_is(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(console, "RichConsole", lambda **options: RichConsole(file=log, **options))
    with console.Console("study", silence_s=0.05) as shown:
        shown.stage_started("causal [red]", total=48, done=0, unit="parts")
        shown.advanced(12)
        time.sleep(0.3)
    lines = [line for line in log.getvalue().splitlines() if line]
    assert len(lines) >= 2
    assert lines[-1].startswith("causal [red]: 12 of 48 parts after ")


def test_slow_rates_are_shown():
    assert console.rate(1234.5, "tokens") == "1,234 tokens/s"
    assert console.rate(0.25, "parts") == "0.25 parts/s"
    assert console.rate(1 / 60, "parts") == "1 parts/min"


def test_names_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\x07\nc") == "a\\x1b[2Jb\\x07\nc"


def test_paths_are_not_markup(study_values, write_study, tmp_path, capsys):
    folder = tmp_path / "c[old]" / "[x]"
    study = Study.load(write_study({**study_values, "cache": str(folder)}))
    with console.Console(study.config.name) as shown:
        outcomes = runner.run(study, only=["corpus"], reporter=shown)
        shown.close(study, outcomes)
    assert str(Path(folder)) in capsys.readouterr().out


def test_keys_are_listed_with_type_default_and_meaning():
    said = affectlens("config", "sae.k")
    assert "sae.k: whole number (16)\n    Active features per token" in said.stdout
    said = affectlens("config", "corpus").stdout
    assert "corpus.emotions" in said and "sae." not in said
    wrong = affectlens("config", "sae.kk")
    assert wrong.returncode == 2 and "did you mean `sae.k`?" in wrong.stderr


def test_the_schema_takes_every_shipped_study_and_refuses_a_wrong_key():
    jsonschema = pytest.importorskip("jsonschema")
    import yaml
    from affectlens.shipped import folder

    schema = json.loads(affectlens("config", "--schema").stdout)
    taken = 0
    for path in sorted(folder("configs").glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "name" in values and "program" not in values:
            jsonschema.validate(values, schema)
            taken += 1
    assert taken >= 4
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "model": {"layr": 3}}, schema)


def test_concepts_are_listed_with_their_stories_and_ratings():
    (row,) = json.loads(affectlens("concepts", "desp", "--json").stdout)
    assert row["concept"] == "desperate" and row["stories"] == row["topics"] == 11 and row["valence"] < 5
    assert len(affectlens("concepts").stdout.splitlines()) == 172
    wrong = affectlens("concepts", "schadenfreude")
    assert wrong.returncode == 2 and "no concept has `schadenfreude` in its name" in wrong.stderr
