"""Rows that join and leave at any step say what each of them says alone, and every token of them is edited."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from affectlens.model.compat import output_matrix
from affectlens.model.decoding import Decoder, Opening, Rows
from affectlens.model.steering import Edit, Span, add, beside, editing, move_to, set_features
from affectlens.model.subject import ModelConfig, Subject

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen2")
PROMPTS = ("The cat sat on the mat and", "We walked home through the rain until it was quite dark", "Then", "A b c d e")
LAYER, D = 1, 32


def push(seed: int, lead: int) -> list[Edit]:
    """Along a vector of its own, behind the begin token."""
    vector = torch.randn(1, D, generator=torch.Generator().manual_seed(seed))
    delta = partial(add, direction=vector, strength=torch.ones(1), unit=1.0)
    return [Edit(LAYER, delta, span=Span.text(1, lead))]


def push_units(model, lead: int) -> list[Edit]:
    """At the outputs of heads and of neurons of a later block, so that the residual stream that is read stays."""
    edits = []
    for place in ("heads", "neurons"):
        width = output_matrix(model.bridge, LAYER + 1, place).shape[0]
        vector = 4 * torch.randn(1, width, generator=torch.Generator().manual_seed(width))
        delta = partial(add, direction=vector, strength=torch.ones(1), unit=1.0)
        edits.append(Edit(LAYER + 1, delta, span=Span.text(1, lead), place=place))
    return edits


def spelled_out(model, prompt: list[int], edits: list[Edit], steps: int) -> tuple[list[int], torch.Tensor]:
    """The likeliest tokens by the plainest loop there is, and the residual stream before the push at every position."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad(), editing(model.bridge, edits):
            ids.append(int(model.bridge(torch.tensor([ids]))[0, -1].argmax()))
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(torch.tensor([ids]), names_filter=f"blocks.{LAYER}.hook_out")
    return ids[len(prompt) :], cache[f"blocks.{LAYER}.hook_out"][0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bridged", [False, True])
def test_rows_come_and_go(tiny_subject, model_folder, tmp_path, family: str, bridged: bool) -> None:
    """Row n joins at step 2n and leaves after 9 tokens; lengths differ, so all are padded and trimmed again."""
    model, steps = tiny_subject(family), 9
    config = ModelConfig(name=str(model_folder(family)), layer=LAYER, dtype="float32")
    decoder = Decoder.of(replace(model, plain=None)) if bridged else Decoder.load(config, device="cpu", models=tmp_path)
    rows, said, states, under_way = Rows(decoder, LAYER), {}, {}, []
    prompts = [model.led(model.encode(text)) for text in PROMPTS]
    edits = [push(number, model.lead) if number % 2 else [] for number in range(len(PROMPTS))]
    edits[2] = push_units(model, model.lead)
    for time in range(40):
        if time % 2 == 0 and (number := time // 2) < len(PROMPTS):
            ((logits, seen),) = rows.join([Opening(prompts[number], edits[number])])
            said[number], states[number] = [int(logits[-1].argmax())], [*seen]
            under_way.append(number)
        if not under_way:
            break
        logits, seen = rows.step([said[number][-1] for number in under_way])
        for place, number in enumerate(under_way):
            said[number].append(int(logits[place].argmax()))
            states[number].append(seen[place])
        going = [place for place, number in enumerate(under_way) if len(said[number]) < steps]
        rows.keep(going)
        under_way = [under_way[place] for place in going]
    for number, prompt in enumerate(prompts):
        expected, residuals = spelled_out(model, prompt, edits[number], steps)
        assert said[number] == expected
        torch.testing.assert_close(torch.stack(states[number]), residuals[:-1], atol=1e-4, rtol=1e-4)
    for number in (1, 2):
        assert spelled_out(model, prompts[number], [], steps)[0] != said[number], "the push has to be felt"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("bridged", [False, True])
def test_last_tokens_are_read_without_the_blocks_above(
    tiny_subject, model_folder, tmp_path, family: str, bridged: bool
) -> None:
    """The same states as a whole step gives; afterwards new rows are read as by a decoder that never stopped early."""
    model = tiny_subject(family)
    config = ModelConfig(name=str(model_folder(family)), layer=LAYER, dtype="float32")
    decoder = Decoder.of(replace(model, plain=None)) if bridged else Decoder.load(config, device="cpu", models=tmp_path)
    prompts = [model.led(model.encode(text)) for text in PROMPTS]
    openings = [Opening(prompt, push(number, model.lead)) for number, prompt in enumerate(prompts)]
    whole, short = Rows(decoder, LAYER), Rows(decoder, LAYER)
    for rows in (whole, short):
        rows.join(openings)
        rows.step([5, 6, 7, 8])
    ran = []
    handles = [block.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(decoder.blocks)]
    states = short.finish([9, 10, 11, 12])
    for handle in handles:
        handle.remove()
    assert max(ran) <= LAYER < len(decoder.blocks) - 1
    _, expected = whole.step([9, 10, 11, 12])
    assert torch.equal(states, expected)
    assert short.lengths == []
    fresh = Rows(decoder, LAYER)
    for (logits, _), (others, _) in zip(short.join(openings), fresh.join(openings), strict=True):
        assert torch.equal(logits, others)
    assert torch.equal(short.step([5, 6, 7, 8])[0], fresh.step([5, 6, 7, 8])[0])


def test_sliding_windows_are_those_of_each_row(tmp_path) -> None:
    """A window of 8 positions, texts of up to 20: what lies left of it is masked in rows of any length."""
    from tiny import build_model

    config = ModelConfig(
        name=str(build_model(tmp_path / "m", "gemma2", sliding_window=8)), layer=LAYER, dtype="float32"
    )
    decoder = Decoder.load(config, device="cpu", models=tmp_path)
    model = Subject.load(config, device="cpu", models=tmp_path)
    rows, prompts = Rows(decoder, LAYER), [list(range(10, 10 + length)) for length in (5, 16, 11)]
    first, *others = (Opening(prompt) for prompt in prompts)
    said = [[int(logits[-1].argmax())] for logits, _ in (*rows.join([first]), *rows.join(others))]
    for _ in range(4):
        logits, _ = rows.step([each[-1] for each in said])
        for each, row in zip(said, logits, strict=True):
            each.append(int(row.argmax()))
    assert said == [spelled_out(model, prompt, [], 5)[0] for prompt in prompts]


def test_copies_share_the_reading_of_their_prompt(tiny_subject) -> None:
    model = tiny_subject("llama")
    rows, prompt = Rows(Decoder.of(model), LAYER), model.led(model.encode(PROMPTS[0]))
    rows.join([Opening(model.led(model.encode(PROMPTS[1])))])
    ((logits, _),) = rows.join([Opening(prompt, copies=3, last=False)])
    assert logits.shape[0] == len(prompt) and len(rows.lengths) == 4
    later, _ = rows.step([5, 5, 6, 7])
    for place, token in ((1, 5), (2, 6), (3, 7)):
        expected = model.log_probabilities(torch.tensor([[*prompt, token]]))[0, -1]
        torch.testing.assert_close(torch.log_softmax(later[place], -1), expected, atol=1e-4, rtol=1e-4)
    rows.keep([])
    assert rows.lengths == []
    ((again, _),) = rows.join([Opening(prompt)])
    torch.testing.assert_close(again[-1], logits[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_read_together_are_what_each_is_alone(model_folder, tmp_path, family: str) -> None:
    """Padded and edited, continued by one row, by three, or by none, scored at all tokens or at the last."""
    config = ModelConfig(name=str(model_folder(family)), layer=LAYER, dtype="float32")
    decoder = Decoder.load(config, device="cpu", models=tmp_path)
    openings = [
        Opening(list(range(20, 20 + length)), push(length, 1) if length % 2 else [], copies, last=last)
        for length, copies, last in ((5, 1, True), (19, 0, False), (2, 3, True), (11, 1, False), (16, 0, True))
    ]
    rows, later = Rows(decoder, LAYER), iter(range(30, 60))
    rows.join([Opening([7, 8, 9, 10])])
    found = rows.join(openings)
    singles = [Rows(decoder, LAYER) for _ in openings]
    for opening, alone, (logits, states) in zip(openings, singles, found, strict=True):
        ((wanted, residuals),) = alone.join([opening])
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states, residuals, atol=1e-5, rtol=1e-5)
    assert rows.lengths == [4, 5, 2, 2, 2, 11]
    for _ in range(3):
        tokens = [next(later) for _ in rows.lengths]
        logits, states = rows.step(tokens)
        for alone, mine in ((singles[0], slice(1, 2)), (singles[2], slice(2, 5)), (singles[3], slice(5, 6))):
            wanted, residuals = alone.step(tokens[mine])
            torch.testing.assert_close(logits[mine], wanted, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(states[mine], residuals, atol=1e-5, rtol=1e-5)


def test_edits_of_one_kind_become_one_and_do_the_same() -> None:
    """Pushes, caps and features of five rows: fewer edits of the batch do what all did; an own function stays alone."""
    draws = torch.Generator().manual_seed(0)
    centre, encoder = torch.randn(D, generator=draws), torch.randn(D, 7, generator=draws)

    def encode(residual):
        return (residual @ encoder).relu()

    def cap(target: float) -> Edit:
        direction = torch.nn.functional.normalize(torch.randn(1, D, generator=draws))
        delta = partial(
            move_to, direction=direction, centre=centre, target=torch.tensor([target]), strength=torch.ones(1),
            along=None, at_most=True,
        )  # fmt: skip
        return Edit(LAYER, delta, rows=torch.tensor([0]), span=Span.text(1, 1))

    def feature(number: int) -> Edit:
        delta = partial(
            set_features, encode=encode, features=torch.tensor([[number]]), strength=torch.ones(1),
            decoder=torch.randn(1, 1, D, generator=draws), values=torch.zeros(1, 1), at_most=False, scale=None,
        )  # fmt: skip
        return Edit(LAYER, delta, span=Span.text(1, 1))

    own = Edit(LAYER, lambda residual: -residual)
    edits = [[*push(1, 1), cap(0.1)], [], [*push(2, 2), cap(-0.5), feature(3)], [feature(5)], [*push(3, 1), own]]
    batch = beside(edits)
    assert sorted(len(each.rows) for each in batch if each.rows is not None) == [1, 1, 1, 2, 3]
    residual, positions = torch.randn(5, 4, D, generator=draws), torch.arange(-1, 3).expand(5, -1)
    together, alone = residual, residual.clone()
    for edit in batch:
        together = edit.apply(together, positions)
    for row, mine in enumerate(edits):
        for edit in mine:
            alone[row : row + 1] = edit.apply(alone[row : row + 1], positions[row : row + 1])
    torch.testing.assert_close(together, alone)
    assert not torch.equal(together[4], residual[4]) and torch.equal(together[1], residual[1])
