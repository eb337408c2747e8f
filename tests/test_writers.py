"""Other writers: what one writer's stories build is read on another's, with planted truths and nulls."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from affectlens import results, stats
from affectlens.config import validate
from affectlens.corpus.checks import check
from affectlens.corpus.documents import Corpus, CorpusConfig
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.probing import methods, transfer, ways, writer_tables
from affectlens.probing.transfer import Pool
from affectlens.probing.writers import CHOSEN
from affectlens.run import runner
from affectlens.study import STAGES, Study, stage_named

WIDTH, CONCEPTS, TOPICS, TEXTS, LAYER = 24, 6, 8, 2, 3
DIRECTIONS: Any = SimpleNamespace(
    methods=(methods.RECIPE, "LDA (shrunk)", "logistic"),
    neutral=lambda layer: np.empty((0, WIDTH)),
    massive=lambda layer: [],
    without_massive=lambda layer, values: values,
    subtract_mean=True,
    logistic_c=1.0,
    rebuilt=lambda layer, values, labels: methods.difference_of_means(values, labels).unit,
)


def planted(
    seed: int,
    writers: tuple[str, ...] = ("own", "b", "c"),
    *,
    signal: float = 1.0,
    noise: tuple[str, ...] = (),
    manner: float = 0.0,
    topics: int = TOPICS,
    means: np.ndarray | None = None,
) -> Pool:
    """Stories of writers with topics of their own.

    Args:
        seed: of everything but ``means``.
        writers: the first is the study's own.
        signal: length of what concepts have in common over writers.
        noise: writers whose stories have nothing of their concepts.
        manner: how much each writer's concepts differ from what they have in common.
        topics: of each writer.
        means: of the concepts; drawn when None.
    """
    rng = np.random.default_rng(seed)
    means = signal * rng.normal(size=(CONCEPTS, WIDTH)) if means is None else means
    values, concept, writer, topic = [], [], [], []
    for name in writers:
        mine = (means + manner * rng.normal(size=means.shape)) * (name not in noise)
        for number in range(topics):
            place = 0.5 * rng.normal(size=WIDTH)
            for index in np.repeat(np.arange(CONCEPTS), TEXTS):
                values.append(mine[index] + place + rng.normal(size=WIDTH))
                concept.append(index)
                writer.append(name)
                topic.append(f"{name} {number}")
    here, labels = np.array(values), np.array(concept)[:, None] == np.arange(CONCEPTS)
    codes = np.maximum(here @ rng.normal(size=(WIDTH, 40)), 0).astype(np.float32)
    every = np.ones(len(here), bool)
    return Pool(
        tuple(f"concept {index}" for index in range(CONCEPTS)),
        np.array(writer), np.array(topic), [f"word{index} and a place" for index in rng.integers(30, size=len(here))],
        labels, every, every, LAYER, {0: rng.normal(size=here.shape), LAYER: here},
        codes={"sae": codes, "mean": codes, "random-0": codes[:, ::2]},
    )  # fmt: skip


def evaluated(pool: Pool) -> writer_tables.Found:
    return writer_tables.evaluate(pool, DIRECTIONS, lambda name: np.random.default_rng(0))


def of(rows: list[dict], **where) -> dict:
    (row,) = (row for row in rows if all(row[key] == value for key, value in where.items()))
    return row


def test_what_writers_share_is_read_and_what_they_do_not_share_is_lost():
    found, apart = evaluated(planted(0)), evaluated(planted(0, manner=1.5)).methods
    shared, read = found.methods, found.transfer
    for method in ("difference of means", "LDA (shrunk)", "logistic", "all SAE features"):
        assert of(shared, method=method)["other"] > 0.9
        assert abs(of(shared, method=method)["loss"]) < 0.05
        row = of(apart, method=method)
        assert row["own"] > 0.9
        assert row["loss_low"] > 0.05, "a writer of another manner is read worse, and the interval says so"
        assert row["loss"] == pytest.approx(row["own"] - row["other"])
        assert row["several"] > row["pairs"], "several writers show what writers have in common"
    home = [of(read, method="difference of means", built=name, read=name)["auroc"] for name in ("b", "c")]
    assert of(shared, method="difference of means")["home"] == pytest.approx(np.mean(home))
    assert of(shared, method="difference of means")["hit_other"] > 2 / CONCEPTS
    for method in ("TF-IDF", "difference of means, layer 0"):
        row = of(shared, method=method)
        assert row["other_low"] < 0.5 < row["other_high"]


def test_a_writer_of_pure_noise_gives_one_half_within_its_interval():
    found = evaluated(planted(1, noise=("b",)))
    methods_read = {row["method"] for row in found.transfer}
    outside = [
        row["method"]
        for row in found.transfer
        if row["read"] == "b" and not row["low"] < 0.5 < row["high"] and row["built"] in ("own", "c")
    ]
    assert len(outside) <= 0.15 * 2 * len(methods_read)
    row = of(found.transfer, method="difference of means", built="own", read="b")
    assert row["low"] < 0.5 < row["high"]
    assert row["hit_low"] < row["hit_chance"] < row["hit_high"]
    assert of(found.transfer, method="difference of means", built="own", read="c")["auroc"] > 0.9


def test_no_topic_that_is_read_builds():
    pool = planted(2)
    alike = Pool(**{**vars(pool), "topic": np.array([name.split()[1] for name in pool.topic])})
    for case, folds in ((pool, 1), (alike, TOPICS)):
        for built, read in (("own",), "b"), (("own", "c"), "b"):
            divided = transfer.splits(case, built, read)
            assert len(divided) == folds
            assert (
                sorted(np.concatenate([each.test for each in divided])) == np.flatnonzero(case.writer == read).tolist()
            )
            for each in divided:
                assert not set(case.topic[each.train]) & set(case.topic[each.test])
                assert set(case.writer[each.train]) == set(built)
    assert len(transfer.splits(pool, ("b",), "b")) == TOPICS


def test_concepts_that_one_writer_lacks_are_left_out_of_both_sides():
    pool = planted(3)
    kept = (pool.writer != "b") | pool.labels[:, :4].any(axis=1)
    part = {name: value[kept] for name, value in vars(pool).items() if isinstance(value, np.ndarray)}
    part |= {"layers": {at: rows[kept] for at, rows in pool.layers.items()}}
    part |= {"codes": {name: rows[kept] for name, rows in pool.codes.items()}}
    fewer = Pool(**{**vars(pool), **part, "text": [text for text, keep in zip(pool.text, kept, strict=True) if keep]})
    found = evaluated(fewer)
    there, back, home = (
        of(found.transfer, method="difference of means", built=built, read=read)
        for built, read in (("own", "b"), ("b", "own"), ("own", "own"))
    )
    assert (there["concepts"], back["concepts"], home["concepts"]) == (4, 4, CONCEPTS)
    assert back["texts"] == 4 * TOPICS * TEXTS
    assert all(np.isfinite(row["auroc"]) for row in found.transfer)


@pytest.mark.slow
def test_intervals_of_other_writers_hold():
    """Coverage of 95% in 200 studies: of other topics of the same writer, of the loss, and of a further writer."""
    means, within, lost, further, fresh = np.random.default_rng(9).normal(size=(CONCEPTS, WIDTH)) * 0.35, 0, 0, 0, 200
    for seed in range(fresh):
        # The same writers with many more topics say what the figure is of; one writer more is the further one.
        whole = planted(seed, ("own", "b", "c", "d"), means=means, manner=0.3, topics=68)
        number = np.array([int(name.split()[1]) for name in whole.topic])
        seen, rest = number < TOPICS, number >= TOPICS
        here = whole.layers[LAYER]

        def area(build: np.ndarray, read: np.ndarray, here: np.ndarray = here, whole: Pool = whole) -> np.ndarray:
            fitted = methods.difference_of_means(here[build], whole.labels[build])
            rows = np.flatnonzero(read)
            return transfer.detection.within_topics(fitted.scores(here[rows]), whole.labels[rows], whole.topic[rows])

        own, other = (whole.writer == "own") & seen, (whole.writer == "b") & seen
        found, truth = stats.t_interval(area(own, other)), area(own, (whole.writer == "b") & rest).mean()
        within += found.low <= truth <= found.high
        home = []
        for left in range(TOPICS):
            home.append(area(own & (number != left), own & (number == left)))
        crossed = stats.t_interval(np.concatenate(home, axis=1), cross_validated=True)
        at_home = area(own, (whole.writer == "own") & rest).mean()
        gap = stats.difference(crossed, found)
        lost += gap.low <= at_home - truth <= gap.high
        each = [area(own, (whole.writer == name) & seen).mean() for name in ("b", "c")]
        expected = stats.prediction_interval(np.array(each))
        further += expected.low <= area(own, (whole.writer == "d") & seen).mean() <= expected.high
    assert 0.90 <= within / fresh <= 0.99
    assert lost / fresh >= 0.92, "the two parts add in squares although they share what built"
    assert 0.90 <= further / fresh <= 0.99


def texts(path, topics: tuple[str, ...], emotions: tuple[str, ...] = ("afraid", "calm", "proud", "sad")) -> str:
    """A file of stories; embedded ones under other topics, which stand for another writer's."""
    rows = [
        row for row in read_jsonl(EMBEDDED / "stories.jsonl") if row["topic"] in topics and row["emotion"] in emotions
    ]
    path.write_text("".join(json.dumps({**row, "topic": f"my {row['topic']}"}) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("writers", "named"),
    [
        ([{"stories": "missing.jsonl"}], "missing.jsonl"),
        (["good", {"stories": "good", "name": "own"}], "own"),
        (["good", "good"], "good"),
        (["one_topic"], "topics"),
        (["other_emotions"], "studied emotions"),
    ],
)
def test_writers_that_could_not_be_read_are_refused_before_anything_runs(tmp_path, writers, named):
    files = {
        "good": texts(tmp_path / "good.jsonl", ("exam", "train")),
        "one_topic": texts(tmp_path / "one.jsonl", ("exam",)),
        "other_emotions": texts(tmp_path / "other.jsonl", ("exam", "train"), ("bored", "happy")),
    }
    listed = [
        {**each, "stories": files.get(each["stories"], each["stories"])} if isinstance(each, dict) else files[each]
        for each in writers
    ]
    values = {"emotions": ["afraid", "calm", "proud", "sad"], "evaluate": listed}
    with pytest.raises(ValueError, match=r"corpus\.evaluate") as raised:
        check(validate(CorpusConfig, values, "study"))
    assert named in str(raised.value)


def test_a_further_writer_is_cached_alone_and_repeats_nothing(study_values, write_study, tmp_path):
    one, two = (
        texts(tmp_path / f"{name}.jsonl", topics)
        for name, topics in (("x", ("exam", "train")), ("a", ("phone", "stage")))
    )
    small = {"sae": {"width": 32, "k": 4, "steps": 5, "batch": 128, "health_rows": 200}}
    small |= {"match": {"permutations": 19, "random_saes": 1, "contexts": 0}, "directions": {"permutations": 19}}
    path = write_study({**study_values, **small})
    alone, before, after = (Study.load(path, [f"corpus.evaluate=[{files}]"]) for files in ("", one, f"{one}, {two}"))
    stage = before.stage_named("writers")
    for study in (alone, before, after):
        runner.run(study, only=["writers"])
    others = [each for each in STAGES if each.name not in ("writers", "report")]
    assert all(alone.fingerprint(each) == after.fingerprint(each) for each in others)
    records = {path.parent.name: json.loads(path.read_text()) for path in after.folder(stage).glob("parts/*/part.json")}
    assert {name for name, record in records.items() if "adopted" in record} == {"x-00000"}
    assert {name for name, record in records.items() if "adopted" not in record} == {"a-00000"}
    opened = stage.open(after.folder(stage))
    assert opened.names == ("a", "x")
    own = runner.open_results(after, ["activations"])["activations"]
    for name, corpus in ((name, opened.corpus(name)) for name in opened.names):
        # The same texts in the study's own cache: read alike, whoever is said to have written them.
        rows = {document.text: document.index for document in Corpus(after.folder(stage_named("corpus"))).documents}
        mine = [rows[document.text] for document in corpus.documents]
        assert np.allclose(opened.store(name).pooled(2), own.pooled(2)[mine], atol=1e-5)
        assert len(opened.store(name).tokens(2).of(1)) == opened.store(name).documents["tokens"][1]
    table = results.read(after.folder(stage), "transfer")
    assert set(table["read"]) == {"own", "a", "x"}
    assert "own + a" in set(table["built"])
    assert len(results.read(alone.folder(stage), "transfer")) == 0


def built(seed: int = 0, shift: float = 0.0):
    """Activations of two writers' topics, concepts crossed with topics; ``shift`` moves each topic as a whole."""
    rng = np.random.default_rng(seed)
    concept, topic = np.tile(np.arange(3), 16), np.repeat(np.arange(8), 6)
    moved = shift * rng.normal(size=(8, 10))
    values = rng.normal(size=(3, 10))[concept] + rng.normal(size=(48, 10))
    return values + moved[topic], concept[:, None] == np.arange(3), topic, topic // 4


def test_ridge_is_scikit_learns():
    from sklearn.linear_model import Ridge

    values, labels, *_ = built()
    columns = (values - values.mean(axis=0)) / values.std(axis=0)
    theirs = Ridge(alpha=ways.RIDGE * len(values)).fit(columns, labels.astype(float))
    ours = ways.ridge(values, labels)
    assert np.allclose(ours.scores(values), columns @ theirs.coef_.T, atol=1e-9)


def test_taking_style_out_leaves_nothing_of_how_topics_differ():
    values, labels, strata, writers = built()
    fit = ways.plain(lambda rows, mine: methods.logistic(rows, mine, methods.ProbeOptions()))
    for topics, by in ((True, strata), (False, writers)):
        means = np.stack([values[by == name].mean(axis=0) for name in np.unique(by)])
        weights = ways.style_removed(fit, topics=topics)(values, labels, strata, writers).weights
        assert np.abs(weights @ (means - means.mean(axis=0)).T).max() < 1e-9 * np.abs(means).max()
        still, moved = built(shift=0.0)[0], built(shift=5.0)[0]
        within = [ways.centred(fit, topics=topics)(rows, labels, strata, writers).weights for rows in (still, moved)]
        assert np.allclose(within[0], within[1]) == topics, "a shift of whole topics is seen unless topics are centred"


def test_a_way_is_chosen_without_the_writer_it_is_judged_on():
    pairs = {(("a",), "b"): 0.8, (("b",), "a"): 0.8, (("a",), "c"): 0.1, (("a", "b"), "c"): 0.1}
    tempting = {pair: 1.0 if pair[1] == "c" else 0.7 for pair in pairs}
    assert ways.chosen({"good": pairs, "tempting": tempting}, ("a", "b")) == "good"


def test_several_writers_raise_the_figure_where_each_has_a_manner_of_its_own():
    found = evaluated(planted(4, manner=1.0)).ways
    one, several = (of(found, way=methods.RECIPE, built=built) for built in ("one writer", "all others"))
    assert one["difference"] == 0
    assert several["difference_low"] > 0
    assert several["auroc"] - one["auroc"] == pytest.approx(several["difference"])
    assert all(0 < row["further_low"] < row["further_high"] < 1 for row in found)
    assert sum(row["way"].startswith(CHOSEN) for row in found) == 1
