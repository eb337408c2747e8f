"""Comparison: same-words pairs, vocabulary and affect taken away, subspaces, paired differences, the exported table."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np
import pytest
from affectlens import results
from affectlens.corpus.pairs import Pair, read_pairs
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.errors import UserError
from affectlens.model.reading import Site
from affectlens.model.subject import ModelConfig, load_tokenizer
from affectlens.model.tokens import encode_following
from affectlens.model.words import ConceptWords
from affectlens.probing import (
    axes as affect,
)
from affectlens.probing import (
    concept_table,
    detection,
    meaning,
    pairs,
    subspaces,
)
from affectlens.probing import (
    lexical as vocabulary,
)
from affectlens.probing import (
    methods as readouts,
)
from affectlens.probing.methods import Linear, Vocabulary
from affectlens.probing.readouts import confounded
from affectlens.results.tables import averaged
from affectlens.stages.compare import CompareStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage
from test_planted import CONCEPTS, FAST, LAYER, Plant, run

PAIRS = EMBEDDED / "pairs.jsonl"
ROW = {"id": "x", "emotion_a": "calm", "emotion_b": "sad", "device": "order"}


def write_pairs(path, *texts: tuple[str, str]):
    lines = [{**ROW, "id": str(n), "text_a": a, "text_b": b} for n, (a, b) in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_embedded_pairs_are_the_same_words_and_spread_over_concepts():
    found = read_pairs(PAIRS)
    assert len(found) >= 150
    assert len({pair.id for pair in found}) == len(found)
    assert len({name for pair in found for name in (pair.emotion_a, pair.emotion_b)}) >= 20
    known = {row["emotion"] for row in read_jsonl(EMBEDDED / "stories.jsonl")}
    assert all({pair.emotion_a, pair.emotion_b} <= known and pair.text_a != pair.text_b for pair in found)
    some = read_pairs(PAIRS, ("sad", "relieved", "happy", "hopeful"))
    assert 0 < len(some) < len(found)


def test_a_bag_of_words_ties_on_every_pair():
    stories = [row for row in read_jsonl(EMBEDDED / "stories.jsonl") if row["topic"] in ("letter", "train")]
    found = read_pairs(PAIRS)
    concepts = sorted({row["emotion"] for row in stories})
    labels = np.array([row["emotion"] for row in stories], dtype=object)[:, None] == np.array(concepts, dtype=object)
    words = Vocabulary.fit([row["text"] for row in stories], labels)
    first, second = (words.scores([getattr(pair, text) for pair in found]) for text in ("text_a", "text_b"))
    gap = pairs.margins(first, second, found, concepts, np.ones(len(concepts)))
    assert np.abs(gap).max() < 1e-9
    (row,) = pairs.judge([np.where(np.abs(gap) < 1e-9, 0, gap)], [True], found, np.random.default_rng(0))
    assert (row["accuracy"], row["ties"], row["p"]) == (0.5, len(found), 1.0)


def test_a_pair_of_other_words_is_refused(tmp_path):
    path = write_pairs(tmp_path / "p.jsonl", ("She lost the ring then found it", "She found the ring then lost a"))
    with pytest.raises(UserError, match="pair 0: 'a' is not as often"):
        read_pairs(path)
    fine = write_pairs(tmp_path / "q.jsonl", ("She lost it, then found it.", "She found it; then lost it"))
    assert len(read_pairs(fine)) == 1, "case and punctuation are no words"
    assert read_pairs(fine, ("calm", "proud")) == []


def test_a_pair_is_right_when_text_a_leans_further_towards_its_own_concept(tmp_path):
    found = read_pairs(write_pairs(tmp_path / "p.jsonl", *[("a b", "b a")] * 6))
    towards_a = np.tile([2.0, 0.0, 0.0], (6, 1))
    gap = pairs.margins(towards_a, np.zeros((6, 3)), found, ["calm", "proud", "sad"], np.ones(3))
    assert (gap == 2).all()
    both = pairs.margins(towards_a + 7, np.zeros((6, 3)) + 7, found, ["calm", "proud", "sad"], np.ones(3))
    assert np.allclose(both, gap), "what both texts share cancels"
    right, wrong = pairs.judge([gap, -gap], [True, True], found, np.random.default_rng(0))
    assert right["accuracy"] == 1
    assert wrong["accuracy"] == 0
    assert np.isnan(right["low"]), "one group has no spread"
    assert right["p"] == 1, "pairs of the same two concepts are one piece of evidence"
    scaled = pairs.margins(towards_a, np.zeros((6, 3)), found, ["calm", "proud", "sad"], np.array([4.0, 1, 1]))
    assert (scaled == 0.5).all()


def test_templates_are_filled_with_the_same_words_and_half_of_them_grade(tmp_path):
    found = read_pairs(EMBEDDED / "pair_templates.json")
    assert len(found) == len({(pair.text_a, pair.text_b) for pair in found}) == 600
    assert len({pair.group for pair in found}) == 30
    assert sum(pair.grades for pair in found) == 300
    assert all(pair.text_a[0].isupper() and "{" not in pair.text_a + pair.text_b for pair in found)
    content = {
        "words": {"thing": ["ring", "key"]},
        "templates": [{**ROW, "text_a": "{thing} a b", "text_b": "{item} b a"}],
    }
    path = tmp_path / "templates.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="names 'item'"):
        read_pairs(path)


GOOD = {"words": {"thing": ["ring", "key"]}, "templates": [{**ROW, "text_a": "{thing} a b", "text_b": "b a {thing}"}]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (json.dumps(GOOD).encode("utf-16"), "save the file as UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (json.dumps(GOOD)[:-20].encode(), "line 1: not JSON"),
        (json.dumps([GOOD]).encode(), "an object with `words` and `templates`"),
        (json.dumps({**GOOD, "words": {"thing": "ring"}}).encode(), "must be a list of texts"),
        (json.dumps({**GOOD, "words": {"thing": [1, 2]}}).encode(), "must be a list of texts"),
        (json.dumps({**GOOD, "templates": ["x"]}).encode(), "a template is an object"),
        (json.dumps({**GOOD, "templates": [{**ROW, "text_a": 5}]}).encode(), "has no 'text_a'"),
        (b'{"words": {}, "words": {}}', "stands twice"),
    ],
)
def test_a_file_of_templates_that_is_none_is_one_sentence(content: bytes, said: str, tmp_path):
    path = tmp_path / "templates.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as refused:
        read_pairs(path)
    assert str(refused.value).startswith(str(path)) and "codec" not in str(refused.value)


def test_a_template_is_filled_and_not_run(tmp_path):
    """Other braces are text: no attribute is read, no width is filled."""
    texts = {"text_a": "{thing} {thing.__class__} {thing:>99999999999} { }", "text_b": "{thing} 0 class"}
    path = tmp_path / "templates.json"
    path.write_text(json.dumps({**GOOD, "templates": [{**ROW, **texts, "text_b": texts["text_a"]}]}), encoding="utf-8")
    assert read_pairs(path)[0].text_a == "Ring {thing.__class__} {thing:>99999999999} { }"


def planted_pairs(groups: int, each: int) -> list[Pair]:
    return [
        Pair(f"{group}-{n}", "happy", "sad", "order", "a b", "b a", f"t{group}", grades=n % 2 == 0)
        for group in range(groups)
        for n in range(each)
    ]


def test_the_best_of_many_readings_of_noise_is_not_taken_for_one_that_reads():
    found, rng = planted_pairs(12, 4), np.random.default_rng(0)
    shown, noise = {"p": 0, "p_max": 0}, []
    for seed in range(60):
        noise = [rng.normal(size=len(found)) + np.repeat(rng.normal(size=12), 4) for _ in range(15)]
        best = max(pairs.judge(noise, [True] * 15, found, np.random.default_rng(seed)), key=lambda row: row["accuracy"])
        shown = {name: count + (best[name] <= 0.05) for name, count in shown.items()}
    assert shown["p_max"] <= 8, "5% of 60 is 3"
    assert shown["p"] > 9, "a reading's own p does not know that it was searched"
    signal = rng.normal(size=len(found)) + 2
    row = pairs.judge([*noise, signal], [True] * 16, found, np.random.default_rng(0))[-1]
    assert row["p_max"] <= 0.01


def test_a_planted_valence_is_found_where_it_lies_and_the_ceiling_grades_templates():
    rng, found = np.random.default_rng(0), planted_pairs(20, 4)
    heard, pleasant = [], rng.normal(size=16)
    for sign in (1, -1):
        for pair in found:
            elicited = rng.normal(size=(3, 16)) + sign * pleasant
            knows = int(pair.group[1:]) < 10
            heard.append(meaning.Heard({7: rng.normal(size=(5, 16))}, {7: elicited}, np.array([sign * knows, 0.0])))
    valence = np.ones(len(found))
    last, elicited = meaning._trained(found, heard, [7], valence)
    accuracy = {each.read: (each.gap > 0).mean() for each in (last, elicited)}
    assert accuracy["elicited"] > 0.95
    assert 0.3 < accuracy["last"] < 0.7, "nothing was planted there"
    own = np.stack([each.own for each in heard])
    ceiling, of_valence = meaning._answers(found, own, np.array([1.0, -1.0]), valence, ["happy", "sad"])
    assert (ceiling.gap > 0).mean() == (of_valence.gap > 0).mean() == 0.5
    solved = meaning._solved(found, ceiling.gap)
    assert [pair.group for pair, kept in zip(found, solved, strict=True) if kept] == [
        f"t{n}" for n in range(10) for _ in "ab"
    ]


def test_texts_are_heard_as_the_model_reads_them_alone(tiny_subject):

    subject = tiny_subject("llama")
    texts = ["stone river table", "a much longer text about the garden and the paper"]
    words = [ConceptWords("calm", ("calm",), (5, 6), whole=True), ConceptWords("sad", ("sad",), (7,), whole=True)]
    heard = meaning.hear(subject, texts, [1, 2], words)
    for text, each in zip(texts, heard, strict=True):
        tokens = subject.pad([subject.encode(text)])
        alone = subject.activations(tokens, [Site(1), Site(2)])
        for layer in (1, 2):
            expected = alone[Site(layer)][0, subject.lead :].float().numpy()
            assert np.allclose(each.tokens[layer], expected, atol=1e-5)
            assert each.elicited[layer].shape == (len(meaning.FRAMES), subject.width)
        own = np.zeros(2)
        for frame in meaning.FRAMES:
            ids = subject.encode(text) + encode_following(subject.tokenizer, frame, text[-1])
            last = subject.log_probabilities(subject.pad([ids]))[0, -1]
            own += np.array([float(last[[5, 6]].mean()), float(last[7])]) / len(meaning.FRAMES)
        assert np.allclose(each.own, own, atol=1e-4)
    with pytest.raises(UserError, match="longer than the model"):
        meaning.hear(subject, ["word " * (subject.context + 1)], [1], words)


def test_tokens_that_touch_a_telling_word_are_left_out(model_folder, tmp_path):
    tokenizer = load_tokenizer(ModelConfig(name=str(model_folder("llama"))), tmp_path)
    text = "The zebra ran; zebras ran to a ZEBRA."
    kept = vocabulary.kept_tokens(tokenizer, text, [{"zebra"}, {"nothing"}])
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    dropped = "".join(text[a:b] for (a, b), keep in zip(spans, kept[:, 0], strict=True) if not keep)
    assert dropped.replace(" ", "").lower() == "zebrazebra", "not the other word zebras"
    assert kept[:, 1].all()
    values = np.where(kept, 1.0, 100.0)
    assert vocabulary.pool_kept(values, kept, "mean").tolist() == [1, 1]
    assert vocabulary.pool_kept(values, kept, "max").tolist() == [1, 1]
    assert vocabulary.pool_kept(values, np.zeros_like(kept), "max").tolist() == [0, 0]


def test_telling_words_come_from_the_lexicon_and_from_the_stories():
    texts = ["the red fox jumped high"] * 3 + ["the blue whale slept deep"] * 3
    labels = np.repeat(np.arange(2), 3)[:, None] == np.arange(2)
    words = Vocabulary.fit(texts, labels)
    telling = vocabulary.telling_words(words, ["calm", "at ease"], {"calm": ["serene"]}, 10)
    assert {"calm", "serene", "red", "fox"} <= telling[0]
    assert "the" not in telling[0] | telling[1]
    assert "whale" not in telling[0]
    assert {"at", "ease", "blue"} <= telling[1]
    assert np.allclose(vocabulary.scores_without(words, texts, telling), 0, atol=0.5)
    best, present = vocabulary.best_words(texts, labels, ["a fox", "the whale"])
    assert set(best) & {"red", "fox", "jumped", "high"}
    assert present.shape == (2, 2)


def test_a_direction_that_is_only_valence_leaves_nothing_beyond_affect():
    generator = np.random.default_rng(0)
    ratings = affect.rated(
        list("abcdef"), {c: {"valence": v, "arousal": v**2} for c, v in zip("abcdef", range(6), strict=True)}
    )
    axes = generator.normal(size=(2, 10))
    linear = Linear(ratings @ axes, np.zeros(10))
    left, share = affect.remainder(linear, ratings)
    assert share.max() < 1e-12
    assert np.abs(left.weights).max() < 1e-9
    own = 3 * np.linalg.qr(generator.normal(size=(10, 10)))[0][:6]
    _, share = affect.remainder(Linear(ratings @ axes + own, np.zeros(10)), ratings)
    assert share.min() > 0.05
    few = np.where(np.arange(6)[:, None] < 3, ratings, np.nan)
    assert affect.remainder(linear, few)[1].tolist() == [1.0] * 6, "three rated concepts fix no plane"


def test_neighbours_in_affect_are_harder_to_tell_for_a_readout_of_valence():
    concept = np.tile(np.arange(8), 10)
    labels = concept[:, None] == np.arange(8)
    valence = np.arange(8.0)
    ratings = affect.rated(
        list("abcdefgh"), {c: {"valence": v, "arousal": 0} for c, v in zip("abcdefgh", valence, strict=True)}
    )
    noisy = valence[concept] + np.random.default_rng(0).normal(size=80)
    scores = -np.abs(noisy[:, None] - valence)
    near = affect.near_areas(scores, labels, np.zeros(80), ratings, 2)
    assert near.mean() < detection.own_areas(scores, labels).mean() - 0.05


def test_principal_angles_are_those_of_scipy():
    from scipy.linalg import subspace_angles

    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(3, 12)), generator.normal(size=(4, 12))
    assert np.allclose(np.sort(subspaces.cosines(a, b)), np.sort(np.cos(subspace_angles(a.T, b.T))))
    dictionary = np.eye(12)
    same = subspaces.overlap(np.eye(12)[:3], dictionary[:3], dictionary, draws=50, rng=generator)
    assert same.share == pytest.approx(1)
    assert same.null_95 < 1
    assert subspaces.overlap(np.eye(12)[:3], dictionary[5:8], dictionary, draws=5, rng=generator).share < 1e-12


def test_the_better_of_two_readouts_is_better_by_an_interval_that_excludes_zero():
    generator = np.random.default_rng(0)
    concept, topics = np.tile(np.repeat(np.arange(4), 3), 5), np.repeat(np.arange(5), 12)
    labels = concept[:, None] == np.arange(4)
    good = labels * 3.0 + generator.normal(size=labels.shape)
    methods = {"good": good, "same": good.copy(), "noise": generator.normal(size=labels.shape)}
    cells = {name: detection.within_topics(scores, labels, topics) for name, scores in methods.items()}
    rows = detection.describe(cells, cross_validated=True)
    assert [row.method for row in rows] == ["good", "same", "noise"]
    assert rows[0].difference is None
    assert (rows[1].difference.value, rows[1].better) == (0, 0)
    assert rows[2].difference.high < 0
    assert rows[2].worse == 4
    assert rows[0].mean.value > 0.95 > rows[2].mean.value + 0.2
    assert rows[0].mean.value == pytest.approx(np.mean([each.value for each in rows[0].concepts]))
    searched = detection.describe(cells, cross_validated=True, searched={"noise"})
    assert searched[2].mean.low < rows[2].mean.low
    assert searched[2].difference.low < rows[2].difference.low
    assert searched[1].mean == rows[1].mean


def test_the_whole_table_of_readouts_is_within_left_out_topics(tmp_path, model_folder):
    model = model_folder("llama")
    opened = Plant(signal=3.0).build(tmp_path, model)
    for stage in (DirectionsStage, MatchStage, CompareStage):
        metrics = run(stage, opened, model, tmp_path)
    comparison = opened["compare"]
    methods = {row["method"]: row for row in comparison.detection}
    expected = {"difference of means", "LDA (shrunk)", "logistic", "best SAE feature", "all SAE features"}
    expected |= {"all SAE features, logistic", "all random-SAE features", "best random-SAE feature"}
    expected |= {"best random direction", "best coordinate of the residual stream", "best principal component"}
    assert expected <= set(methods)
    assert methods["all SAE features"]["mean"] > 0.99
    assert methods["best SAE feature"]["per_concept"]["calm"] > 0.99, "carried by one feature"
    assert methods["best SAE feature"]["per_concept"]["sad"] < 0.9, "split over three"
    for row in comparison.detection:
        assert row["low"] <= row["mean"] <= row["high"]
    table = results.read(comparison.folder, "readouts")
    for metric, rows, column in averaged(table):
        mean: Any = rows[column].mean()
        assert mean == pytest.approx(metrics[metric])
    assert set(results.names(comparison.folder)) == {
        "angles", "confounds", "cosines", "detection", "explained", "readouts"
    }  # fmt: skip


def test_a_readout_that_loses_half_its_excess_with_the_words_is_confounded():
    row = {"auroc_topic_alone": 0.5, "difference of means": 0.9, "best SAE feature": 0.9}
    assert confounded({**row, "difference of means, without telling words": 0.75}) == []
    assert confounded({**row, "difference of means, without telling words": 0.69}) == ["words (difference of means)"]
    assert confounded({**row, "auroc_topic_alone": 0.7}) == ["topic"]


def test_the_stage_reads_pairs_and_writes_the_whole_table(tmp_path, model_folder, monkeypatch):
    from pyarrow import parquet

    path = write_pairs(
        tmp_path / "p.jsonl", ("stone river table", "table stone river"), ("paper garden", "garden paper")
    )
    monkeypatch.setitem(FAST, "compare", {**FAST["compare"], "pairs": str(path)})
    model = model_folder("llama")
    opened = Plant(signal=3.0).build(tmp_path, model)
    for stage in (DirectionsStage, MatchStage, CompareStage):
        run(stage, opened, model, tmp_path)
    comparison = opened["compare"]
    methods = {(row["method"], row["layer"], row["read"]): row for row in comparison.pairs}
    assert methods["TF-IDF", None, "text"]["ties"] == 2
    read = {("mean", "difference of means"), ("elicited", "difference of means"), ("max", "best SAE feature")}
    assert {(method, LAYER, place) for place, method in read} <= set(methods)
    assert methods["own log-probabilities", None, "elicited"]["p_max"] is None
    assert all(row["pairs"] == 2 for row in comparison.pairs)
    table = parquet.read_table(comparison.folder / "concepts.parquet").to_pylist()
    with (comparison.folder / "concepts.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [row["concept"] for row in table] == list(CONCEPTS) == [row["concept"] for row in lines]
    for row, line, match in zip(table, lines, opened["match"].table, strict=True):
        assert row["feature.auroc_test"] == match["auroc_test"] == pytest.approx(float(line["feature.auroc_test"]))
        assert row["auroc.best SAE feature"] == pytest.approx(match["auroc_test"])
        assert row["feature.probes.2"] == match["probes"]["2"]
    assert {"cosine.cosine_rank", "confound.auroc_best_word", "direction.halves", "auroc.TF-IDF"} <= set(table[0])
    explained = [row["explained"] for row in comparison.pursuit if row["dictionary"] == "SAE decoder"]
    assert explained == sorted(explained)
    assert explained[-1] > 0.9
    assert 0 <= comparison.subspace["share"] <= 1
    detected = {row["method"]: row for row in comparison.detection}
    rebuilt = detected["difference of means, SAE reconstruction"]["mean"]
    assert rebuilt == pytest.approx(detected["difference of means"]["mean"], abs=0.01), "this SAE loses nothing"


def test_nested_rows_become_flat_columns():
    rows = [{"concept": "calm", "words": ["a", "b"], "probes": {"1": 0.5}, "contexts": [{}], "best": None}]
    [row] = concept_table.build(["calm"], {"feature": rows}, [{"method": "TF-IDF", "per_concept": {"calm": 0.7}}])
    assert row == {
        "concept": "calm", "feature.words": "a b", "feature.probes.1": 0.5, "feature.best": None, "auroc.TF-IDF": 0.7
    }  # fmt: skip


def test_vocabulary_readout_finds_the_concept_that_a_word_belongs_to():
    texts = ["fox red", "fox den", "whale sea", "whale blue"]
    words = readouts.Vocabulary.fit(texts, np.repeat(np.arange(2), 2)[:, None] == np.arange(2))
    assert words.scores(["a fox", "whale"]).argmax(axis=1).tolist() == [0, 1]
