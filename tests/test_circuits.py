"""Units of a model: what they write sums to the reading, ablation is exact, gradients agree with transformer-lens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from affectlens.circuits.anatomy import Anatomy, Recorded, Replaced, path
from affectlens.circuits.bench import Bench, activation_sizes, exact_effects, require_empty
from affectlens.circuits.config import CircuitsConfig
from affectlens.circuits.design import Cell, chosen, rotations, spread, stories_of
from affectlens.circuits.writers import decompose, topic_writers
from affectlens.corpus.documents import Document
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.errors import UserError
from affectlens.model.words import choose_words

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "olmo2")
CONCEPTS = ("afraid", "calm", "proud", "sad")
TOPICS = ("clinic", "exam", "garden")


def stories() -> dict[Cell, str]:
    return {
        Cell(row["topic"], row["emotion"]): row["text"]
        for row in read_jsonl(EMBEDDED / "stories.jsonl")
        if row["emotion"] in CONCEPTS and row["topic"] in TOPICS
    }


def bench_of(subject, frame: str = "In one word, the feeling was", tokens: int = 12) -> Bench:
    words = choose_words(subject.tokenizer, CONCEPTS, {}, 4)
    return Bench(Anatomy(subject), words, stories(), frame, tokens)


@pytest.fixture(scope="module")
def bench(tiny_subject) -> Bench:
    return bench_of(tiny_subject("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_units_write_sums_to_the_reading(tiny_subject, family: str) -> None:
    bench = bench_of(tiny_subject(family))
    recorded = bench.anatomy.record(bench.tokens(Cell("exam", "sad")))
    along = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    written = decompose(bench.anatomy, recorded, along, 2, bench.story, 1.0)
    expected = (recorded.residual[3, bench.story].mean(dim=0) @ along.T).numpy()
    np.testing.assert_allclose(written.reading, expected, rtol=1e-4, atol=1e-5)
    assert written.residue < 1e-4
    assert np.abs(written.heads).max() > 1e-6
    np.testing.assert_allclose(written.mlp, written.neurons.sum(axis=1), atol=1e-9)


def test_a_sum_that_lacks_a_part_is_refused(bench: Bench) -> None:
    recorded = bench.anatomy.record(bench.tokens(Cell("exam", "sad")))
    odd = Recorded(**{**vars(recorded), "residual": recorded.residual + 0.5})
    odd.residual[0] -= 0.5
    with pytest.raises(UserError, match="adds more to the residual stream"):
        decompose(bench.anatomy, odd, torch.ones(1, 32), 2, bench.story, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_above_a_restart_is_that_of_a_whole_pass(tiny_subject, family: str) -> None:
    bench = bench_of(tiny_subject(family))
    taken = bench.take(Cell("exam", "sad"))
    effects = exact_effects(bench, taken)
    layer, head = 2, 1
    keep = bench.anatomy.all_kept(1)
    keep[0, layer, head] = False
    with torch.no_grad(), bench.anatomy.replacing(Replaced(keep, taken.reference.heads)):
        whole = bench.contrast(bench.anatomy.bridge(taken.tokens)[:, -1]).numpy()[0]
    np.testing.assert_allclose(taken.full - whole, effects[layer * 4 + head], atol=1e-5)
    assert np.abs(effects).max() > 1e-6
    assert activation_sizes(bench, taken).shape == (16,)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_heads_nothing_of_the_story_is_left(tiny_subject, family: str) -> None:
    bench = bench_of(tiny_subject(family))
    taken = [bench.take(Cell(topic, concept)) for topic in TOPICS[:2] for concept in CONCEPTS]
    assert require_empty([(each.cell.topic, each.empty) for each in taken]) < 1e-4
    # Averaged over the concepts of a topic, the contrast is 0: what is left is how common the words are.
    assert abs(np.mean([each.empty[CONCEPTS.index(each.cell.concept)] for each in taken])) < 1e-5
    assert max(np.abs(each.full - each.empty).max() for each in taken) > 1e-5


def test_two_frames_in_one_run_are_refused(tiny_subject) -> None:
    first, second = (bench_of(tiny_subject("llama"), frame) for frame in ("He felt", "The feeling was"))
    mixed = [("exam", each.take(Cell("exam", "sad")).empty) for each in (first, second)]
    with pytest.raises(UserError, match="one frame"):
        require_empty(mixed)


def test_gradients_are_those_of_transformer_lens(bench: Bench) -> None:
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    anatomy = bench.anatomy
    clean, corrupt = (bench.tokens(Cell("exam", concept)) for concept in ("sad", "calm"))
    for parameter in anatomy.bridge.parameters():
        parameter.requires_grad_(True)  # theirs asks for it
    theirs = attribution_patch(
        anatomy.bridge, clean, corrupt, lambda logits: bench.contrast(logits[:, -1].float())[0, 3]
    ).node_scores
    one, other = anatomy.record(clean), anatomy.record(corrupt)
    (gradient,) = anatomy.gradients(corrupt, other.residual[:1], lambda logits, read: [bench.contrast(logits)[:, 3]])
    ours = gradient.of_heads(one, other)
    expected = torch.zeros_like(ours)
    for node, score in theirs.items():
        if node.kind == "attn_head_out":
            expected[node.layer, node.head] += score
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-7)


def test_replaced_units_have_no_gradient_and_reading_gradients_stop(bench: Bench) -> None:
    anatomy, reference = bench.anatomy, bench.reference("exam")
    tokens = bench.tokens(Cell("exam", "sad"))
    recorded = anatomy.record(tokens)
    keep = anatomy.all_kept(1)
    keep[0, 1] = False
    (gradient,) = anatomy.gradients(
        tokens,
        path(recorded, reference, 3),
        lambda logits, read: [bench.contrast(logits)[:, 0]],
        replaced=Replaced(keep, reference.heads),
    )
    assert float(gradient.heads[1].abs().max()) == 0 < float(gradient.heads[0].abs().max())
    (short,) = anatomy.gradients(
        tokens, path(recorded, reference, 3), lambda logits, read: [read[2].sum(dim=(1, 2))], read=[2], stop=2
    )
    assert float(short.heads[3].abs().max()) == 0 < float(short.heads[2].abs().max())


def test_writers_of_a_topic_are_differences_that_cancel_over_concepts(bench: Bench) -> None:
    directions = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    found = topic_writers(bench, "exam", directions, 2, 1.0, 3)
    total = found.embedding + found.heads.sum(axis=(1, 2)) + found.mlp.sum(axis=1) + found.bias.sum(axis=1)
    np.testing.assert_allclose(total, found.reading, atol=1e-4)
    assert np.abs(found.heads_total[:, :3]).max() > 0
    same = np.tile(directions[:1], (4, 1))
    alike = topic_writers(bench, "exam", same, 2, 1.0, 1)
    assert abs(alike.reading.mean()) < 1e-6, "of one direction, differences from the mean cancel"


def documents(concepts=CONCEPTS, topics=TOPICS) -> list[Document]:
    return [
        Document(0, "story", concept, topic, "first", "train", f"{concept} {topic}")
        for topic in topics
        for concept in concepts
    ]


def test_every_topic_is_reported_once_by_contexts_that_chose_nothing() -> None:
    topics = [f"t{n:02d}" for n in range(11)]
    turns = rotations(topics, CONCEPTS, CircuitsConfig())
    reported = [cell.topic for turn in turns for cell in turn.report]
    assert sorted(set(reported)) == topics
    assert len(reported) == len(topics) * len(CONCEPTS)
    for turn in turns:
        groups = [{cell.topic for cell in group} for group in (turn.select, turn.size, turn.report)]
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    few = rotations(topics, CONCEPTS, CircuitsConfig(rotations=1, select_contexts=8))[0].select
    assert len(few) == 8 and {cell.concept for cell in few} == set(CONCEPTS)
    assert len(chosen(few, 4)) == 4
    with pytest.raises(UserError, match="three disjoint groups"):
        rotations(topics[:2], CONCEPTS, CircuitsConfig())
    assert len(spread(topics, CONCEPTS, 2)) == 2


def test_a_missing_story_is_named() -> None:
    assert len(stories_of(documents())) == 12
    with pytest.raises(UserError, match="no story of `sad` about `garden`"):
        stories_of(documents()[:-1])


def test_a_story_that_is_too_short_and_equal_frames_are_refused(tiny_subject) -> None:
    bench = bench_of(tiny_subject("llama"), tokens=500)
    with pytest.raises(UserError, match="smaller number"):
        bench.tokens(Cell("exam", "sad"))
    with pytest.raises(ValueError, match="transfer_frame"):
        CircuitsConfig(frame="He felt", transfer_frame="He felt")
