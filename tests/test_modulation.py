"""A model that speaks under a circuit: planted units write words, arms are equally large, answers are heard blind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import affectlens
import numpy as np
import pytest
import torch
import yaml
from affectlens.circuits import rates
from affectlens.circuits.choice import MASK, Masking, OwnChoice, Window, picks, shuffled
from affectlens.circuits.modulation import (
    CLOSE,
    Arm,
    Tuning,
    equally_large,
    prompt_of,
    raw_arms,
    speak,
    writers_of,
)
from affectlens.circuits.units import Push, Unit, Units, edits, measure, total_norm, write_units
from affectlens.corpus.scenarios import read_events
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.errors import ConfigError
from affectlens.experiments.grade.vote import Vote
from affectlens.model.steering import editing
from affectlens.model.subject import ModelConfig, Subject
from affectlens.stages.modulation import Picked
from affectlens.study import Study
from tiny import EMOTIONS, build_model

EVENTS = read_events(per_theme=1, outcomes=("neutral",))[:3]
WORDS = {"sad": " was", "proud": " the"}
"""What the planted units write; each is one token of the tiny tokenizer."""
HEAD, NEURON = Unit("head", 2, 1), Unit("neuron", 3, 9)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Subject, Units]:
    """A Llama in which a head writes one word and a neuron another one, and no other unit writes anything."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("planted")
    source = build_model(folder / "source", "llama")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        plane = torch.eye(32)
        model.model.layers[HEAD.layer].self_attn.o_proj.weight[:, HEAD.index * 8] = plane[0]
        model.model.layers[NEURON.layer].mlp.down_proj.weight[:, NEURON.index] = plane[1]
        model.model.embed_tokens.weight.copy_(torch.randn(640, 32, generator=generator))
        model.model.embed_tokens.weight[:, :2] = 0  # nothing else stands in the two planted dimensions
        model.lm_head.weight.copy_(torch.randn(640, 32, generator=generator))
        model.lm_head.weight[:, :2] = 0
        for axis, word in enumerate(WORDS.values()):
            (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
            model.lm_head.weight[token, axis] = 20.0
        model.lm_head.weight[1] = -20.0 * model.lm_head.weight[1].abs()  # answers do not end early
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    subject = Subject.load(ModelConfig(name=str(folder / "model"), dtype="float32"), device="cpu", models=folder)
    rng = np.random.default_rng(0)
    heads, neurons = 0.1 * rng.normal(size=(2, 4, 4, 8)), 0.1 * rng.normal(size=(2, 4, 64))
    heads[0, HEAD.layer, HEAD.index, 0] = neurons[1, NEURON.layer, NEURON.index] = 2.0
    units = Units(
        ("sad", "proud"), heads.astype(np.float32), neurons.astype(np.float32),
        rng.normal(size=(2, 4, 32)).astype(np.float32), np.full(4, 5.0), {"sad": (HEAD,), "proud": (NEURON,)},
    )  # fmt: skip
    return subject, units


def said(subject: Subject, arms: list[Arm], tokens: int = 12) -> list[list[str]]:
    chances = np.random.default_rng(1).random((len(EVENTS), tokens))
    return [[each.text for each in row] for row in speak(subject, arms, EVENTS, "sad", chances, temperature=1.0)]


@pytest.mark.parametrize("concept", ["sad", "proud"])
def test_a_planted_unit_writes_its_word_and_the_wrong_circuit_and_random_ones_do_not(planted, concept):
    subject, units = planted
    other = "proud" if concept == "sad" else "sad"
    nowhere: Push = {(0, "residual"): np.zeros(32, dtype=np.float32)}
    arms = raw_arms(units, concept, other, nowhere, 2, np.random.default_rng(0))
    pushes = {arm.name + str(arm.number): arm for arm in arms}
    big = [replace(arm, push={w: 40 * v for w, v in (arm.push or {}).items()}) for arm in pushes.values()]
    texts = dict(zip(pushes, said(subject, [Arm("plain"), *big])[1:], strict=True))
    plain = said(subject, [Arm("plain")])[0]
    own, wrong = WORDS[concept].strip(), WORDS[other].strip()
    for text in texts["circuit0"]:
        assert text.split() == [own] * 12, "every decoded token is changed"
    for text in texts["wrong_emotion0"]:
        assert text.split() == [wrong] * 12
    assert texts["random0"] == texts["random1"] == plain


def test_taking_away_what_a_unit_adds_takes_the_word_away(planted):
    subject, units = planted
    push = units.push([HEAD], "sad")
    less = {where: -40 * values for where, values in push.items()}
    (word,) = subject.encode(WORDS["sad"])
    prompt = torch.tensor([prompt_of(subject, EVENTS[0])])
    with torch.no_grad():
        plain = subject.bridge(prompt)[0, -1].log_softmax(-1)[word]
        with editing(subject.bridge, edits([less], prompt.shape[1] - 1, "cpu")):
            without = subject.bridge(prompt)[0, -1].log_softmax(-1)[word]
    assert without < plain - 5


def test_the_heads_that_write_along_a_direction_are_found(planted):
    subject, units = planted
    directions = {"sad": np.eye(32)[0], "proud": np.eye(32)[1]}
    found = writers_of(units, subject, directions, layer=3, share=1 / 16)
    assert found["sad"] == (HEAD,)
    assert all(unit.layer <= 1 for unit in writers_of(units, subject, directions, layer=1, share=1.0)["sad"])


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def measured(request, tmp_path_factory) -> tuple[Subject, Units, Tuning]:
    """Random weights, large enough that pushes are felt, in two architectures."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    build_model(folder / "model", request.param)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim > 1:
                values.mul_(8.0)
    model.save_pretrained(folder / "model")
    subject = Subject.load(ModelConfig(name=str(folder / "model"), dtype="float32"), device="cpu", models=folder)
    rng = np.random.default_rng(0)
    rows = [[0, *rng.integers(3, 600, 15 + n).tolist()] for n in range(8)]
    units = measure(subject, rows, [0, 1, 2, 3] * 2, EMOTIONS, first=4)
    circuit = (Unit("head", 1, 0), Unit("head", 2, 3), Unit("neuron", 2, 5))
    units = replace(units, circuits={"sad": circuit, "calm": (Unit("head", 0, 1), Unit("neuron", 3, 7))})
    prompts = [prompt_of(subject, event) for event in EVENTS[:2]]
    answers = [rng.integers(3, 600, 7).tolist(), rng.integers(3, 600, 4).tolist()]
    return subject, units, Tuning(subject, prompts, answers)


def test_the_divergence_of_a_push_is_that_of_whole_texts_read_at_once(measured):
    subject, units, tuning = measured
    push = {where: 3 * values for where, values in units.push(units.circuit("sad"), "sad").items()}
    total = 0.0
    prompts = [prompt_of(subject, event) for event in EVENTS[:2]]
    for prompt, (_, tokens, _) in zip(prompts, tuning._read, strict=True):
        whole = torch.tensor([[*prompt, *tokens[0, 1:].tolist()]])
        with torch.no_grad():
            plain = subject.bridge(whole)[0, len(prompt) - 1 :].log_softmax(-1)
            with editing(subject.bridge, edits([push], len(prompt) - 1, "cpu")):
                moved = subject.bridge(whole)[0, len(prompt) - 1 :].log_softmax(-1)
        total += float((moved.exp() * (moved - plain)).sum(-1).mean()) / 2
    assert tuning.divergences([{}, push]) == pytest.approx([0.0, total], abs=1e-4)
    assert tuning.prompted(prompts) == pytest.approx(0.0, abs=1e-5)
    assert tuning.prompted([[0, 5, 9], [0, 7]]) > 0.01


@pytest.mark.parametrize("target", [0.02, 0.3])
def test_all_arms_have_one_divergence_or_one_norm(measured, target):
    subject, units, tuning = measured
    direction: Push = {(2, "residual"): units.residual[3, 2]}
    raw = raw_arms(units, "sad", "calm", direction, 2, np.random.default_rng(0))
    arms = equally_large(tuning, raw, target, units.norms)
    by_divergence = [arm for arm in arms if arm.match == "divergence"]
    by_norm = [arm for arm in arms if arm.match == "norm"]
    assert [arm.name for arm in by_divergence] == [arm.name for arm in raw]
    assert [arm.name for arm in by_norm] == [arm.name for arm in raw[1:]]
    for arm in by_divergence:
        assert arm.divergence == pytest.approx(target, rel=CLOSE + 0.01)
    for arm in arms:
        assert arm.norm == pytest.approx(total_norm(arm.push or {}, subject, units.norms), rel=1e-4)
    for arm in by_norm:
        assert arm.norm == pytest.approx(by_divergence[0].norm, rel=1e-4)
    again = tuning.divergences([arm.push or {} for arm in arms])
    assert [arm.divergence for arm in arms] == pytest.approx(again.tolist(), rel=1e-3)


def test_a_push_that_moves_nothing_is_left_short_and_said_so(planted):
    subject, units = planted
    tuning = Tuning(subject, [prompt_of(subject, EVENTS[0])], [[5, 6, 7]])
    nothing = units.push([Unit("head", 0, 3)], "sad")
    factors, reached = tuning.factors([nothing, units.push([HEAD], "sad")], 0.5)
    assert reached[0] == pytest.approx(0.0, abs=1e-6)
    assert reached[1] == pytest.approx(0.5, rel=CLOSE + 0.01)
    assert np.isfinite(factors).all()
    with pytest.raises(ValueError, match="answers nothing"):
        Tuning(subject, [[0, 5]], [[]])


def test_arms_share_their_draws_and_only_prompting_has_another_prompt(measured):
    subject, _, _ = measured
    chances = np.random.default_rng(1).random((2, 8))
    arms = [Arm("plain"), Arm("circuit", push={}), Arm("prompting")]
    plain, same, prompted = speak(subject, arms, EVENTS[:2], "sad", chances, temperature=1.0, rows=4)
    assert plain == same
    assert plain != prompted
    (greedy,) = speak(subject, [Arm("plain")], EVENTS[:2], "sad", chances, temperature=0.0)
    assert len({each.text for each in greedy}) >= 1
    assert all(math.isfinite(each.nats) for each in plain if each.tokens)


def test_own_words_are_masked_whatever_the_emotion():
    masking = Masking(("sad", "at ease", "proud"), {"sad": ["weeping"], "proud": ["dignified"]})
    text = "Sadly the king sat proudly, weeping; he was DIGNIFIED, at his ease."
    assert masking.mask(text) == f"{MASK} the king sat {MASK}, {MASK}; he was {MASK}, at his {MASK}."
    assert masking.names(text, "sad")
    assert not masking.names("a dignified king", "sad")


@pytest.mark.parametrize(
    ("text", "tokens", "nats", "fault"),
    [
        ("I went home and ate.", list(range(8)), 3.0, ""),
        ("I", [4], 3.0, "short"),
        ("...... --- ,,,", list(range(8)), 3.0, "short"),
        ("no no no no no no no", [4] * 12, 3.0, "repetition"),
        ("I HAVE HAD ENOUGH OF THIS NOW", list(range(8)), 3.0, "capitals"),
        ("well incompetentincompetentincompetent it is", list(range(8)), 3.0, "letters"),
        ("Quite odd words here.", list(range(8)), 3.0 + math.log(8) + 0.01, "perplexity"),
        ("Quite flat words here.", list(range(8)), 3.0 - math.log(8) - 0.01, "perplexity"),
        ("Nothing is known of it.", list(range(8)), math.nan, "perplexity"),
    ],
)
def test_broken_texts_are_told_from_whole_ones(text, tokens, nats, fault):
    assert Window().fault(text, tokens, nats, 3.0) == fault


def test_a_choice_is_calibrated_where_scores_cannot_be_compared():
    scores = np.array([[-1.0, -9.0], [-2.0, -8.0], [np.nan, np.nan]])
    assert picks(scores, calibrated=True) == [0, 0, None]
    assert picks(scores, calibrated=False) == [0, 1, None]


def test_the_model_chooses_among_options_it_is_shown(tiny_subject):
    subject = tiny_subject("llama")
    chooser = OwnChoice(subject)
    options = shuffled(EMOTIONS, 3, np.random.default_rng(0))
    assert len(set(options)) > 1
    assert all(sorted(each) == list(EMOTIONS) for each in options)
    scores = chooser.scores(["He left.", "He left.", "She ran."], [options[0], options[0], options[1]], EMOTIONS)
    assert (scores < 0).all()
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] != scores[2]).any()


class Deaf:
    """Hears one word, and has no opinion where it does not stand."""

    name = "deaf"

    def __init__(self) -> None:
        self.asked = []

    def votes(self, asked):
        self.asked += asked
        return [Vote("sad" if "tears" in each.question else None) for each in asked]

    def write(self, prompts, tokens):
        raise AssertionError("it is asked to choose, never to write")


def test_a_judge_is_asked_once_a_text_and_is_told_nothing_but_the_text():
    judge = Deaf()
    options = [EMOTIONS, EMOTIONS, EMOTIONS[::-1]]
    scores = Picked(judge).scores(["tears", "tears", "rain"], options, EMOTIONS)
    assert [each.labels for each in judge.asked] == [EMOTIONS, EMOTIONS[::-1]]
    assert picks(scores, calibrated=True) == [3, 3, None]


def row(arm: str, heard: str, scenario: str, *, match: str = "none", fault: str = "", concept: str = "sad") -> dict:
    return {
        "concept": concept, "arm": arm, "match": match, "target": 0.0 if match == "none" else 0.5, "number": 0,
        "scenario": scenario, "heard": heard, "heard_masked": heard, "fault": fault, "names": False,
        "divergence": 0.5, "norm": 1.0,
    }  # fmt: skip


def test_a_broken_text_is_a_miss_and_differences_are_paired_by_scenario():
    texts = []
    for scenario in "abcd":
        texts += [
            row("circuit", "sad", scenario, match="divergence", fault="capitals" if scenario == "d" else ""),
            row("random", "sad" if scenario == "a" else "calm", scenario, match="divergence"),
            row("plain", "calm", scenario),
        ]
    found = {(r["concept"], r["arm"]): r for r in rates.rate_rows(texts) if r["score"] == "open"}
    assert found["", "circuit"]["rate"] == 0.75
    assert (found["sad", "circuit"]["low"], found["sad", "circuit"]["high"]) == pytest.approx((0.194, 0.994), abs=1e-3)
    assert found["", "circuit"]["broken"] == 0.25
    differences = {r["arm"]: r for r in rates.difference_rows(texts) if r["score"] == "masked"}
    assert differences["plain"]["difference"] == pytest.approx(0.75)
    each = np.array([0.0, 1.0, 1.0, 0.0])
    half = 3.1824 * each.std(ddof=1) / 2
    assert differences["random"]["difference"] == pytest.approx(0.5)
    assert differences["random"]["high"] == pytest.approx(0.5 + half, abs=1e-3)
    chooser = rates.chooser_rows(["sad", "calm"], {"open": ["sad", "sad"], "masked": [None, "calm"]}, EMOTIONS)
    values = rates.metrics(rates.rate_rows(texts), rates.difference_rows(texts), chooser)
    assert values["above_random_masked"] == pytest.approx(0.5)
    assert values["rate_plain_open"] == 0
    assert values["chooser_open"] == 0.5
    assert values["chooser_able_open"] == 0


MODULATION = {
    "run": True, "emotions": ["sad", "calm"], "outcomes": ["neutral"], "tuning_events": 2, "tokens": 6,
    "divergence": [0.01], "random_circuits": 1, "chooser_texts": 8, "share": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def study_of(model_folder, tmp_path_factory):
    """``study_of(name, changes)`` -> path of a study file on the tiny model; the cache is shared."""
    folder = tmp_path_factory.mktemp("modulation")
    stories = read_jsonl(EMBEDDED / "stories.jsonl")
    few = [{"kind": "prose", "text": row["text"]} for row in stories if row["emotion"] in ("alert", "docile")][:12]
    (folder / "neutral.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few), encoding="utf-8")

    def write(name: str, **changes: object):
        values = {
            "name": name, "cache": str(folder / "cache"),
            "model": {"name": str(model_folder("gpt2")), "layer": 2, "dtype": "float32"},
            "corpus": {"emotions": list(EMOTIONS), "neutral": str(folder / "neutral.jsonl")},
            "activations": {"texts_per_part": 64, "pooled_layers": []},
            "modulation": {**MODULATION, **changes},
            "tracking": {"mode": "disabled"}, "compute": {"threads": 1, "device": "cpu"},
        }  # fmt: skip
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


@pytest.mark.slow
def test_a_study_modulates_and_hears_on_gpt2(study_of):
    path = study_of("one")
    affectlens.run_study(path, stages=["modulation"])
    study = affectlens.open_study(path)
    texts = study.table("modulation/texts")
    arms = {"plain", "prompting", "circuit", "random", "wrong_emotion", "direction", "direction_layers"}
    assert set(texts["arm"]) == arms
    assert set(texts["concept"]) == {"sad", "calm"}
    # Two unmatched arms, five of equal divergence, four of equal norm, at eight events.
    assert len(texts) == 2 * (2 + 5 + 4) * 8
    matched: Any = texts[texts["match"] == "divergence"]
    assert np.abs(matched["divergence"].to_numpy() - 0.01).max() < 0.001
    circuit = matched[matched["arm"] == "circuit"].set_index("concept")["norm"].groupby(level=0).first()
    rows: Any
    for concept, rows in texts[texts["match"] == "norm"].groupby("concept"):
        assert np.abs(rows["norm"].to_numpy() - circuit[concept]).max() < 1e-3 * circuit[concept]
    found = study.table("modulation/rates")
    low, rate, high = (found[name].to_numpy() for name in ("low", "rate", "high"))
    assert ((low <= rate) & (rate <= high)).all()
    assert set(study.table("modulation/differences")["scenarios"]) == {8}
    chooser = study.table("modulation/chooser")
    assert chooser[chooser["concept"] == ""]["texts"].tolist() == [8, 8]
    metric = study.metrics.set_index("metric").loc["rate_circuit_masked"]
    assert metric["low"] <= metric["value"] <= metric["high"]


def test_a_file_of_units_is_used_and_one_that_does_not_fit_is_refused(study_of, planted, tmp_path):
    _, units = planted
    write_units(tmp_path / "units.safetensors", units)
    with pytest.raises(ConfigError, match="no circuit of `calm`"):
        Study.load(study_of("two", units=str(tmp_path / "units.safetensors")))
    four = replace(
        units, concepts=EMOTIONS, circuits={"sad": (HEAD,), "calm": (NEURON,)},
        **{name: np.concatenate([getattr(units, name)] * 2) for name in ("heads", "neurons", "residual")},
    )  # fmt: skip
    write_units(tmp_path / "good.safetensors", four)
    Study.load(study_of("three", units=str(tmp_path / "good.safetensors")))
    narrow = replace(four, residual=four.residual[:, :3])
    write_units(tmp_path / "other.safetensors", narrow)
    with pytest.raises(ConfigError, match="of a model of 3 layers and width 32, not of 4 and 32"):
        Study.load(study_of("four", units=str(tmp_path / "other.safetensors")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emotions": ["said"]}, "`modulation.emotions: said`: not studied"),
        ({"per_theme": 20}, "none is left to make the arms equally large on"),
        ({"scenarios": "nowhere.jsonl"}, "`modulation.scenarios: nowhere.jsonl`: no such file"),
        ({"units": "nowhere.safetensors"}, "cannot be read as units"),
        ({"units": "circuits"}, "no circuits are looked for; set `circuits.run: true`"),
        ({"divergence": [0.5, 0.5]}, "give different numbers above 0"),
    ],
)
def test_a_fault_is_named_before_anything_loads(study_of, changes, message):
    with pytest.raises(ConfigError, match=message):
        Study.load(study_of("wrong", **changes))


def test_modulation_is_off_unless_asked_for(study_values, write_study):
    study = Study.load(write_study(study_values))
    assert not study.config.modulation.run
    assert [each.name for each in study.stages].count("modulation") == 1
