"""Planted truth: circuits that are known are found, and none where none was planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from affectlens.circuits import curves, merging, transfer, trials
from affectlens.circuits.anatomy import Anatomy, path
from affectlens.circuits.bench import Bench, activation_sizes, exact_effects, require_empty
from affectlens.circuits.config import CircuitsConfig
from affectlens.circuits.design import Cell, chosen, rotations
from affectlens.circuits.judging import Judge, Turn
from affectlens.circuits.neurons import Inside
from affectlens.circuits.scores import ARRAYS, CARD, Scores, sign_flip_p
from affectlens.circuits.tables import ALL
from affectlens.circuits.verdicts import answers, questions, verdict
from affectlens.circuits.writers import decompose
from affectlens.model.subject import ModelConfig, Subject
from affectlens.model.words import ConceptWords
from safetensors.numpy import save_file
from tiny import build_model

D, HEADS, D_HEAD, LAYERS = 32, 4, 8, 4
CONCEPTS = ("calm", "sad")
MARKERS, WORDS = (40, 41), (50, 51)
"""Tokens that stand in the stories, and those that are scored."""
FILLER, FRAME = 60, 61
SIGNAL, ANSWER = (0, 1), (8, 9)
"""Coordinates in which markers stand in the residual stream, and in which the words are read."""


class Planted:
    """A model whose blocks do nothing but what a test plants; every story is one marker among fillers."""

    def __init__(self, folder: Path, **shape: int) -> None:
        from transformers import AutoModelForCausalLM

        build_model(folder, "llama", **({"num_key_value_heads": HEADS} | shape))
        self.folder = folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            for block in self.model.model.layers:
                for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                    getattr(block.self_attn, name).weight.zero_()
                for name in ("gate_proj", "up_proj", "down_proj"):
                    getattr(block.mlp, name).weight.zero_()
            embedding = torch.zeros_like(self.model.model.embed_tokens.weight)
            embedding[:, 31] = 4.0  # so that norms hardly depend on what is planted
            for coordinate, marker in zip(SIGNAL, MARKERS, strict=True):
                embedding[marker, coordinate] = 1.0
            output = torch.zeros_like(self.model.lm_head.weight)
            for coordinate, word in zip(ANSWER, WORDS, strict=True):
                output[word, coordinate] = 4.0
            self.model.model.embed_tokens.weight.copy_(embedding)
            self.model.lm_head.weight = torch.nn.Parameter(output)
        self.model.config.tie_word_embeddings = False

    def head(self, layer: int, head: int, gain: float = 4.0, *, source=SIGNAL, target=ANSWER) -> None:
        """A head that writes at every position the mean over positions of ``source`` into ``target``."""
        block, start = self.model.model.layers[layer].self_attn, head * D_HEAD
        with torch.no_grad():
            for lane, (one, other) in enumerate(zip(source, target, strict=True)):
                block.v_proj.weight[start + lane, one] = 1.0
                block.o_proj.weight[other, start + lane] = gain

    def neuron(self, layer: int, neuron: int, gain: float, *, source: int, target: int) -> None:
        """A neuron that fires with a coordinate and writes into another."""
        mlp = self.model.model.layers[layer].mlp
        with torch.no_grad():
            mlp.gate_proj.weight[neuron, source] = 4.0
            mlp.up_proj.weight[neuron, 31] = 1.0
            mlp.down_proj.weight[target, neuron] = gain

    def bench(self) -> Bench:
        self.model.save_pretrained(self.folder)
        config = ModelConfig(name=str(self.folder), layer=2, dtype="float32")
        subject = Subject.load(config, device="cpu", models=self.folder / "models")
        words = [ConceptWords(each, (each,), (word,), whole=True) for each, word in zip(CONCEPTS, WORDS, strict=True)]
        made = PlantedBench(Anatomy(subject), words, {}, "", 6)
        made.stories = {Cell(topic, each): each for topic in ("exam", "park") for each in CONCEPTS}
        return made


class PlantedBench(Bench):
    """Contexts by their token ids: the marker of the concept, fillers, the frame."""

    def tokens(self, cell: Cell) -> torch.Tensor:
        marker = MARKERS[CONCEPTS.index(cell.concept)]
        at = 2 if cell.topic == "exam" else 4
        ids = [FILLER] * 6
        ids[at] = marker
        return self.anatomy.subject.pad([[*ids, FRAME]])


def own(bench: Bench, values: np.ndarray, cell: Cell) -> np.ndarray:
    return values[..., bench.concepts.index(cell.concept)]


def test_one_writer_is_first_in_both_questions_and_is_the_whole_circuit(tmp_path: Path) -> None:
    plant = Planted(tmp_path)
    plant.head(1, 2)
    bench, cell = plant.bench(), Cell("exam", "sad")
    taken = bench.take(cell)
    effects = own(bench, exact_effects(bench, taken), cell)
    assert effects.argmax() == 1 * HEADS + 2
    assert effects.max() > 0.2
    assert np.delete(np.abs(effects), effects.argmax()).max() < 1e-4, "every control is 0"
    direction = torch.eye(D)[ANSWER[1]][None]
    written = decompose(bench.anatomy, taken.recorded, direction, 2, bench.story, 1.0)
    assert np.abs(written.heads[..., 0]).argmax() == effects.argmax()
    assert written.residue < 1e-4
    # The circuit of one head is as good as the model, any other as bad as none.
    circuit = curves.top(effects, 1)
    whole = own(bench, taken.full - taken.empty, cell)
    alone = own(bench, bench.kept(taken, circuit[None]), cell)[0] - own(bench, taken.empty, cell)
    others = curves.matched(~circuit & (np.arange(16) // HEADS == 1), HEADS, 20, np.random.default_rng(0))
    assert alone / whole == pytest.approx(1.0, abs=1e-3)
    rest = others.copy()
    rest[:, effects.argmax()] = False
    wrong = own(bench, bench.kept(taken, rest), cell) - own(bench, taken.empty, cell)
    assert np.abs(wrong / whole).max() < 1e-3
    # With the other story as reference the difference is n / (n - 1) times that from the mean of both, and the circuit
    # is again all of it.
    masks = np.stack([circuit, ~circuit, rest[0]])
    ((full, empty, *kept),) = transfer.resampled(bench, [cell], masks, np.random.default_rng(0))
    assert full - empty == pytest.approx(2 * whole, rel=0.02)
    np.testing.assert_allclose((np.array(kept) - empty) / (full - empty), [1, 0, 0], atol=1e-3)


def test_one_neuron_is_found_inside_the_head_circuit_and_ablated_exactly(tmp_path: Path) -> None:
    plant = Planted(tmp_path)
    plant.head(0, 1, gain=0.5, target=(16, 17))
    for lane in (0, 1):
        plant.neuron(2, 5 + lane, 0.02, source=16 + lane, target=ANSWER[lane])
    bench, cell = plant.bench(), Cell("park", "calm")
    circuit = np.zeros(LAYERS * HEADS, dtype=bool)
    circuit[1] = True
    inside = Inside(bench, circuit)
    (found,) = inside.attribute(cell, [0], 5)
    width = bench.anatomy.d_mlp
    assert set(np.argsort(-np.abs(found))[:2]) == {2 * width + 5, 2 * width + 6}
    exact = inside.removed_one_by_one(cell, np.array([2 * width + 5, 2 * width + 9, 17]))
    assert exact[0] > 1e-4 and np.abs(exact[1:]).max() < 1e-5
    assert found[2 * width + 5] == pytest.approx(exact[0], rel=0.1)
    # Of the reading behind its layer, along what it writes, it is the first writer, too.
    recorded = bench.anatomy.record(bench.tokens(cell))
    written = decompose(bench.anatomy, recorded, torch.eye(D)[ANSWER[0]][None], 2, bench.story, 1.0)
    assert np.abs(written.neurons[..., 0]).argmax() == 2 * width + 5
    assert np.abs(written.neurons[..., 0]).max() > 10 * np.abs(written.heads[..., 0]).max()


def test_what_the_attribution_of_neurons_missed_raises_its_bound() -> None:
    """The upper end of the share of unselected neurons whose exact effect is as large as that of selected ones."""

    def bound(unselected: np.ndarray) -> float:
        generator = np.random.default_rng(0)
        exact = np.concatenate([generator.normal(1.0, 0.1, (4, 30)), unselected], axis=1).astype(np.float32)
        turn = {
            "checked": np.array(30), "exact": exact, "screen": exact, "matched": np.array([2, 1, 4]),
            "significant": np.array(3),
        }  # fmt: skip
        rows = {row["measure"]: row["value"] for row in merging.neuron_checks([turn])}
        return rows["upper end of that share"]

    quiet = np.random.default_rng(1).normal(0.0, 0.05, (4, 60))
    missed = quiet.copy()
    missed[:, :12] += 2.0
    assert bound(quiet) < 0.07
    assert bound(missed) > 0.2, "a fifth of the others does as much"


def test_of_two_redundant_heads_only_the_pair_is_missed(tmp_path: Path) -> None:
    """OR: a neuron fires beyond what one head at its reference leaves, and the final norm saturates."""
    plant = Planted(tmp_path)
    for head in (0, 3):
        plant.head(0, head, gain=20.0, source=(SIGNAL[1],), target=(17,))
    plant.neuron(2, 5, 50.0, source=17, target=ANSWER[1])
    with torch.no_grad():
        gate = plant.model.model.layers[2].mlp.gate_proj.weight
        gate[5, 17], gate[5, 31] = 10.0, -10.0 * 4.3 / 4.0
    bench, cell = plant.bench(), Cell("exam", "sad")
    taken = bench.take(cell)
    effects = own(bench, exact_effects(bench, taken), cell)
    pair = np.ones((1, 16), dtype=bool)
    pair[0, [0, 3]] = False
    lost = float(own(bench, taken.full - bench.kept(taken, pair)[0], cell))
    assert lost > 10
    assert max(abs(effects[0]), abs(effects[3])) < 0.05 * lost, "one head makes up for the other"


def test_two_cancelling_heads_are_found_by_ablation_one_by_one(tmp_path: Path) -> None:
    plant = Planted(tmp_path)
    plant.head(1, 0, gain=4.0)
    plant.head(1, 1, gain=-4.0)
    bench, cell = plant.bench(), Cell("exam", "sad")
    taken = bench.take(cell)
    effects = own(bench, exact_effects(bench, taken), cell)
    assert effects[4] > 0.1 > -0.1 > effects[5]
    assert abs(effects[4] + effects[5]) < 0.05 * effects[4]
    assert set(np.argsort(-np.abs(effects))[:2]) == {4, 5}, "the ranking by size keeps the suppressor"
    assert curves.top(effects, 1)[4], "the signed one leaves it out"


def test_saturated_attention_hides_a_head_from_its_gradient_and_not_from_ablation(tmp_path: Path) -> None:
    """A first head marks where the marker stands; a later one looks there, or else at the begin token."""
    plant = Planted(tmp_path)
    plant.head(0, 0, gain=20.0, source=(SIGNAL[1],), target=(17,))
    plant.head(2, 0)
    later = plant.model.model.layers[2].self_attn
    with torch.no_grad():
        plant.model.model.embed_tokens.weight[0, 21] = 5.0
        later.q_proj.weight[3, 31] = 40.0  # the lane that rotary positions hardly turn
        later.k_proj.weight[3, 17] = later.k_proj.weight[3, 21] = 40.0
    bench, cell = plant.bench(), Cell("exam", "sad")
    taken = bench.take(cell)
    effects = own(bench, exact_effects(bench, taken), cell)
    (one,) = bench.anatomy.gradients(
        taken.tokens, taken.recorded.residual[:1], lambda logits, read: [bench.contrast(logits)[:, 1]]
    )
    gradient = one.of_heads(taken.recorded, taken.reference).reshape(-1).numpy()
    assert effects[0] > 1.0
    assert gradient[0] <= 0, "what is left of the gradient is the norm, of the wrong sign"


def test_in_a_linear_model_gradients_are_ablation(tmp_path: Path) -> None:
    plant = Planted(tmp_path)
    plant.head(0, 0, gain=1.5)
    plant.head(1, 2, gain=-0.7)
    plant.head(2, 1, gain=0.4, source=(16, 17))
    plant.head(1, 3, gain=0.9, target=(16, 17))
    bench = plant.bench()
    for module in bench.anatomy.bridge.modules():
        if type(getattr(module, "original_component", None)).__name__ == "LlamaRMSNorm":
            module.forward = lambda values, *rest: values
    cell = Cell("exam", "sad")
    taken = bench.take(cell)
    effects = own(bench, exact_effects(bench, taken), cell)
    for steps in (1, 4):
        (found,) = bench.anatomy.gradients(
            taken.tokens,
            path(taken.recorded, taken.reference, steps),
            lambda logits, read: [bench.contrast(logits)[:, 1]],
        )
        attributed = found.of_heads(taken.recorded, taken.reference).reshape(-1).numpy()
        np.testing.assert_allclose(attributed, effects, atol=1e-5)
    # All heads that read the embedding alone sum to what the model has over the one without heads, but for the chain.
    whole = float(own(bench, taken.full - taken.empty, cell))
    assert effects[[0, 6]].sum() + effects[9] == pytest.approx(whole, abs=1e-4)
    assert effects[7] == pytest.approx(effects[9], abs=1e-5), "the chain's two heads are worth the same"


def test_a_circuit_that_serves_two_concepts_is_not_specific(tmp_path: Path) -> None:
    shared = np.random.default_rng(0).normal(1.0, 0.05, size=(6, 6))
    observed, p, _ = curves.label_permutation(shared, 999, np.random.default_rng(1))
    assert p > 0.05
    special = shared + 2 * np.eye(6)
    observed, p, rank = curves.label_permutation(special, 999, np.random.default_rng(1))
    assert observed > 1.5 and p < 0.01 and (rank == 1).all()


SEVERAL, MANY = ("afraid", "calm", "proud", "sad"), 16
"""Concepts of a planted model of several, and its heads in a layer."""


class Several(Bench):
    """Four concepts; how often the marker stands in a story depends on the topic, so that contrasts differ."""

    def tokens(self, cell: Cell) -> torch.Tensor:
        topic = int(cell.topic)
        ids = [FILLER] * 6
        for place in range(1 + topic % 3):
            ids[(topic + 2 * place) % 6] = 40 + SEVERAL.index(self.stories[cell])
        return self.anatomy.subject.pad([[*ids, FRAME]])

    def shuffled(self, seed: int) -> Several:
        """The same stories, their labels permuted within each topic."""
        generator, stories = np.random.default_rng(seed), {}
        for topic in sorted({cell.topic for cell in self.stories}):
            stories |= {Cell(topic, SEVERAL[at]): SEVERAL[as_] for at, as_ in enumerate(generator.permutation(4))}
        return Several(self.anatomy, self.words, stories, "", 6)


def several(folder: Path, plant: Callable[[Planted], None]) -> Several:
    """A planted model of four concepts and sixteen heads a layer, with a story of each in six topics."""
    many = MANY
    world = Planted(folder, num_attention_heads=many, num_key_value_heads=many, head_dim=D_HEAD)
    with torch.no_grad():
        for lane in (2, 3):
            world.model.model.embed_tokens.weight[40 + lane, lane] = 1.0
            world.model.lm_head.weight[50 + lane, 8 + lane] = 4.0
    plant(world)
    subject = world.bench().anatomy.subject
    words = [ConceptWords(name, (name,), (50 + at,), whole=True) for at, name in enumerate(SEVERAL)]
    return Several(Anatomy(subject), words, {Cell(str(t), n): n for t in range(6) for n in SEVERAL}, "", 6)


def judged(bench: Several, folder: Path) -> Judge:
    """The model taken through selection, size and report."""
    names, many, topics = SEVERAL, MANY, sorted({cell.topic for cell in bench.stories})
    config = CircuitsConfig(
        sizes=(1 / 64, 4 / 64), removed_up_to=0.1, concept_heads=1, control_contexts=4, minimal_contexts=2,
        size_contexts=8, permutations=199,
    )  # fmt: skip
    cells = [Cell(topic, name) for topic in topics for name in names]
    taken = [bench.take(cell) for cell in cells]
    assert require_empty([(each.cell.topic, each.empty) for each in taken]) < 1e-4
    arrays = {
        "effect": np.stack([exact_effects(bench, each) for each in taken]),
        "activation": np.stack([activation_sizes(bench, each) for each in taken]),
    }
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, folder / ARRAYS)
    card = {"concepts": names, "cells": [[each.topic, each.concept] for each in cells], "heads": many}
    (folder / CARD).write_text(json.dumps(card), encoding="utf-8")
    scores, turns = Scores(folder), []

    def generator(name: str) -> np.random.Generator:
        return np.random.default_rng(len(name))

    for turn in rotations(topics, names, config):
        selected = trials.select(scores, turn.select)
        masks = trials.ranked_circuits(selected, config)
        kept, whole = (np.array(each) for each in zip(*(trials.sized(bench, masks, c) for c in turn.size), strict=True))
        size = trials.choose(masks, kept, whole, generator("size"))
        plan = trials.Plan.of(selected, size, config, many, generator("plan"))
        controls = chosen(turn.report, config.control_contexts)
        rows = [
            trials.try_context(bench, plan, cell, controls=cell in controls, thinned=cell in controls, config=config)
            for cell in turn.report
        ]
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        turns.append(Turn(turn.report, turn.select, stacked, selected, size))
    return Judge(turns, scores, config, generator)


def test_heads_of_single_concepts_are_a_circuit_and_each_is_its_concepts_own(tmp_path: Path) -> None:
    def plant(world: Planted) -> None:
        for at in range(4):
            world.head(at, 3 + at, source=(at,), target=(8 + at,))

    judge = judged(several(tmp_path, plant), tmp_path)
    rows = {row["concept"]: row for row in judge.verdict_rows()}
    pooled = rows.pop(ALL)
    assert pooled["verdict"] == "necessary and sufficient"
    assert pooled["ratio"] == pytest.approx(1.0, abs=0.01) and abs(pooled["left"]) < 0.01
    assert pooled["random_ratio"] < 0.8 and pooled["random_left"] > 0.2
    assert {row["verdict"] for row in rows.values()} == {"necessary and sufficient"}
    assert {row["rank"] for row in rows.values()} == {1}
    assert {(row["layer"], row["head"]) for row in judge.member_rows()} == {(at, 3 + at) for at in range(4)}
    assert all(row["needed"] for row in judge.member_rows())


def test_heads_that_serve_all_concepts_are_a_circuit_of_no_concept(tmp_path: Path) -> None:
    def plant(world: Planted) -> None:
        for at in range(4):
            world.head(at, 3 + at, gain=1.0 + at / 4, source=(0, 1, 2, 3), target=(8, 9, 10, 11))

    judge = judged(several(tmp_path, plant), tmp_path)
    rows = {row["concept"]: row for row in judge.verdict_rows()}
    assert rows.pop(ALL)["verdict"] == "necessary and sufficient"
    # Which of the shared heads a concept's noise chooses differs; what it costs third concepts is taken off.
    assert max(abs(judge.own_excess(at).mean()) for at in range(4)) < 0.01 * judge.whole.mean()
    assert {row["verdict"] for row in rows.values()} == {"not concept-specific"}


def test_at_most_a_twentieth_of_units_of_noise_is_significant() -> None:
    generator = np.random.default_rng(3)
    shares = [
        float((sign_flip_p(generator.normal(size=(24, 270)), 199, generator)[0] <= 0.05).mean()) for _ in range(20)
    ]
    assert np.mean(shares) < 0.06
    assert sign_flip_p(generator.normal(size=(24, 5)) + 3, 199, generator)[0].max() < 0.01
    # What is alike in all contexts of a concept is one observation: four concepts are too few for any p of 5%.
    alike = np.repeat(generator.normal(size=(4, 270)), 6, axis=0).astype(np.float32)
    groups = np.repeat(np.arange(4), 6)
    p, floor = sign_flip_p(alike, 999, generator, groups)
    assert floor == 1 / 8 and p.min() > 0.09
    assert (sign_flip_p(alike, 999, generator)[0] <= 0.05).mean() > 0.2


ROW = {
    "concept": ALL, "contrast": 0.4, "contrast_low": 0.2, "contrast_high": 0.6, "stability": 0.6,
    "stability_chance": 0.1, "ratio": 0.9, "slope": 0.7, "left": 0.2, "random_ratio": 0.3, "random_left": 0.8,
    "p_adjusted": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "necessary and sufficient"),
        ({"contrast_low": -0.1}, "no contrast to explain"),
        ({"contrast_low": None}, "too few contexts"),
        ({"stability": 0.1}, "not stable"),
        ({"stability": None}, "too few contexts"),
        ({"ratio": 0.3}, "necessary only"),
        ({"slope": 0.1}, "necessary only"),
        ({"random_ratio": 0.95}, "necessary only"),
        ({"left": 0.9}, "sufficient only"),
        ({"left": 0.9, "ratio": 0.1}, "neither necessary nor sufficient"),
        ({"concept": "calm"}, "not concept-specific"),
        ({"concept": "calm", "p_adjusted": 0.01}, "necessary and sufficient"),
    ],
)
def test_verdicts_follow_the_rule(changes, expected) -> None:
    assert verdict({**ROW, **changes}, CircuitsConfig()) == expected


def test_the_rule_says_which_figure_answers_which_question() -> None:
    asked = questions({**ROW, "left": 0.9, "concept": "calm"}, CircuitsConfig())
    assert [name for name, each in asked.items() if not each.met] == ["necessary", "specific"]
    assert asked["necessary"].figures.startswith("0.90 of the contrast is left without it; at most 0.5")
    assert "0.80" in asked["necessary"].figures and "0.30" in asked["sufficient"].figures
    assert "specific" not in questions(ROW, CircuitsConfig())
    told = {each["name"]: each["answer"] for each in answers({**ROW, "stability": 0.1}, CircuitsConfig())}
    assert (told["contrast"], told["stable"], told["necessary"]) == ("yes", "no", "not asked")


def test_areas_of_known_curves() -> None:
    perfect = curves.curve_areas((0.1, 0.5), (1.0, 1.0))
    assert perfect["cmd_log"] == pytest.approx(0.0)
    assert perfect["cpr"] == pytest.approx(0.95)
    assert curves.curve_areas((0.5,), (0.5,))["cmd"] == pytest.approx(0.5)
    over = curves.curve_areas((0.1, 0.5), (2.0, 2.0))
    assert over["cpr"] > perfect["cpr"] and over["cmd"] > 0.5, "what overshoots gains CPR and loses CMD"


def test_the_smallest_size_within_a_standard_error_is_chosen() -> None:
    whole = np.random.default_rng(0).normal(1.0, 0.01, 20)
    kept = np.stack([np.stack([whole * f for f in (0.2, 0.97, 1.0, 1.3)], axis=1)] * 2, axis=1)
    kept[:, 1] *= 0.5
    kept += np.random.default_rng(1).normal(0, 0.3, kept.shape)
    ranking, size = curves.choose_size(kept, whole, np.random.default_rng(2))
    assert (ranking, size) == (0, 1)


def test_random_circuits_have_the_layers_of_the_circuit() -> None:
    circuit = np.zeros(16, dtype=bool)
    circuit[[0, 1, 9]] = True
    found = curves.matched(circuit, 4, 50, np.random.default_rng(0))
    assert (found.reshape(50, 4, 4).sum(axis=2) == circuit.reshape(4, 4).sum(axis=1)).all()
    assert len({tuple(row) for row in found}) > 5


def test_chance_of_overlap_is_that_of_random_circuits_with_as_many_heads_a_layer():
    """Two whole layers, half of a third, two of the last: most of the overlap is no finding."""
    circuit = np.zeros((5, 8), dtype=bool)
    circuit[0] = circuit[1] = circuit[3, :4] = circuit[4, :2] = True
    random = curves.matched(circuit.reshape(-1), 8, 4000, np.random.default_rng(0))
    mean = curves.jaccard(circuit.reshape(-1), random).mean()
    assert abs(curves.jaccard_by_chance(circuit.reshape(-1), 8) - mean) < 0.01
    assert mean > 0.7
    assert curves.jaccard_by_chance(np.arange(40) < 16, 8) == 1
    assert curves.jaccard_by_chance(np.zeros(40, bool), 8) == 0


def test_bootstrapped_circuits_overlap_where_effects_are_clear() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(20, 100))
    clear = noise + 5 * (np.arange(100) < 10)
    stable, chance = curves.stability(clear, 10, 50, np.random.default_rng(1), signed=True)
    unstable, _ = curves.stability(noise, 10, 50, np.random.default_rng(1), signed=True)
    assert stable == 1.0 and chance == pytest.approx(10 / 190)
    assert unstable < 0.6
    topics = ["a", "b", "c", "d"] * 5
    draws = np.random.default_rng(1)
    assert curves.halves(clear, topics, 10, 50, draws, signed=True) == 1.0
    apart = curves.halves(noise, topics, 10, 50, draws, signed=True)
    assert apart < 0.15, "of noise, disjoint halves overlap by chance alone; bootstraps of the same contexts by more"
    assert unstable > apart + 0.1
    # What only one topic has does not return in the other half.
    local = noise + 20 * (np.array(topics) == "a")[:, None] * (np.arange(100) < 10)
    assert curves.halves(local, topics, 10, 50, draws, signed=True) < 0.2
    assert np.isnan(curves.halves(clear, ["a"] * 20, 10, 50, draws, signed=True))
