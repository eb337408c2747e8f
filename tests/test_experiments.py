"""The engine of the behavioural experiments, on tiny models that do what they were built to do."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from affectlens import plan
from affectlens.errors import ConfigError, UserError
from affectlens.experiments import pairwise
from affectlens.experiments import serialization as keeping
from affectlens.experiments import validation as choosing
from affectlens.experiments.branching import Branching, Tree
from affectlens.experiments.conditions import compared, extremes, grid, sampled
from affectlens.experiments.config import ExperimentsConfig
from affectlens.experiments.experiment import ExperimentConfig, ReadingConfig, SteeringConfig, read_experiment
from affectlens.experiments.grade import remote
from affectlens.experiments.prompts import read_prompt
from affectlens.interventions.conditions import Condition
from affectlens.model.partial import PartialForward
from affectlens.model.subject import ModelConfig, Subject, load_tokenizer
from affectlens.model.tokens import continuation
from affectlens.run import runner
from affectlens.run.workspace import standing
from affectlens.stages.conclude import ConcludeStage
from affectlens.stages.grade import GradeStage
from affectlens.stages.measure import NOTHING, MeasureStage
from affectlens.study import Study
from judge_server import Server
from scripted import CONCEPTS, LAYER, NO, NORM, YES, Finished, Scripted, write_experiment

STRENGTHS = (-0.2, -0.1, 0.1, 0.2)
STEERING = {"vectors": ["afraid", "calm"], "strengths": list(STRENGTHS), "completion_controls": 3}
RULES = {"kind": "rules", "labels": {"yes": [YES.strip()], "no": [NO.strip()]}}
COMPLETIONS: Any = {"kind": "completions", "samples": 2, "tokens": 6, "temperature": 0, "grader": RULES}
DOSE = {"kind": "dose", "raises": ["afraid"]}
RATE = {"kind": "rate", "label": "yes", "raises": ["afraid"]}
ASKED = [
    {
        "id": f"case-{number}",
        "condition": "main" if number < 4 else "twin",
        "factors": {"emotion": CONCEPTS[number % 4], "level": number},
        "messages": [{"role": "user", "content": f"Letter {number} came on {day}. What do you do?"}],
        "spans": {"day": day},
        "options": {"target": [YES], "other": [NO]},
    }
    for number, day in enumerate(("Monday", "Tuesday morning", "a Wednesday", "Thursday", "Friday", "some Saturday"))
]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scripted(model_folder, tmp_path_factory: pytest.TempPathFactory):
    """``scripted(bias, gain)`` -> a model, built once."""
    built: dict[tuple[float, float], Scripted] = {}

    def get(bias: float, gain: float = 6.0) -> Scripted:
        if (bias, gain) not in built:
            folder = tmp_path_factory.mktemp("scripted") / "model"
            built[bias, gain] = Scripted(model_folder("llama"), folder, bias, gain)
        return built[bias, gain]

    return get


def finished(stage: MeasureStage, folder: Path, order: int = 1) -> tuple[dict[str, float], Finished]:
    """The three stages run to their end, without the runner."""
    done = Finished(stage, folder, order)
    return done.metrics, done


def blackmail(root: Path, **changes) -> Path:
    config = {"outcomes": [{"kind": "choice"}, COMPLETIONS], "steering": STEERING, "analyses": [DOSE, RATE], **changes}
    return write_experiment(root, "letters", config, ASKED)


def rates(measured) -> dict[tuple[str, str, float], float]:
    """Share of answers labelled yes, by cell."""
    said: dict[tuple[str, str, float], list[bool]] = {}
    for answer in measured.completions:
        cell = measured.grid[answer.condition]
        said.setdefault((cell.family, cell.vector, cell.strength), []).append(answer.grade["label"] == "yes")
    return {cell: float(np.mean(answers)) for cell, answers in said.items()}


@pytest.mark.parametrize(("bias", "rate"), [(3.0, 1.0), (-3.0, 0.0)])
def test_a_model_that_always_or_never_does_it_is_found_out_whatever_is_pushed(scripted, tmp_path, bias, rate):
    """With no gain the push cannot matter: every cell gives 100% or 0%, and the log-odds stay below zero effect."""
    blackmail(tmp_path / "e")
    _, found = finished(scripted(bias, 0.0).stage(tmp_path / "e"), tmp_path / "out")
    measured = found.measured("letters")
    assert set(rates(measured).values()) == {rate}
    assert (np.sign(measured.choice) == np.sign(bias)).all()


def test_a_planted_direction_gives_the_planted_dose_response(scripted, tmp_path):
    """Choice in closed form at every strength; answers flip where the closed form changes its sign, not elsewhere."""
    blackmail(tmp_path / "e")
    model = scripted(-0.5)
    metrics, found = finished(model.stage(tmp_path / "e"), tmp_path / "out")
    measured = found.measured("letters")
    for index, cell in enumerate(measured.grid):
        if cell.family in ("none", "concept"):
            strength = cell.strength if cell.vector == "afraid" else 0.0
            push = abs(cell.strength) * NORM
            expected = model.log_odds(strength) if strength else -0.5 * 4 / np.hypot(4, push)
            np.testing.assert_allclose(measured.choice[index], expected, atol=1e-4)
    found_rates = rates(measured)
    assert found_rates["none", "", 0.0] == 0
    assert found_rates["concept", "afraid", 0.2] == 1
    assert found_rates["concept", "afraid", -0.2] == found_rates["concept", "calm", 0.2] == 0
    assert metrics and all(isinstance(value, float) for value in metrics.values())
    assert [entry["name"] for entry in found.findings] == ["letters"]
    assert len(found.findings[0]["findings"]) == 2
    json.dumps(found.findings, allow_nan=False)


def test_without_steering_many_scenarios_are_scored_at_once(scripted, tmp_path):
    config = {"outcomes": [{"kind": "choice"}], "analyses": []}
    asked = [*ASKED[:4], {**ASKED[4], "options": {}}, {**ASKED[5], "options": {"target": [YES, NO], "other": [NO]}}]
    write_experiment(tmp_path / "e", "plain", config, asked)
    measured = finished(scripted(1.0).stage(tmp_path / "e"), tmp_path / "out")[1].measured("plain")
    mixed = np.log((np.e + 1) / 2)
    np.testing.assert_allclose(measured.choice[0], [1, 1, 1, 1, np.nan, mixed], atol=1e-4)


def test_prompts_make_scenarios_that_are_scored_and_answered_without_steering_alone(scripted, tmp_path):
    prompts = [
        {"condition": "asked_for", "sentence": "Say it."},
        {"condition": "aside", "sentence": "Hm.", "of": "twin"},
    ]
    blackmail(tmp_path / "e", prompts=prompts)
    measured = finished(scripted(-0.5).stage(tmp_path / "e"), tmp_path / "out")[1].measured("letters")
    made = [each for each in measured.scenarios if each.condition in ("asked_for", "aside")]
    assert [each.id for each in made[-2:]] == ["case-4.aside", "case-5.aside"] and len(made) == 6
    assert all(each.messages[0] == {"role": "system", "content": "Say it."} for each in made[:4])
    assert {each.group for each in made} == {f"case-{number}" for number in range(6)}
    asked = np.array([each in made for each in measured.scenarios])
    assert np.isfinite(measured.choice[0]).all() and np.isfinite(measured.choice[:, ~asked]).all()
    assert np.isnan(measured.choice[1:, asked]).all()
    assert {each.condition for each in measured.completions if asked[each.scenario]} == {0}


def test_what_the_wordings_are_worth_after_a_neutral_lead_in_is_taken_off(scripted, tmp_path):
    """This model looks at the last token alone, so the lead-in accounts for all that it says, under any push."""
    choice = {"kind": "choice", "lead_in": "Say something.", "per_token": False}
    blackmail(tmp_path / "e", outcomes=[choice], analyses=[DOSE])
    write_experiment(tmp_path / "e", "plain", {"outcomes": [choice], "analyses": []}, ASKED)
    model = scripted(-0.5)
    _, found = finished(model.stage(tmp_path / "e"), tmp_path / "out")
    measured = found.measured("letters")
    np.testing.assert_allclose(measured.choice, 0.0, atol=1e-4)
    index = measured.grid.index(Condition("afraid", "concept", 0.2))
    np.testing.assert_allclose(measured.choice_per_token[index], model.log_odds(0.2), atol=1e-4)
    np.testing.assert_allclose(found.measured("plain").choice, 0.0, atol=1e-4)


def test_controls_have_the_norm_of_the_push_and_are_the_same_for_every_experiment(scripted, tmp_path):
    blackmail(tmp_path / "e")
    context = scripted(0.0).stage(tmp_path / "e").context
    cells = context.grid(context.experiments["letters"])
    pushes = context.pushes(cells, "directions").numpy()
    np.testing.assert_allclose(np.linalg.norm(pushes, axis=1), [abs(cell.strength) * NORM for cell in cells], rtol=1e-5)
    families = [cell.family for cell in cells if cell.strength == 0.2 and cell.family != "concept"]
    assert {name: families.count(name) for name in families} == {
        "isotropic": 13,
        "covariance": 13,
        "permuted": 12,
        "wrong_emotion": 2,
    }
    more = {**STEERING, "controls": 44}
    write_experiment(
        tmp_path / "e", "more", {"outcomes": [{"kind": "choice"}], "steering": more, "analyses": []}, ASKED
    )
    again = scripted(0.0).stage(tmp_path / "e").context.pushes(cells, "directions").numpy()
    np.testing.assert_array_equal(again, pushes)


def test_parts_in_any_order_and_again_give_the_same_bytes(scripted, tmp_path):
    """What workers do: the parts one after the other in any order, each by a process that loaded everything anew."""
    readings = [{"name": "answer", "at": "answer"}, {"name": "day", "at": "mean:day"}]
    blackmail(tmp_path / "e", readings=readings, read_under_steering=True)
    sizes = {"scenarios_per_part": 16, "conditions_per_part": 20}
    one = finished(scripted(-0.5).stage(tmp_path / "e", **sizes), tmp_path / "one")[1]
    two = finished(scripted(-0.5).stage(tmp_path / "e", **sizes), tmp_path / "two", order=-1)[1]
    files = sorted(path.relative_to(one.folder) for path in one.folder.rglob("*") if path.is_file())
    assert len(files) > 10
    assert [name for name in files if (one.folder / name).read_bytes() != (two.folder / name).read_bytes()] == []


SMALL = {
    "sae": {"width": 64, "k": 8, "steps": 10, "batch": 128, "health_rows": 200, "health_texts": 0},
    "match": {"permutations": 19, "random_saes": 1, "contexts": 1},
}


STAGES = (MeasureStage, GradeStage, ConcludeStage)


@contextmanager
def computed() -> Iterator[dict[str, list[str]]]:
    """Within, the parts of the three stages that are computed, by stage."""
    names: dict[str, list[str]] = {stage.name: [] for stage in STAGES}

    def recording(stage, run_part):
        def record(self, part, out, progress):
            names[stage.name].append(part.name)
            run_part(self, part, out, progress)

        return record

    with pytest.MonkeyPatch.context() as patch:
        for stage in STAGES:
            patch.setattr(stage, "run_part", recording(stage, stage.run_part))
        yield names


def small_study(study_values, experiments: Path, **sections) -> dict:
    values = {**study_values, **SMALL, "experiments": {"folder": str(experiments), "run": "all"}}
    values["experiments"] |= {"scenarios_per_part": 16, "answers_per_part": 100}
    values["activations"] = {**study_values["activations"], "pooled_layers": [3]}
    return values | sections


def test_an_interrupted_study_goes_on_and_computes_again_only_what_reads_a_change(
    study_values, write_study, tmp_path, monkeypatch
):
    """Through the runner: killed after its third part, run again, shared by two processes, changed in many ways."""
    folder = blackmail(tmp_path / "e", readings=[{"name": "answer"}])
    values = small_study(study_values, tmp_path / "e")
    runner.run(Study.load(write_study(values)), only=["match"])
    shutil.copytree(values["cache"], tmp_path / "second")
    once = Study.load(write_study(values))

    # Killed, and run again.
    with computed() as first, pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        run_part = MeasureStage.run_part

        def stopping(self, part, out, progress):
            if len(first["measure"]) == 3:
                raise KeyboardInterrupt
            run_part(self, part, out, progress)

        patch.setattr(MeasureStage, "run_part", stopping)
        runner.run(once, only=["conclude"])
    with computed() as again:
        runner.run(once, only=["conclude"])
    assert len(first["measure"]) == 3 and not set(first["measure"]) & set(again["measure"])
    measured = {*first["measure"], *again["measure"]}
    assert plan.experiments(once, standing(once, MeasureStage))[0].state == "done"

    # Shared by two processes.
    shared = Study.load(write_study({**values, "cache": str(tmp_path / "second")}))
    runner.run(shared, only=["conclude"], workers=2)
    for stage in STAGES:
        a, b = (study.folder(stage) for study in (once, shared))
        names = [path.relative_to(a) for path in a.rglob("*") if path.is_file()]
        names = [name for name in names if name.name not in ("manifest.json", "part.json")]
        assert names and [name for name in names if (a / name).read_bytes() != (b / name).read_bytes()] == []

    # A damaged summary costs no part.
    findings = once.folder(ConcludeStage) / "findings.json"
    said = findings.read_bytes()
    findings.write_bytes(b"[]")
    with computed() as again:
        runner.run(once, only=["conclude"])
    assert findings.read_bytes() == said and not any(again.values())

    def change(**sections) -> dict[str, set[str]]:
        with computed() as names:
            runner.run(Study.load(write_study(values | sections)), only=["conclude"])
        return {stage: set(parts) for stage, parts in names.items()}

    def edit(name: str, old: str, new: str) -> None:
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    nothing: set[str] = set()
    graded = {"letters.grade-0000", "letters.grade-0001"}
    edit("experiment.yaml", "claim: It does.", "claim: It does, now and then.")
    assert change() == {"measure": nothing, "grade": nothing, "conclude": {"letters"}}
    edit("experiment.yaml", "kind: dose", "kind: dose\n  lowers: [calm]")
    assert change() == {"measure": nothing, "grade": nothing, "conclude": {"letters"}}
    edit("experiment.yaml", YES.strip(), f"{YES.strip()}|were")
    assert change() == {"measure": nothing, "grade": graded, "conclude": {"letters"}}
    edit("scenarios.jsonl", '"level": 0', '"level": 9')
    assert change() == {"measure": nothing, "grade": nothing, "conclude": {"letters"}}
    write_experiment(tmp_path / "e", "another", {"readings": [{"name": "x"}], "analyses": []}, ASKED)
    assert change() == {"measure": {"another.read-0000"}, "grade": nothing, "conclude": {"another"}}
    assert change(match={**SMALL["match"], "permutations": 20}) == {stage.name: nothing for stage in STAGES}
    assert change(directions={"permutations": 20}) == {stage.name: nothing for stage in STAGES}
    edit("scenarios.jsonl", "Letter 5", "Letter 55")
    assert change()["measure"] == {"letters.read-0000", "letters.choice-0002", "letters.completions-0005"}
    edit("experiment.yaml", "temperature: 0", "temperature: 1.0")
    assert change()["measure"] == {name for name in measured if "completions" in name}

    # A judge that is down half-way costs neither answers nor the grades that it gave.
    down = True
    server = Server(lambda prompt, _: (503, {}, b"") if down and "Letter 55" in prompt else "yes")
    config = yaml.safe_load((folder / "experiment.yaml").read_text())
    config["outcomes"][1]["grader"] = {
        "kind": "judge",
        "question": "{scenario} {answer} Is that so?",
        "labels": ["yes", "no"],
        "positive": "yes",
        "judges": [{"name": "judge", "model": "m", "address": server.address}],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
    with monkeypatch.context() as patch:
        patch.setattr(remote, "PAUSES", (0.01,))
        with computed() as names, pytest.raises(UserError, match="cannot be reached"):
            runner.run(Study.load(write_study(values)), only=["conclude"])
        assert names == {"measure": [], "grade": ["letters.grade-0000", "letters.grade-0001"], "conclude": []}
        down = False
        assert change() == {"measure": nothing, "grade": {"letters.grade-0001"}, "conclude": {"letters"}}
    server.close()


def test_how_the_work_is_cut_changes_no_number(scripted, tmp_path):
    """All scenarios and cells at once, or a few at a time: the same choices, readings and answers."""
    readings = [{"name": "answer", "at": "answer"}, {"name": "day", "at": "mean:day"}]
    rollout = {**COMPLETIONS, "temperature": 1.0}
    blackmail(tmp_path / "e", readings=readings, read_under_steering=True, outcomes=[{"kind": "choice"}, rollout])
    whole = finished(scripted(0.0).stage(tmp_path / "e"), tmp_path / "one")[1].measured("letters")
    small = {
        "scenarios_per_part": 8,
        "conditions_per_part": 20,
        "tokens_per_batch": 100,
        "completion_tokens_per_batch": 100,
    }
    pieces = finished(scripted(0.0).stage(tmp_path / "e", **small), tmp_path / "two")[1].measured("letters")
    np.testing.assert_allclose(pieces.choice, whole.choice, atol=1e-5)
    assert whole.readings["day"].shape == (len(whole.grid), len(ASKED), len(CONCEPTS))
    for name in ("answer", "day"):
        np.testing.assert_allclose(pieces.readings[name], whole.readings[name], atol=1e-4)
    assert [rollout.text for rollout in pieces.completions] == [rollout.text for rollout in whole.completions]
    assert 0 < np.mean([rollout.grade["label"] == "yes" for rollout in whole.completions]) < 1
    np.testing.assert_allclose(pieces.completion_state, whole.completion_state, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_tree_gives_what_its_branches_give_one_by_one(model_folder, family):
    """Real attention, steering included: the stem is read once, and no branch sees another."""
    model = ModelConfig(name=str(model_folder(family)), layer=1, dtype="float32")
    subject = Subject.load(model, device="cpu", models=Path("unused"))
    branching = Branching(PartialForward(subject, 1))
    generator = torch.Generator().manual_seed(0)
    stem, *branches = (tuple(torch.randint(3, 600, (size,), generator=generator).tolist()) for size in (7, 3, 1, 5))
    vectors = torch.randn(3, subject.shape.width, generator=generator)

    def scores(tree: Tree, mask: torch.Tensor, vectors: torch.Tensor = vectors) -> np.ndarray:
        outcome = branching.run(tree, branching.lower(tree), vectors, mask, keep=tree.places)
        return tree.collect(outcome.logits.log_softmax(dim=-1)).numpy()

    assert branching.shares
    together = scores(Tree(stem, tuple(branches)), torch.arange(16) >= 2)
    apart = [scores(Tree(stem, (branch,)), torch.arange(7 + len(branch)) >= 2)[:, 0] for branch in branches]
    np.testing.assert_allclose(together, np.stack(apart, axis=1), atol=1e-4)
    assert np.ptp(together, axis=0).min() > 1e-3, "the push does something"
    several = [Tree(stem, tuple(branches)), Tree(stem[:4], (branches[2],)), Tree(stem[:5], tuple(branches[:2]))]
    for tree, found in zip(several, branching.plain_scores(several), strict=True):
        alone = scores(tree, torch.zeros(len(tree.ids), dtype=torch.bool), vectors[:1])[0]
        np.testing.assert_allclose(found.numpy(), alone, atol=1e-4)
    assert sum(len(piece.branches) for piece in branching.split(Tree(stem, tuple(branches)), 11)) == 3


def test_read_positions_under_a_chat_template(model_folder, tmp_path):
    """The answer is read at the last token of the assistant's opening, before a prefilled beginning of it."""
    tokenizer = load_tokenizer(ModelConfig(name=str(model_folder("llama"))), Path())
    scenario = {**ASKED[1], "answer": "I think ", "options": {}}
    config = {"readings": [{"name": "x", "at": "answer"}], "analyses": []}
    (case,) = read_experiment(write_experiment(tmp_path, "one", config, [scenario])).scenarios
    places = ("answer", "last", "text", "mean:day", "end:day", "before:day", "mean:user", "mean:nothing")
    prompt = read_prompt(tokenizer, case, [ReadingConfig(name=f"r{n}", at=at) for n, at in enumerate(places)])
    spelled = {at: tokenizer.decode([prompt.ids[place] for place in prompt.places.get(at, ())]) for at in places}
    content = case.messages[0]["content"]
    assert (
        tokenizer.decode(prompt.ids[prompt.lead : prompt.opening + 1]) == f"<|user|>\n{content}<|end|>\n<|assistant|>\n"
    )
    assert tokenizer.decode(prompt.ids[prompt.opening + 1 :]) == "I think"
    assert prompt.places["answer"] == (prompt.opening,)
    assert spelled["text"] == spelled["mean:user"] == content
    assert spelled["mean:day"].strip() == "Tuesday morning"
    assert prompt.places["end:day"][0] == prompt.places["mean:day"][-1]
    assert prompt.places["before:day"][0] == prompt.places["mean:day"][0] - 1
    assert "mean:nothing" not in prompt.places
    assert tokenizer.decode(continuation(tokenizer, "I think ", "so")) == " so"
    assert tokenizer.decode(continuation(tokenizer, "I think", "so")) == " so"
    assert tokenizer.decode(continuation(tokenizer, "", "so")) == "so"


def test_readings_are_cosines_under_one_centre_and_missing_spans_are_missing(scripted, tmp_path):
    """Embeddings are the residuals of this model, so every reading is known."""
    scenarios = [{**case, "spans": case["spans"] if number else {}} for number, case in enumerate(ASKED)]
    readings = [
        {"name": "day", "at": "mean:day", "keep_residual": True},
        {"name": "feature", "at": "text", "by": "features"},
    ]
    write_experiment(tmp_path / "e", "reads", {"readings": readings, "analyses": []}, scenarios)
    model = scripted(0.0)
    measured = finished(model.stage(tmp_path / "e"), tmp_path / "out")[1].measured("reads")
    residuals = measured.residuals["day"]
    assert np.isnan(residuals[0]).all() and np.isfinite(residuals[1:]).all()
    centred = residuals[1:] - residuals[1:].mean(axis=0)
    expected = (centred @ model.directions.numpy().T) / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(measured.readings["day"][0, 1:], expected, atol=1e-5)
    assert np.isnan(measured.readings["day"][0, 0]).all()
    assert (measured.readings["feature"] >= 0).all() and measured.readings["feature"].max() > 0
    assert measured.words.shape == (len(ASKED), len(CONCEPTS))
    assert measured.grid == grid(None, CONCEPTS)


def test_a_second_model_is_read_under_the_centre_of_the_first(scripted, tmp_path):
    config = {
        "readings": [{"name": "answer", "at": "mean:day", "keep_residual": True}],
        "against": True,
        "analyses": [],
    }
    write_experiment(tmp_path / "e", "two", config, ASKED)
    same = {"name": str(scripted(3.0, 0.0).folder), "dtype": "float32", "layer": LAYER}
    measured = finished(scripted(0.0).stage(tmp_path / "e", against=same), tmp_path / "out")[1].measured("two")
    np.testing.assert_allclose(measured.against["answer"], measured.readings["answer"][0], atol=1e-5)


def test_all_pairs_are_compared_and_steers_the_words_of_the_steered_items(scripted, tmp_path):
    """Of a model that looks at the last token alone: positions make no difference, nor do steered items' own tokens."""
    items = [
        {"id": f"item-{n}", "factors": {"category": "ab"[n % 2]}, "text": f"counting {n} stones"} for n in range(6)
    ]
    question = {
        "kind": "pairwise",
        "question": "Which one?\nA: {a}\nB: {b}",
        "labels": [YES, NO],
        "steered": 3,
        "comparisons": 2,
    }
    config = {"outcomes": [question], "steering": STEERING, "analyses": []}
    folder = write_experiment(tmp_path / "e", "games", config, items)
    measured = finished(scripted(1.0).stage(tmp_path / "e"), tmp_path / "out")[1].measured("games")
    assert measured.comparisons.shape == (len(measured.compared), 6, 6)
    assert np.isnan(np.diagonal(measured.comparisons[0])).all()
    np.testing.assert_allclose(measured.comparisons[0][~np.eye(6, dtype=bool)], 1.0, atol=1e-4)
    assert measured.steered.tolist() == [True, False] * 3
    compared_pairs = np.isfinite(measured.comparisons[1])
    assert (compared_pairs == compared_pairs.T).all() and compared_pairs.sum() == 2 * 3 * 2
    assert not compared_pairs[::2, ::2].any() and not compared_pairs[1::2, 1::2].any()
    assert {measured.grid[index].strength for index in measured.compared} == {0.0, 0.2, -0.2}
    assert compared(read_experiment(folder).config, CONCEPTS) == measured.compared


def test_steering_an_item_reaches_its_words_and_nothing_else(model_folder, tmp_path):
    """On a model with attention: pairs with a steered item change as separate prompts with a named span do."""
    source = ModelConfig(name=str(model_folder("llama")), layer=LAYER, dtype="float32")
    items = [
        {"id": f"item-{n}", "factors": {"category": "x"}, "text": text}
        for n, text in enumerate(("a stone", "two old boats", "rain"))
    ]
    question = {
        "kind": "pairwise",
        "question": "Which?\nB: {b}\nA: {a}",
        "labels": [YES, NO],
        "steered": 1,
        "comparisons": 0,
    }
    config = {"outcomes": [question], "steering": STEERING, "analyses": []}
    write_experiment(tmp_path / "e", "games", config, items)
    stage = Scripted(model_folder("llama"), tmp_path / "unused", 0.0).stage(tmp_path / "e")
    stage.setting.__dict__["model"] = source
    context = stage.context
    found = pairwise.measure(context, context.experiments["games"], 0, 3)["comparisons"]
    games = context.experiments["games"]
    cells = [context.grid(games)[index] for index in compared(games.config, CONCEPTS)]
    settings: Any = context.experiments["games"].config.outcomes[0]
    for first, second in ((0, 1), (2, 0)):
        ids, a, b = pairwise.question(context, settings, items[first]["text"], items[second]["text"])
        mine = a if first == 0 else b
        assert context.subject.tokenizer.decode([ids[place] for place in mine]).strip() == "a stone"
        tree = Tree(ids)
        mask = torch.zeros(len(ids), dtype=torch.bool)
        mask[mine] = True
        vectors, last = context.pushes(cells, "directions"), [len(ids) - 1]
        alone = context.branching.run(tree, context.branching.lower(tree), vectors, mask, keep=last).logits[:, 0]
        yes, no = (context.subject.encode(word)[0] for word in (YES, NO))
        np.testing.assert_allclose(found[:, first, second], (alone[:, yes] - alone[:, no]).numpy(), atol=1e-4)
    assert np.isnan(found[1:, 1, 2]).all() and np.isfinite(found[0, 1, 2])
    assert np.ptp(found[:, 0, 1]) > 1e-4


def test_steered_items_meet_the_others_evenly_and_are_met_by_them():
    outcome: Any = {"kind": "pairwise", "question": "{a} {b}", "steered": 32, "comparisons": 8}
    settings: Any = ExperimentConfig(
        title="", claim="", refuted_by="", analyses=(),
        outcomes=(outcome,),
    ).outcomes[0]  # fmt: skip
    met = pairwise.pairs(64, settings)
    assert {len(others) for others in met.values()} == {8}
    assert all(other % 2 != item % 2 and item in met[other] for item, others in met.items() for other in others)


def test_items_come_from_a_file_when_one_is_named(scripted, tmp_path):
    question = {"kind": "pairwise", "question": "{a} or {b}?", "labels": [YES, NO], "items": "mine.csv"}
    folder = write_experiment(tmp_path / "e", "games", {"outcomes": [question], "analyses": []}, ASKED)
    with (folder / "mine.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["text", "category"], ["digging", "work"], ["singing", "play"], ["sleeping", "rest"]]
        )
    measured = finished(scripted(1.0).stage(tmp_path / "e"), tmp_path / "out")[1].measured("games")
    assert measured.items == (("digging", "work"), ("singing", "play"), ("sleeping", "rest"))
    assert measured.comparisons.shape == (1, 3, 3)


def test_the_grid_has_controls_at_the_extremes():
    concepts = ("afraid", "calm", "proud", "sad", "tired")
    steering = SteeringConfig(vectors=("calm", "sad"), strengths=(0.05, 0.1), controls=20, completion_controls=4)
    conditions = grid(steering, concepts)
    assert len(conditions) == 1 + 2 * 2 + 20
    assert {each.vector for each in conditions if each.family == "wrong_emotion"} == {"afraid", "proud", "tired"}
    assert extremes((0.05, 0.1)) == (0.1,)
    assert extremes((-0.1, 0.05)) == (0.05, -0.1)
    config = ExperimentConfig(
        title="", claim="", refuted_by="", analyses=(), outcomes=(COMPLETIONS,), steering=steering
    )  # fmt: skip
    assert [(conditions[index].family, conditions[index].strength) for index in sampled(config, concepts)] == [
        ("none", 0.0), ("concept", 0.1), ("concept", 0.1),
        *((family, 0.1) for family in ("isotropic", "covariance", "permuted", "wrong_emotion")),
    ]  # fmt: skip


def test_names_of_the_last_release_are_read_with_a_warning():
    with pytest.warns(FutureWarning, match="`completions` now"):
        assert not ExperimentsConfig.model_validate({"rollouts": False}).completions
    former = {
        "title": "", "claim": "", "refuted_by": "", "analyses": [],
        "outcomes": [{"kind": "tournament", "question": "{a} {b}", "opponents": 3}, {**COMPLETIONS, "kind": "rollout"}],
        "steering": {"vectors": ["calm"], "rollout_controls": 20},
    }  # fmt: skip
    with pytest.warns(FutureWarning, match="now"):
        config: Any = ExperimentConfig.model_validate(former)
    assert [outcome.kind for outcome in config.outcomes] == ["pairwise", "completions"]
    assert config.outcomes[0].comparisons == 3 and config.steering.completion_controls == 20


def test_whatever_a_model_says_is_kept_as_it_was_said(tmp_path):
    rows = [{"text": "one\u2028two\x85three\x0b\r\n\x1c\ud7ff", "loss": float("nan")}, {"text": "", "loss": 0.5}]
    keeping.write_jsonl(tmp_path / "said.jsonl", rows)
    assert keeping.read_jsonl(tmp_path / "said.jsonl") == [{**rows[0], "loss": None}, rows[1]]


def test_nothing_is_run_unless_it_is_asked_for(scripted, tmp_path):
    blackmail(tmp_path / "e")
    stage = scripted(0.0).stage(tmp_path / "e", run=())
    assert [part.name for part in stage.parts()] == [NOTHING]
    metrics, found = finished(stage, tmp_path / "out")
    assert metrics == {"completions": 0.0} and found.findings == []


def test_adding_a_folder_adds_an_experiment(scripted, tmp_path):
    blackmail(tmp_path / "e")
    first = [part.name for part in scripted(0.0).stage(tmp_path / "e").parts()]
    write_experiment(tmp_path / "e", "another", {"readings": [{"name": "x"}], "analyses": []}, ASKED)
    both = [part.name for part in scripted(0.0).stage(tmp_path / "e").parts()]
    assert set(both) - set(first) == {"another.read-0000"}
    assert choosing.names_in(tmp_path / "e") == ["another", "letters"]


def test_a_limit_keeps_whole_groups_spread_over_the_file(tmp_path):
    scenarios = [{**case, "id": f"{case['id']}-{n}", "group": case["id"]} for case in ASKED for n in range(2)]
    write_experiment(tmp_path, "some", {"readings": [{"name": "x"}], "analyses": []}, scenarios)
    (experiment,) = choosing.read_chosen(tmp_path, "all", 3)
    assert [scenario.id for scenario in experiment.scenarios] == [f"case-{g}-{n}" for g in (0, 2, 4) for n in (0, 1)]


CHOICE = {"outcomes": [{"kind": "choice"}], "steering": STEERING, "analyses": [DOSE]}
READ_X = {"readings": [{"name": "x"}]}


@pytest.mark.parametrize(
    ("config", "scenario", "message"),
    [
        ({"steering": {**STEERING, "vectors": ["afriad"]}}, {}, r"steering.vectors: afriad.*did you mean `afraid`"),
        (
            {"analyses": [{"kind": "concept_identification", "reading": "anwser"}], "readings": [{"name": "answer"}]},
            {},
            "no reading `anwser`; did you mean `answer`",
        ),
        (
            {"analyses": [{"kind": "concept_identification", "reading": "x", "factor": "emotoin"}], **READ_X},
            {},
            "factor: emotoin.*did you mean `emotion`",
        ),
        ({"readings": [{"name": "x", "at": "mean:dya"}]}, {}, "no scenario has the span `dya`.*did you mean `day`"),
        ({}, {"options": {"target": [YES]}}, "scenario case-0: `options` has no `other`"),
        ({}, {"options": {"target": [YES], "other": [" "]}}, "one of its `options` is empty"),
        ({"against": True, "readings": [{"name": "x"}]}, {}, "experiments.against"),
        ({"analyses": [{"kind": "rate", "label": "yes"}]}, {}, "needs the outcome `completions`"),
        ({"analyses": [{"kind": "dose", "raises": ["sad"]}]}, {}, "`sad` is not among `steering.vectors`"),
        ({"analyses": [{"kind": "dose", "conditions": ["mian"]}]}, {}, "condition `mian`; did you mean `main`"),
        ({"outcomes": [{"kind": "pairwise", "question": "{a}?"}], "analyses": []}, {}, r"must hold \{b\} once"),
        (
            {"prompts": [{"condition": "asked_for", "sentence": "Do.", "of": "mian"}]},
            {},
            "`prompts`: no scenario has the condition `mian`; did you mean `main`",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_sentence_before_anything_runs(tmp_path, config, scenario, message):
    write_experiment(tmp_path, "wrong", {**CHOICE, **config}, [{**ASKED[0], **scenario}, *ASKED[1:]])
    (experiment,) = choosing.read_chosen(tmp_path, "all")
    with pytest.raises(UserError, match=message) as raised:
        choosing.check_experiment(experiment, CONCEPTS, second=False)
    assert "\n" not in str(raised.value)


def test_a_study_names_the_nearest_experiment_and_the_missing_layer(study_values, write_study, tmp_path):
    blackmail(tmp_path / "e", read_under_steering=True, readings=[{"name": "x"}])
    wrong = {"experiments": {"folder": str(tmp_path / "e"), "run": ["leters"]}}
    with pytest.raises(ConfigError, match="did you mean `letters`"):
        Study.load(write_study({**study_values, **wrong}))
    wrong["experiments"]["run"] = ["letters"]
    with pytest.raises(ConfigError, match=r"add a higher layer to `activations\.pooled_layers`"):
        Study.load(write_study({**study_values, **wrong}))
    with pytest.raises(ConfigError, match="no such folder"):
        Study.load(write_study({**study_values, "experiments": {"folder": "nowhere", "run": "all"}}))
    layers = {"activations": {**study_values["activations"], "pooled_layers": [0, 3]}}
    assert Study.load(write_study({**study_values, **wrong, **layers})).config.experiments.run == ("letters",)


def test_the_list_tells_costs_without_loading_torch(study_values, write_study, tmp_path):
    import subprocess
    import sys

    blackmail(tmp_path / "e")
    values = {**study_values, "experiments": {"folder": str(tmp_path / "e"), "run": "all"}}
    values["activations"] = {**study_values["activations"], "pooled_layers": [3]}
    code = (
        "import sys; from affectlens.cli import app; app(['experiments', sys.argv[1]], standalone_mode=False); "
        "assert not {'torch', 'scipy', 'transformers'} & set(sys.modules)"
    )
    path = write_study(values)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("letters")]
    assert line.split()[1:4] == ["6", "6", "89"]
    config = read_experiment(tmp_path / "e" / "letters").config
    answers = 6 * 2 * len(sampled(config, study_values["corpus"]["emotions"]))
    assert line.split()[5] == str(6 * answers)
