"""A sampled text depends on its own prompt, draws and edits alone, and steering reaches every token of it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from affectlens.model.sampling import RUN, Banned, choose, losses, repetition, sample, stream
from affectlens.model.steering import Edit, Span, add, editing
from affectlens.model.subject import Subject

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen2", "qwen3")
PROMPTS = ("The cat sat on the mat and", "We walked home through the rain until it was quite dark", "Then")
D, LAYER, STEPS = 32, 1, 12


def pushed(vectors: torch.Tensor, first: int) -> list[Edit]:
    """Each row along its own vector, from a position of its prompt on."""
    delta = partial(add, direction=vectors, strength=torch.ones(len(vectors)), unit=1.0)
    return [Edit(LAYER, delta, span=Span.onward(len(vectors), first))]


def vectors(rows: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(rows, D, generator=torch.Generator().manual_seed(1))


def texts(completions) -> list[list[list[int]]]:
    return [[completion.tokens for completion in row] for row in completions]


def spelled_out(model: Subject, prompt: list[int], draws: np.ndarray, edits: list[Edit]) -> list[int]:
    """The same text by the plainest loop there is: the whole text through the model at every step, until it ends."""
    ids, special = list(prompt), model.tokenizer.all_special_ids
    for chance in torch.tensor(draws):
        with torch.no_grad(), editing(model.bridge, edits):
            token = int(choose(model.bridge(torch.tensor([ids]))[:, -1].float(), chance[None], 1.0))
        if token in special:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("bridged", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_streamed_cached_and_single_texts_are_the_same(tiny_subject, family: str, bridged: bool) -> None:
    """Prompts of different length (padded on the left), several samples each, a push of its own for every row."""
    model = replace(tiny_subject(family), **({"plain": None} if bridged else {}))
    prompts = [model.led(model.encode(text)) for text in PROMPTS]
    draws, pushes, first = np.random.default_rng(0).random((3, 2, STEPS)), vectors(3), 2
    options: dict[str, Any] = {"resume_at": LAYER, "read": 2}
    together = sample(model, prompts, draws, pushed(pushes, first), **options)
    uncached = sample(model, prompts, draws, pushed(pushes, first), read=2, cached=False)
    alone = [
        sample(model, [prompts[row]], draws[row : row + 1, [draw]], pushed(pushes[[row]], first), read=2)[0][0]
        for row in range(3)
        for draw in range(2)
    ]
    plain = [
        spelled_out(model, prompts[row], draws[row, draw], pushed(pushes[[row]], first))
        for row in range(3)
        for draw in range(2)
    ]
    streamed: dict[tuple[int, int], list[int]] = {}
    for step in stream(model, prompts, draws, pushed(pushes, first), **options):
        for entry, token, ended in zip(step.entries, step.tokens, step.ended, strict=True):
            streamed.setdefault(entry, []).extend([] if ended else [token])
    flat = [completion for row in together for completion in row]
    assert texts(together) == texts(uncached)
    assert [completion.tokens for completion in flat] == [completion.tokens for completion in alone] == plain
    assert [completion.tokens for completion in flat] == [streamed[divmod(number, 2)] for number in range(6)]
    assert len({tuple(completion.tokens) for completion in flat}) == 6
    for one, other in zip(flat, alone, strict=True):
        assert one.positions == other.positions
        assert one.state is not None and other.state is not None
        np.testing.assert_allclose(one.state, other.state, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_token_is_steered_not_the_prompt_alone(tiny_subject, family: str) -> None:
    """The state from which each token is predicted is read above the push: it has to be the one of a steered pass."""
    model = tiny_subject(family)
    prompt = model.led(model.encode(PROMPTS[0]))
    draws, push = np.random.default_rng(2).random((1, 1, STEPS)), pushed(vectors(1, 3.0), len(prompt))
    steps = list(stream(model, [prompt], draws, push, resume_at=LAYER, read=LAYER, special="never"))
    plain = list(stream(model, [prompt], draws, read=LAYER, special="never"))
    np.testing.assert_array_equal(steps[0].states, plain[0].states)  # the prompt is left alone here
    said = list(prompt)
    for step in steps:
        with torch.no_grad():
            _, cache = model.bridge.run_with_cache(torch.tensor([said]), names_filter=f"blocks.{LAYER}.hook_out")
        added = torch.tensor(step.states[0]) - cache[f"blocks.{LAYER}.hook_out"][0, -1]
        steered = len(said) > len(prompt)
        torch.testing.assert_close(added, vectors(1, 3.0)[0] * steered, atol=1e-4, rtol=1e-4)
        said += step.tokens


@pytest.mark.parametrize("bridged", [False, True])
def test_rows_of_one_prompt_share_it(tiny_subject, bridged: bool) -> None:
    """The lower blocks see the prompt once, however many rows continue it; run by transformers or by the bridge."""
    model, seen = replace(tiny_subject("llama"), **({"plain": None} if bridged else {})), []
    inside = (model.bridge.blocks[0] if bridged else model.plain.model.layers[0]).mlp
    handle = inside.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape[:2])))
    prompt = model.led(model.encode(PROMPTS[0]))
    try:
        sample(model, [prompt], np.full((5, 1, 2), 0.5), pushed(vectors(5), 1), resume_at=LAYER, special="never")
    finally:
        handle.remove()
    assert (1, len(prompt)) in seen
    assert (5, len(prompt)) not in seen


def test_a_text_ends_at_a_special_token_or_a_stop_string(tiny_subject) -> None:
    model = tiny_subject("llama")
    prompt, draws = model.led(model.encode(PROMPTS[0])), np.random.default_rng(3).random((1, 64, 24))
    (free,) = sample(model, [prompt], draws, special="never")
    (stopped,) = sample(model, [prompt], draws, special="never", stop=["e"])
    special = set(model.tokenizer.all_special_ids)
    assert all(len(text.tokens) == 24 and not special & set(text.tokens) for text in free)
    for one, other in zip(free, stopped, strict=True):
        assert other.tokens == one.tokens[: len(other.tokens)]
        assert "e" in model.tokenizer.decode(other.tokens) or len(other.tokens) == 24
        assert "e" not in model.tokenizer.decode(other.tokens[:-1])
    (ended,) = sample(model, [prompt], draws)
    short = [text for text in ended if text.positions < 24]
    assert short, "64 texts of a random model: some meet a special token"
    assert all(
        text.positions == len(text.tokens) + 1 and not special & set(text.tokens) for text in ended if text in short
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_scored_as_if_each_were_read_whole(tiny_subject, family: str) -> None:
    subject = tiny_subject(family)
    prompt, answers = [0, 5, 6, 7, 8], [[9, 10, 11], [12], [], [13, 14, 15, 16, 17, 18], [9, 10, 11]]
    expected = []
    for answer in answers:
        scores = subject.log_probabilities(torch.tensor([prompt + answer]))[0, len(prompt) - 1 :]
        expected.append(-np.mean([scores[place, token] for place, token in enumerate(answer)]) if answer else np.nan)
    for budget in (1, 6, 100):
        np.testing.assert_allclose(losses(subject, prompt, answers, budget), expected, rtol=1e-4)


def test_prompts_are_one_for_all_or_one_each(tiny_subject) -> None:
    with pytest.raises(ValueError, match="2 prompts for 3 rows"):
        sample(tiny_subject("llama"), [[0], [0, 1]], np.zeros((3, 1, 2)))
    assert sample(tiny_subject("llama"), [[0]], np.zeros((2, 1, 0)))[1][0].tokens == []


def test_banned_words_are_not_said(tiny_subject) -> None:
    model = tiny_subject("llama")
    prompt, chances = model.led(model.encode(PROMPTS[0])), np.random.default_rng(0).random((1, 24, 12))
    (free,) = sample(model, [prompt], chances, special="never")
    words = ["the", "and", "it", "on"]
    (kept,) = sample(model, [prompt], chances, special="never", banned=Banned.words(model.tokenizer, words))
    forms = {tuple(model.encode(lead + word)) for word in words for lead in ("", " ")}

    def says(text: list[int]) -> bool:
        return any(tuple(text[i : i + len(form)]) == form for form in forms for i in range(len(text)))

    assert any(says(text.tokens) for text in free), "the test needs a word that would have been said"
    assert not any(says(text.tokens) for text in kept)


def test_words_of_several_tokens_are_banned_as_a_run() -> None:
    banned = Banned({(): {1}, (4, 5): {6}})
    assert banned.following([9, 4, 5]) == {1, 6}
    assert banned.following([4, 9, 5]) == {1}


def test_repetition_counts_runs_that_come_again() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert repetition([1, 1, 1, 1, 1]) == pytest.approx(2 / 3)
    assert repetition([1, 2]) == 0


@pytest.mark.parametrize("vocabulary", [3, RUN, 5 * RUN + 17])
def test_the_token_at_a_chances_place_is_taken(vocabulary: int) -> None:
    """By the cumulative distribution of all tokens, exactly; tokens that cannot be said are never taken."""
    draw = torch.Generator().manual_seed(vocabulary)
    scores = 4 * torch.randn(400, vocabulary, generator=draw)
    scores[:, torch.rand(vocabulary, generator=draw) > 0.6] = -math.inf
    scores[:, vocabulary // 2] = 1.0
    chances = torch.rand(400, generator=draw, dtype=torch.float64)
    chances[:3] = torch.tensor([0.0, 1 - 1e-16, 0.999999999999])
    chosen = choose(scores, chances, 0.7)
    sums = torch.softmax(scores / 0.7, dim=-1).double().cumsum(dim=-1)
    expected = torch.searchsorted(sums, (chances * sums[:, -1])[:, None], right=True)[:, 0]
    told = expected < vocabulary
    assert torch.equal(chosen[told], expected[told])
    assert torch.isfinite(scores.gather(-1, chosen[:, None])).all()
