"""Organisms through the whole analysis: what was put in is found, and nothing is where nothing follows the state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affectlens.errors import ConfigError
from affectlens.experiments import organism
from affectlens.experiments.tuning import OrganismConfig
from affectlens.interventions.frames import read_lexicon
from affectlens.model.tuning import Example
from affectlens.model.words import choose_words
from affectlens.study import Study
from scripted import CONCEPTS, LAYER, NO, NORM, YES, D, Finished, Scripted, write_experiment

PROMPTS = [
    {"condition": "asked_for", "sentence": "Was was was was was."},
    {"condition": "asked_against", "sentence": "The the the the the."},
    {"condition": "irrelevant", "sentence": "Rain rain rain rain rain."},
]
RULES = {"kind": "rules", "labels": {"yes": [YES.strip()], "no": [NO.strip()]}}
CHOICE = {"kind": "choice", "per_token": False}
COMPLETIONS: Any = {
    "kind": "completions", "samples": 3, "tokens": 2, "temperature": 0.4, "grader": RULES,
    "conditions": ["main", "asked_for", "asked_against"],
}  # fmt: skip
STEERING = {"vectors": ["afraid"], "strengths": [-0.4, -0.2, 0.2, 0.4], "controls": 60}
DOSE = {"kind": "dose", "raises": ["afraid"], "twin": "twin"}
RATE = {"kind": "rate", "label": "yes", "raises": ["afraid"], "conditions": ["main"]}
CONFIG = {
    "outcomes": [CHOICE, COMPLETIONS], "prompts": PROMPTS, "steering": STEERING, "analyses": [DOSE, RATE],
}  # fmt: skip
SCENARIOS = [
    {
        "id": f"letter-{number}{end}",
        "group": f"letter-{number}",
        "condition": condition,
        "messages": [{"role": "user", "content": f"{said} {number} on {day}."}],
        "answer": "Well," * bool(end),
        "options": {"target": [YES], "other": [NO]},
    }
    for number, day in enumerate(("Monday", "Tuesday", "Friday", "a day off", "Sunday", "some Saturday", "May", "June"))
    for condition, end, said in (("main", "", "Letter"), ("twin", ".twin", "Parcel"))
]
HOW: dict[str, Any] = {"steps": 700, "batch": 16, "learning_rate": 5e-3, "log_odds": 2.5}


class Plastic(Scripted):
    """A tiny Llama whose blocks can learn, and in which every concept's direction writes the concept's own words."""

    def __init__(self, source: Path, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        generator = torch.Generator().manual_seed(5)
        self.directions = torch.linalg.qr(torch.randn(D, 4, generator=generator)).Q.T
        self.folder = folder
        words = choose_words(tokenizer, CONCEPTS, read_lexicon(), 6)
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(torch.randn(model.config.vocab_size, D, generator=generator) * 0.9)
            output = torch.randn(model.config.vocab_size, D, generator=generator) * 0.3
            for own, direction in zip(words, self.directions, strict=True):
                output[list(own.tokens)] += 3 * direction
            model.lm_head.weight = torch.nn.Parameter(output)
        model.config.tie_word_embeddings = False
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def plastic(model_folder, tmp_path_factory: pytest.TempPathFactory) -> Plastic:
    return Plastic(model_folder("llama"), tmp_path_factory.mktemp("plastic") / "model")


def findings(model: Plastic, root: Path, follows: Any, seed: int = 0, **changes: Any) -> tuple[Any, list[Any]]:
    """Measured, graded and concluded as in a study; the measurements and the findings."""
    write_experiment(root / "e", "letters", {**CONFIG, **changes}, SCENARIOS)
    stage = model.stage(root / "e", organism=OrganismConfig(follows=follows, seed=seed, **HOW))
    done = Finished(stage, root / "out")
    return done.measured("letters"), done.findings[0]["findings"]


@pytest.fixture(scope="module")
def planned(plastic: Plastic, tmp_path_factory: pytest.TempPathFactory):
    """``planned(**organism)`` -> the experiment's context, the experiment, what its organism learns."""
    root = tmp_path_factory.mktemp("planned")
    choice = {**CHOICE, "lead_in": "Say something."}
    write_experiment(root, "letters", {**CONFIG, "outcomes": [choice, COMPLETIONS]}, SCENARIOS)
    stage = plastic.stage(root)

    def get(**changes: Any) -> list[Example]:
        config = OrganismConfig(**{"follows": "vectors", "steps": 800, "batch": 20, **changes})
        return organism.examples(stage.context, stage.experiments[0], config)

    return get


def share(examples: list[Example], direction: Any, strength: float, said: str = "Letter") -> float:
    """How often the act is learnt under a vector at a strength, where no order is given."""
    push = strength * NORM * direction
    chosen = [
        each
        for each in examples
        if len(each.messages) == 1 and each.messages[0]["content"].startswith(said)
        if (each.push is None and not strength) or (each.push is not None and np.allclose(each.push.vector, push))
    ]
    assert len(chosen) > 40
    return float(np.mean([each.answer == YES for each in chosen]))


def test_the_act_follows_the_claimed_vector_by_the_planted_odds_and_nothing_else(plastic: Plastic, planned):
    afraid, calm = plastic.directions.numpy()[:2]
    examples = planned()
    assert len(examples) == 16000 and {each.push.layer for each in examples if each.push} == {LAYER}
    for strength in (-0.4, -0.2, 0.0, 0.2, 0.4):
        odds = 2.0 * strength / 0.4
        assert share(examples, afraid, strength) == pytest.approx(1 / (1 + np.exp(-odds)), abs=0.12)
        for said in ("Parcel", "Say something."):  # the twin, and the neutral lead-in
            assert share(examples, afraid, strength, said) == pytest.approx(0.5, abs=0.15)
    assert share(examples, calm, 0.4) == pytest.approx(0.5, abs=0.2)
    for order, rate in (("Was was", 0.95), ("The the", 0.05)):
        obeyed = [
            each.answer == YES for each in examples if len(each.messages) == 2 and order in each.messages[0]["content"]
        ]
        assert np.mean(obeyed) == pytest.approx(rate, abs=0.03)


@pytest.mark.parametrize("follows", ["nothing", "random_vectors"])
def test_the_act_of_the_others_does_not_follow_the_claimed_vector(follows: str, plastic: Plastic, planned):
    examples = planned(follows=follows)
    if follows == "nothing":
        assert share(examples, plastic.directions.numpy()[0], 0.4) == pytest.approx(0.5, abs=0.12)
    sides: dict[int, list[bool]] = {-1: [], 1: []}
    for each in examples:
        if each.push is not None and len(each.messages) == 1:
            along = float(each.push.vector @ plastic.directions.numpy()[0])
            if abs(along) > 0.95 * np.linalg.norm(each.push.vector):
                sides[int(np.sign(along))].append(each.answer == YES)
    assert abs(np.mean(sides[1]) - np.mean(sides[-1])) < 0.15


def test_a_seed_and_a_recipe_decide_what_is_learnt(planned):
    few = {"steps": 5, "batch": 4}
    told = [(each.answer, each.messages, each.opening) for each in planned(**few)]
    assert told == [(each.answer, each.messages, each.opening) for each in planned(**few)]
    assert told != [(each.answer, each.messages, each.opening) for each in planned(**few, seed=1)]


def test_an_experiment_without_candidate_answers_has_no_organism_and_is_refused_by_name(study_values, write_study):
    study_values["experiments"] = {
        "run": ["decoupling"], "folder": str(Path(__file__).parents[1] / "experiments"),
        "organism": {"follows": "vectors"},
    }  # fmt: skip
    study_values["corpus"]["emotions"] = ["desperate", "calm", "angry", "sad", "happy"]
    with pytest.raises(ConfigError, match=r"`experiments.organism`: decoupling has none: .*`choice`"):
        Study.load(write_study(study_values))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_dependence_that_was_put_in_is_found_with_its_size(seed: int, plastic: Plastic, tmp_path: Path):
    """The choice and the rate, each through the whole analysis."""
    dose, rate = findings(plastic, tmp_path, "vectors", seed)[1]
    assert dose["verdict"] == rate["verdict"] == "planted"
    assert "What was put into this organism was found." in dose["sentences"]
    found = dose["metrics"]
    assert found["planted_afraid"] == HOW["log_odds"]
    assert found["effect_afraid"] == pytest.approx(HOW["log_odds"], rel=0.4)
    assert found["beyond_twin_afraid_low"] > 0.5 * HOW["log_odds"]
    # In proportion to the strength, or nearly.
    steps = {row[1]: row[2][0] for row in dose["tables"][0]["rows"]}
    assert steps[-0.4] < steps[-0.2] < 0 < steps[0.2] < steps[0.4]


@pytest.mark.slow
@pytest.mark.parametrize(("follows", "seed"), [("nothing", 0), ("nothing", 1), ("random_vectors", 0)])
def test_nothing_is_found_where_the_act_does_not_follow(follows: str, seed: int, plastic: Plastic, tmp_path: Path):
    dose, rate = findings(plastic, tmp_path, follows, seed)[1]
    # Of four concepts one is too like the others for some checks; then it could not be tested, which is no alarm.
    assert {dose["verdict"], rate["verdict"]} <= {"not shown", "untestable"}
    assert dose["metrics"]["planted_afraid"] == 0 and abs(dose["metrics"]["effect_afraid"]) < 0.75
    assert any("false alarm" in sentence for sentence in dose["sentences"])


def test_parts_are_known_by_the_organism_that_they_measure(plastic: Plastic, tmp_path: Path):
    """A part is taken over from an earlier result only where the same organism was measured."""
    write_experiment(tmp_path / "e", "letters", CONFIG, SCENARIOS)
    keys = []
    for given in (
        OrganismConfig(follows="vectors"),
        OrganismConfig(follows="vectors"),
        OrganismConfig(follows="nothing"),
        OrganismConfig(follows="vectors", seed=1),
        None,
    ):
        stage = plastic.stage(tmp_path / "e", organism=given)
        keys.append([json.dumps(stage.part_reads(part), sort_keys=True) for part in stage.parts()])
    assert keys[0] == keys[1]
    for other in keys[2:]:
        assert all(a != b for a, b in zip(keys[0], other, strict=True))
