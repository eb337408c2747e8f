"""Units of a circuit and what their differences do to a model: the contract between finding circuits and using them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from affectlens.circuits.units import (
    Push,
    Unit,
    Units,
    edits,
    measure,
    read_units,
    scaled,
    total_norm,
    write_units,
)
from affectlens.errors import UserError
from affectlens.model.sampling import sample
from affectlens.model.steering import editing
from affectlens.model.subject import ModelConfig, Subject
from tiny import build_model

CONCEPTS = ("afraid", "calm", "proud", "sad")
PROMPT = [0, 17, 40, 88, 121]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "gpt_neox"])
def subject(request, tmp_path_factory) -> Subject:
    """One architecture each with gated and plain MLPs, transposed matrices, norms behind its halves, joint matrices."""
    folder = tmp_path_factory.mktemp(request.param)
    build_model(folder / "model", request.param)
    torch.manual_seed(1)
    return Subject.load(ModelConfig(name=str(folder / "model"), dtype="float32"), device="cpu", models=folder)


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [[0, *generator.integers(3, 600, 12 + 3 * n).tolist()] for n in range(8)]


@pytest.fixture(scope="module")
def units(subject, texts) -> Units:
    return measure(subject, texts, [0, 1, 2, 3] * 2, CONCEPTS, first=4, tokens_per_batch=60)


def test_differences_are_an_emotions_mean_less_the_mean_of_all(subject, texts, units):
    layer, means = 2, []
    for text in texts:
        seen = {}
        names = {"heads": "attn.o.hook_in", "neurons": "mlp.out.hook_in", "residual": "hook_out"}
        handles = [
            subject.bridge.blocks[layer]
            .get_submodule(name)
            .register_forward_hook(lambda m, i, out, place=place, seen=seen: seen.__setitem__(place, out[0].float()))
            for place, name in names.items()
        ]
        with torch.no_grad():
            subject.bridge(torch.tensor([text]))
        for handle in handles:
            handle.remove()
        means.append({place: values[4:].mean(dim=0).numpy() for place, values in seen.items()})
    for place in ("heads", "neurons", "residual"):
        by_concept = np.stack([(means[n][place] + means[n + 4][place]) / 2 for n in range(4)])
        found = getattr(units, place)[:, layer].reshape(4, -1)
        np.testing.assert_allclose(found, by_concept - by_concept.mean(axis=0), atol=1e-5)


def test_a_text_without_a_concept_is_refused(subject, texts):
    with pytest.raises(ValueError, match="no text of `sad`"):
        measure(subject, texts[:3], [0, 1, 2], CONCEPTS, first=4)


def test_units_and_circuits_are_read_as_they_were_written(units, tmp_path: Path):
    whole = replace(units, circuits={"sad": (Unit("head", 1, 3), Unit("neuron", 2, 9)), "calm": ()})
    write_units(tmp_path / "units.safetensors", whole)
    again = read_units(tmp_path / "units.safetensors")
    assert (again.concepts, again.circuits) == (CONCEPTS, whole.circuits)
    for number in range(8):  # safetensors keeps no order of several entries
        write_units(tmp_path / "again.safetensors", whole)
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "units.safetensors").read_bytes(), number
    np.testing.assert_array_equal(again.heads, units.heads)
    assert str(again.circuit("sad")[0]) == "L1H3"
    with pytest.raises(UserError, match="no circuit of `proud`"):
        again.circuit("proud")
    with pytest.raises(UserError, match=r"not measured in texts of `sat`.*`sad`"):
        again.push(again.circuit("sad"), "sat")


def test_what_is_no_file_of_units_is_refused(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file({"heads": np.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no file of units"):
        read_units(tmp_path / "other.safetensors")
    for name in ("broken", "absent"):
        with pytest.raises(UserError, match="cannot be read as units"):
            read_units(tmp_path / f"{name}.safetensors")


def test_a_push_holds_the_differences_of_its_units_and_nothing_else(units):
    push = units.push([Unit("head", 1, 2), Unit("head", 1, 0), Unit("neuron", 3, 5)], "proud", strength=2.0)
    assert list(push) == [(1, "heads"), (3, "neurons")]
    width = units.heads.shape[3]
    heads = push[1, "heads"].reshape(-1, width)
    np.testing.assert_allclose(heads[[0, 2]], 2 * units.heads[2, 1, [0, 2]], rtol=1e-6)
    assert not heads[[1, 3]].any()
    assert np.flatnonzero(push[3, "neurons"]).tolist() == [5]


def test_random_units_match_in_layer_and_kind_and_avoid_the_circuit(units):
    circuit = [Unit("head", 1, 0), Unit("head", 1, 1), Unit("neuron", 2, 4), Unit("neuron", 2, 6), Unit("head", 3, 2)]
    drawn = units.matched(circuit, np.random.default_rng(0))
    assert Counter((unit.kind, unit.layer) for unit in drawn) == Counter((u.kind, u.layer) for u in circuit)
    assert not set(drawn) & set(circuit)
    all_but_one = [Unit("head", 0, index) for index in range(3)]
    assert len(set(units.matched(all_but_one, np.random.default_rng(0)))) == 3


def push_of(units: Units, place: str, layer: int = 1) -> Push:
    unit = Unit("head", layer, 2) if place == "heads" else Unit("neuron", layer, 7)
    return scaled(units.push([unit], "sad"), 40.0)


@pytest.mark.parametrize("place", ["heads", "neurons"])
def test_a_unit_writes_its_difference_through_the_output_matrix(subject, units, place):
    """What is added to the unit appears behind the projection as difference times matrix, at the changed positions."""
    push = push_of(units, place)
    module = subject.bridge.blocks[1].get_submodule({"heads": "attn.o", "neurons": "mlp.out"}[place]).hook_out
    tokens, seen = torch.tensor([PROMPT, PROMPT]), []
    handle = module.register_forward_hook(lambda m, i, out: seen.append(out.float()))
    with torch.no_grad(), editing(subject.bridge, edits([push, {}], 3, "cpu")):
        subject.bridge(tokens)
    handle.remove()
    written = (seen[0][0] - seen[0][1]).numpy()
    assert np.abs(written[:3]).max() < 1e-6
    norms = units.norms
    for position in (3, 4):
        assert np.linalg.norm(written[position]) / norms[1] == pytest.approx(total_norm(push, subject, norms), rel=1e-3)


def test_total_norm_adds_squares_over_blocks_and_grows_with_the_push(subject, units):
    one, two = push_of(units, "heads"), push_of(units, "neurons", layer=2)
    norms = [total_norm(push, subject, units.norms) for push in (one, two, {**one, **two})]
    assert norms[2] == pytest.approx(np.hypot(norms[0], norms[1]))
    assert total_norm(scaled(one, 3.0), subject, units.norms) == pytest.approx(3 * norms[0])
    residual: Push = {(1, "residual"): units.norms[1] * np.eye(32)[0]}
    assert total_norm(residual, subject, units.norms) == pytest.approx(1.0)


@pytest.mark.parametrize("place", ["heads", "neurons"])
def test_units_are_changed_at_every_decoded_token(subject, units, place):
    """With keys and values kept, and with the whole text read again at each step, the same is said; a push that holds
    for the prompt alone says something else."""
    pushes = [push_of(units, place), {}, push_of(units, place, layer=0)]
    chances = np.random.default_rng(3).random((3, 2, 24))
    first = len(PROMPT) - 1
    options = {"special": "never", "temperature": 1.0}
    kept = sample(subject, [PROMPT], chances, edits(pushes, first, "cpu"), **options)
    again = sample(subject, [PROMPT], chances, edits(pushes, first, "cpu"), cached=False, **options)
    assert [[each.tokens for each in row] for row in kept] == [[each.tokens for each in row] for row in again]
    plain = sample(subject, [PROMPT], chances, **options)
    assert [each.tokens for each in kept[1]] == [each.tokens for each in plain[1]]
    seen = []
    handle = (
        subject.bridge.blocks[1]
        .get_submodule({"heads": "attn.o", "neurons": "mlp.out"}[place])
        .hook_in.register_forward_hook(lambda m, i, out: seen.append(out[:2].float()))
    )
    # Registered before the edit's own hook, it sees the values before; behind it, the difference is the push.
    with torch.no_grad(), editing(subject.bridge, edits(pushes, first, "cpu"), cached=True):
        after = []
        late = (
            subject.bridge.blocks[1]
            .get_submodule({"heads": "attn.o", "neurons": "mlp.out"}[place])
            .hook_in.register_forward_hook(lambda m, i, out: after.append(out[:2].float()))
        )
        _, cache = subject.bridge(torch.tensor([PROMPT] * 3), use_cache=True, return_type="logits_and_cache")
        for token in (31, 55):
            _, cache = subject.bridge(
                torch.tensor([[token]] * 3), use_cache=True, past_key_values=cache, return_type="logits_and_cache"
            )
        late.remove()
    handle.remove()
    added = torch.cat([b - a for a, b in zip(seen, after, strict=True)], dim=1)
    expected = torch.tensor(pushes[0][1, place])
    assert torch.allclose(added[0, first:], expected.expand(3, -1), atol=1e-5)
    assert not added[0, :first].any()
    assert not added[1].any()


def test_a_pass_may_begin_below_the_block_whose_units_are_changed(subject, units):
    pushes = [push_of(units, "heads", layer=2)]
    made = edits(pushes, len(PROMPT) - 1, "cpu")
    assert [edit.after for edit in made] == [1]
    chances = np.random.default_rng(5).random((1, 3, 12))
    whole = sample(subject, [PROMPT], chances, made, special="never")
    resumed = sample(subject, [PROMPT], chances, made, special="never", resume_at=1)
    assert [each.tokens for each in whole[0]] == [each.tokens for each in resumed[0]]


def test_a_layer_that_the_model_lacks_is_refused(subject, units):
    made = edits([{(9, "heads"): np.zeros(32, dtype=np.float32)}], 0, "cpu")
    with pytest.raises(UserError, match="layer 9, but the model has layers 0 to 3"), editing(subject.bridge, made):
        pass
