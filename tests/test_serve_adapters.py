"""Evaluation frameworks over a study's model, by their own commands and as their own users would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import affectlens
import pytest
import torch
from tiny import EMOTIONS

TASK = """
task: planted
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
WRITING = """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def run(*arguments: str, folder: Path) -> str:
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_entry_points_are_declared():
    import tomllib

    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]
    assert declared["inspect_ai"] == {"affectlens": "affectlens.serve.inspect_provider"}
    assert declared["lm_eval.models"] == {"affectlens": "affectlens.serve.lm_eval_model:AffectLensLM"}
    if installed := entry_points(group="lm_eval.models", name="affectlens"):
        pytest.importorskip("lm_eval")
        assert next(iter(installed)).load().__name__ == "AffectLensLM"


def test_inspect_runs_a_task_and_keeps_readings_in_its_log(computed_study, tmp_path, monkeypatch):
    """By its own `eval`, with the provider found by name: plain, steered, and refused where it has to be."""
    pytest.importorskip("inspect_ai")
    from affectlens.serve import inspect_provider  # noqa: F401  registers what an installed package's entry point does
    from inspect_ai import Task
    from inspect_ai import eval as run_task
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig
    from inspect_ai.scorer import includes

    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    samples = [Sample(input=f"What came on day {day}?", target="the") for day in range(4)]
    task = Task(samples, scorer=includes(), config=GenerateConfig(max_tokens=8, temperature=0, logprobs=True))
    options: dict[str, Any] = {"model": f"affectlens/{computed_study}", "log_dir": str(tmp_path), "display": "none"}
    plain, steered = (
        run_task(task, model_args={"readings": "calm", "vectors": vectors}, **options)[0]
        for vectors in ({}, {"calm": 3.0})
    )
    assert plain.status == steered.status == "success" and plain.samples and steered.samples
    for one, other in zip(plain.samples, steered.samples, strict=True):
        own = one.output.metadata["affectlens"]
        (answer,) = own["answers"]
        assert set(EMOTIONS) <= set(answer["mean"]) and list(answer["readings"]) == ["calm"]
        assert len(answer["tokens"]) == len(answer["readings"]["calm"]) == one.output.usage.output_tokens
        assert answer["mean"]["calm"] == pytest.approx(
            sum(answer["readings"]["calm"]) / len(answer["tokens"]), abs=1e-4
        )
        assert one.output.stop_reason == "max_tokens" if one.output.usage.output_tokens == 8 else "stop"
        assert len(one.output.choices[0].logprobs.content) == len(answer["tokens"])
        assert other.output.metadata["affectlens"]["vectors"] == {"calm": 3.0}
    assert [s.output.completion for s in plain.samples] != [s.output.completion for s in steered.samples]
    refused = run_task(task, model_args={}, presence_penalty=1.0, **options)[0]
    assert refused.status == "error" and "presence_penalty" in refused.error.message
    with pytest.raises(ValueError, match="clam"):
        run_task(task, model_args={"vectors": {"clam": 1.0}}, **options)


@pytest.fixture(scope="module")
def harness(computed_study, tmp_path_factory) -> Path:
    """A folder with two local tasks; the right choices of one are those that the model itself finds likelier."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("harness")
    subject = affectlens.open_study(computed_study).subject
    questions = ["The cat sat on the", "She opened the door and", "It rained", "They came home", "He said that"]
    rows = []
    for question in questions:
        choices = [" mat", " window", " and slept"]
        scores = []
        for choice in choices:
            context, whole = (subject.led(subject.encode(text)) for text in (question, question + choice))
            values = subject.log_probabilities(torch.tensor([whole]))[0]
            scores.append(sum(float(values[at - 1, whole[at]]) for at in range(len(context), len(whole))))
        rows.append({"question": question, "choices": choices, "answer": scores.index(max(scores))})
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("planted", TASK), ("written", WRITING)):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    return folder


def results(folder: Path) -> dict:
    (found,) = folder.rglob("results_*.json")
    return json.loads(found.read_text())["results"]


@pytest.mark.slow
@pytest.mark.parametrize("vectors", ["", "calm:3.0+sad:-1.0"])
def test_lm_eval_runs_a_local_task_with_the_model(computed_study, harness, tmp_path, vectors):
    """Unsteered, it chooses what the bare model finds likeliest every time; its own command registers the model."""
    arguments = ["run", "--model", "affectlens", "--tasks", "planted,written", "--include_path", str(harness)]
    given = f"study={computed_study}" + (f",vectors={vectors}" if vectors else "")
    arguments += ["--model_args", given, "--output_path", str(tmp_path), "--log_samples"]
    run("-m", "affectlens.serve.lm_eval_model", *arguments, folder=tmp_path)
    found = results(tmp_path)
    assert found["planted"]["acc,none"] == 1.0 or vectors
    (log,) = tmp_path.rglob("samples_written_*.jsonl")
    assert len(log.read_text().splitlines()) == 5


@pytest.mark.slow
def test_lm_eval_runs_a_local_task_through_the_server(computed_study, harness, tmp_path, model_folder):
    """By `local-completions`, which needs log-probabilities of an echoed prompt."""
    served = subprocess.Popen(
        [sys.executable, "-m", "affectlens.cli", "serve", str(computed_study), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = served.stdout.readline().split(" at ")[1].split(",")[0]
        given = f"model=tiny,base_url={address}v1/completions,tokenizer={model_folder('llama')},num_concurrent=2"
        arguments = [
            "run",
            "--model",
            "local-completions",
            "--tasks",
            "planted,written",
            "--include_path",
            str(harness),
        ]
        run("-m", "lm_eval", *arguments, "--model_args", given, "--output_path", str(tmp_path), folder=tmp_path)
    finally:
        served.terminate()
        served.wait(20)
    assert results(tmp_path)["planted"]["acc,none"] == 1.0
