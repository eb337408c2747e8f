"""Model differences: what was moved or turned is seen in its own term, and nothing where nothing was changed."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from affectlens.compare import models
from affectlens.errors import UserError
from affectlens.model.subject import ModelConfig, Subject
from affectlens.model.tuning import Example, TuningConfig, tuned_folder
from affectlens.probing import differences
from affectlens.stages.corpus import CorpusStage
from cached import LAYER, build

TOPICS, CONCEPTS, D, EACH = 10, 6, 48, 3


def texts(seed: int, shift: float = 0.0, turn: float = 0.0, noise: float = 0.5):
    """The same texts in two models: a concept's vector, a topic's, noise that both share and noise of their own.

    Args:
        shift: movement of all texts of the second model along concept 0's vector.
        turn: share of a new direction in concept 1's vector there, in the manner of a sine.
    """
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(D, CONCEPTS + 1)))[0].T * 4
    turned = vectors[:CONCEPTS].copy()
    turned[1] = np.sqrt(1 - turn**2) * vectors[1] + turn * vectors[CONCEPTS]
    cells = [(topic, concept) for topic in range(TOPICS) for concept in range(CONCEPTS) for _ in range(EACH)]
    topics, own = np.array(cells).T
    shared = rng.normal(size=(TOPICS, D))[topics] + noise * rng.normal(size=(len(cells), D))
    base = shared + vectors[own] + noise * rng.normal(size=shared.shape)
    tuned = shared + turned[own] + noise * rng.normal(size=shared.shape) + shift * vectors[0] / 4
    return base, tuned, own[:, None] == np.arange(CONCEPTS), topics


def rows_of(seed: int = 0, **planted):
    names = [f"c{index}" for index in range(CONCEPTS)]
    return list(differences.differences(*texts(seed, **planted), names, np.random.default_rng(1)))


def test_the_terms_sum_to_the_change_text_by_text():
    rng = np.random.default_rng(0)
    base, tuned = rng.normal(size=(2, 40, 7))
    before, after = rng.normal(size=(2, 5, 7))
    terms = differences.decompose(base, tuned, before, after)
    np.testing.assert_allclose(sum(terms[name] for name in differences.TERMS[:3]), terms["total"], atol=1e-12)
    np.testing.assert_allclose(terms["total"], tuned @ after.T - base @ before.T, atol=1e-12)
    for row in rows_of(shift=1.0, turn=0.5):
        for kind in ("all", "own"):
            parts = sum(row[f"{kind}_{name}"].value for name in differences.TERMS[:3])
            assert parts == pytest.approx(row[f"{kind}_total"].value, abs=1e-9)


def test_a_pure_shift_is_in_the_activation_term_and_turns_nothing():
    rows = rows_of(shift=3.0)
    assert rows[0]["all_activation"].low > 2.0 and rows[0]["p_shift"] < 0.05
    assert abs(rows[0]["all_rotation"].value) < 0.3 and abs(rows[0]["own_total"].value) < 0.5
    for row in rows:
        assert row["corrected_cosine"].high > 0.97 and row["corrected_cosine"].value > 0.9
    assert max(abs(row["all_activation"].value) for row in rows[2:]) < 1.5


def test_a_pure_rotation_is_seen_beside_the_ceiling_and_shifts_nothing():
    rows = rows_of(turn=0.8)
    assert rows[1]["corrected_cosine"].high < 0.85 and rows[1]["corrected_cosine"].value == pytest.approx(0.6, abs=0.15)
    assert min(row["corrected_cosine"].value for row in rows[2:]) > 0.85
    # Its own texts lie less along the old direction, and the new one reads that back.
    assert rows[1]["own_activation"].high < -0.5
    assert rows[1]["own_rotation"].value + rows[1]["own_interaction"].value > 0.5
    assert abs(rows[1]["own_total"].value) < 0.5


def test_both_are_seen_at_once():
    rows = rows_of(shift=3.0, turn=0.8)
    assert rows[0]["all_activation"].low > 2.0 and rows[0]["corrected_cosine"].value > 0.9
    assert rows[1]["corrected_cosine"].high < 0.85


def test_where_nothing_was_changed_nothing_is_seen_however_noisy_the_directions():
    found = [row for seed in range(12) for row in rows_of(seed, noise=2.0)]
    plain = np.mean([row["cosine"] for row in found])
    corrected = [row["corrected_cosine"] for row in found]
    assert plain < 0.97  # by chance alone
    assert np.mean([each.value for each in corrected]) == pytest.approx(1.0, abs=0.05)
    assert np.mean([each.high < 1 for each in corrected]) <= 0.08
    assert np.mean([row["p_shift"] <= 0.05 for row in found]) <= 0.12
    covered = [
        row[f"{kind}_activation"].low <= 0 <= row[f"{kind}_activation"].high for row in found for kind in ("all",)
    ]
    assert np.mean(covered) >= 0.88


def test_the_geometry_is_held_against_its_own_reliability():
    rng = np.random.default_rng(0)
    concepts, noise = (
        rng.normal(size=(CONCEPTS, 3)) @ rng.normal(size=(3, D)),
        rng.normal(size=(2, TOPICS, CONCEPTS, D)),
    )
    turned = concepts @ np.linalg.qr(rng.normal(size=(D, D)))[0]  # every direction turns, their angles stay
    base = concepts + 3 * noise[0]
    for other in (concepts, turned):
        found = differences.geometry(base, other + 3 * noise[1], rng)
        assert found.base < 0.97 and found.corrected.high > 0.98 and found.corrected.value > 0.9
    cosines = [each.corrected.value for each in differences.rotation(base, turned + 3 * noise[1], rng)]
    assert np.nanmean(cosines) < 0.5
    shuffled = differences.geometry(base, concepts[[3, 5, 0, 1, 2, 4]] + 3 * noise[1], rng)
    assert shuffled.corrected.high < 0.9


def test_ratings_are_predicted_for_concepts_that_were_left_out_or_not_at_all():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 20))
    ratings = vectors @ rng.normal(size=20) + 0.5 * rng.normal(size=40)
    assert np.corrcoef(differences.predicted_ratings(vectors, ratings), ratings)[0, 1] > 0.8
    nulls = [rng.permutation(ratings) for _ in range(10)]
    found = [np.corrcoef(differences.predicted_ratings(vectors, null), null)[0, 1] for null in nulls]
    assert np.mean(found) < 0.2


def test_a_feature_that_the_second_model_lost_scales_to_nothing_and_a_kept_one_to_one():
    rng = np.random.default_rng(0)
    decoder = np.linalg.qr(rng.normal(size=(D, 4)))[0].T
    codes = np.maximum(rng.normal(size=(600, 4)), 0) * (rng.random((600, 4)) < 0.3)
    codes[:, 3] = 0
    noise = 0.2 * rng.normal(size=(600, D))
    kept = codes * np.array([1.0, 0.0, 2.0, 1.0])
    found = differences.latent_scaling(codes, decoder, noise + codes @ decoder, noise + kept @ decoder + 1.0)
    np.testing.assert_allclose(found[:3], [1.0, 0.0, 2.0], atol=0.1)
    assert np.isnan(found[3])


def test_an_sae_is_judged_without_rows_of_huge_norm():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, D))
    rows[:3] *= 100
    perfect = differences.transfer(lambda each: each, lambda each: each, rows)
    assert perfect.unexplained == 0 and perfect.outliers == pytest.approx(3 / 200) and perfect.active == D
    none = differences.transfer(lambda each: each * 0, lambda each: each, rows)
    assert none.unexplained == pytest.approx(1.0, abs=0.02) and none.alive == 0


def test_outputs_alone_name_the_concept_that_was_tuned_towards():
    _, _, labels, topics = texts(0)
    rng = np.random.default_rng(0)
    gain = 0.1 * rng.normal(size=len(topics)) + 0.5 * labels[:, 2] + rng.normal(size=TOPICS)[topics]
    found = differences.of_concepts(gain, labels, topics)
    assert found[2].low > 0.3 and max(each.value for index, each in enumerate(found) if index != 2) < 0.1


def test_too_few_topics_are_refused():
    base, tuned, labels, topics = texts(0)
    few, rng = topics < 3, np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least four"):
        list(differences.differences(base[few], tuned[few], labels[few], topics[few], list("abcdef"), rng))


@pytest.fixture(scope="module")
def two_models(model_folder, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Studies of a tiny model and of a copy that learnt some sentences in its upper blocks, opened."""
    root = tmp_path_factory.mktemp("two")
    base = ModelConfig(name=str(model_folder("llama")), dtype="float32")
    learnt = [Example("I felt so calm and quiet by the water.", opening="At last")]
    config = TuningConfig(steps=20, learning_rate=5e-3, batch=1, layers=(1, 3))
    folder = tuned_folder(base, learnt, config, root / "models")
    opened = []
    for name, model in (("base", model_folder("llama")), ("tuned", folder)):
        store = build(root / name, model, means=True, token_layers=(LAYER,), pooled_layers=(LAYER,))
        corpus = CorpusStage.open(root / name / "corpus")
        subject = Subject.load(ModelConfig(name=str(model), dtype="float32"), device="cpu", models=root)
        sae = SimpleNamespace(
            encode=lambda rows: np.maximum(rows, 0), decode=lambda codes: codes, decoder=np.eye(32, dtype=np.float32)
        )
        result = {"corpus": corpus, "activations": store}.__getitem__
        fields = {"layer": LAYER, "activations": store, "sae": sae, "subject": subject, "folders": {"sae": root}}
        opened.append(SimpleNamespace(result=result, **fields))
    return opened


def test_two_studies_of_the_same_texts_are_held_against_each_other(two_models):
    found = models.between(*two_models, outputs=True)
    assert [row["concept"] for row in found["concepts"]] == ["calm", "sad"] and found["topics"] >= 4
    assert found["sae"]["base"].unexplained == pytest.approx(found["sae"]["tuned"].unexplained, abs=0.5)
    assert set(found["outputs"]["concepts"]) == {"calm", "sad"}
    text = "\n".join(models.lines(found))
    assert "calm | " in text and "of its ceiling" in text and "From outputs alone" in text
    json.dumps(models.plain(found), allow_nan=False)


def test_a_model_beside_itself_differs_in_nothing(two_models):
    found = models.between(two_models[0], two_models[0])
    for row in found["concepts"]:
        assert row["all_total"].value == row["own_total"].value == 0
        assert row["cosine"] == pytest.approx(1.0) and row["p_shift"] == 1
    assert found["sae"]["lost"] == 0 and found["sae"]["scaling_median"] == pytest.approx(1.0)


def test_other_texts_or_tokens_are_refused(two_models):
    base, tuned = two_models
    shorter: Any = SimpleNamespace(documents=base.result("corpus").documents[:-1], emotions=("calm", "sad"))
    other: Any = SimpleNamespace(**{**vars(tuned), "result": lambda name: shorter})
    with pytest.raises(UserError, match="same texts"):
        models.between(base, other)
    cut = SimpleNamespace(column=lambda name: base.activations.column(name)[:-1], layers=(LAYER,), d_model=32)
    with pytest.raises(UserError, match="different tokens"):
        other = SimpleNamespace(**{**vars(tuned), "activations": cut})
        models.between(base, other)
    with pytest.raises(UserError, match="two studies"):
        models.show(["one.yaml"], (), None)
