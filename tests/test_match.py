"""Matching: features on disk, the choice and its alternatives, probes, and the readings of single tokens."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import h5py
import numpy as np
import pytest
from affectlens import results
from affectlens.probing import decomposition as pursuit
from affectlens.probing import detection, matching
from affectlens.probing import text_features as codes
from affectlens.probing.config import MatchConfig
from affectlens.stages.match import MatchStage
from affectlens.stats import auroc
from pydantic import ValidationError
from test_planted import CONCEPTS, FAST, FIRST, SPLIT, Plant, run


@pytest.fixture
def matched(tmp_path, model_folder, monkeypatch):
    """``matched(pooling="max", ...)`` -> plant, opened match and metrics."""

    def get(**config):
        monkeypatch.setitem(FAST, "match", {**FAST["match"], **config})
        plant = Plant(signal=3.0)
        results = plant.build(tmp_path, model_folder("llama"))
        metrics = run(MatchStage, results, model_folder("llama"), tmp_path / "match")
        return plant, results["match"], metrics

    return get


def token_codes(seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [np.maximum(generator.normal(size=(length, 9)), 0).astype(np.float32) for length in (4, 1, 7, 3, 5)]


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_codes_read_back_the_same_however_they_were_cut_into_parts(tmp_path, cut):
    tokens, folders = token_codes(), []
    for start in range(0, 5, cut):
        folders.append(tmp_path / str(start))
        folders[-1].mkdir()
        mine = tokens[start : start + cut]
        pooled = {"sae": [rows.mean(axis=0) for rows in mine]}
        codes.write_part(folders[-1] / codes.FILE, range(start, start + len(mine)), pooled, mine)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        codes.join(folders, file, 5)
    expected = np.stack([rows.mean(axis=0) for rows in tokens])
    columns = codes.Columns(tmp_path / "all.h5", "codes/sae", [4, 0, 2])
    assert columns.shape == (3, 9)
    assert np.array_equal(columns[:, 2:5], expected[[4, 0, 2], 2:5])
    assert np.array_equal(columns[:, np.array([8, 1])], expected[[4, 0, 2]][:, [8, 1]])
    with h5py.File(tmp_path / "all.h5", "a") as file:
        codes.keep_tokens(folders, file, np.array([2, 5, 7]))
    kept = codes.TokenFeatures(tmp_path / "all.h5")
    values, owners = kept.of([3, 1], np.array([7, 2]))
    assert np.array_equal(values.toarray(), np.concatenate([tokens[3], tokens[1]])[:, [7, 2]])
    assert owners.tolist() == [3, 3, 3, 1]
    matrix, owner = codes.token_matrix(folders, {1, 4})
    assert np.array_equal(matrix.toarray(), np.concatenate([tokens[1], tokens[4]]))
    assert owner.tolist() == [1, 4, 4, 4, 4, 4]


def test_one_to_one_assignment_is_the_best_there_is():
    areas = np.random.default_rng(0).uniform(size=(5, 3))
    areas[2] = 0.99  # the best match of every concept
    best = max(sum(areas[row, column] for column, row in enumerate(order)) for order in permutations(range(5), 3))
    found = matching.assign(areas)
    assert len(set(found.tolist())) == 3
    assert sum(matching.own(areas, found)) == pytest.approx(best)
    assert matching.assign(areas[:2]).tolist().count(-1) == 1


def test_a_topic_that_holds_one_concept_only_gives_it_away():
    concept = np.tile(np.arange(3), 8)
    labels, topics = concept[:, None] == np.arange(3), np.repeat(np.arange(8), 3)
    assert np.array_equal(matching.topic_alone(labels, topics), np.full(3, 0.5))
    assert matching.topic_alone(labels, concept)[0] == 1.0


def test_own_areas_are_the_diagonal_of_everything_against_everything():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 4, size=(30, 5)).astype(float), generator.random((30, 5)) < 0.3
    labels[:, 2] = False
    found = detection.own_areas(scores, labels)
    assert np.isnan(found[2])
    assert np.allclose(np.delete(found, 2), np.delete(np.diag(auroc(scores, labels)), 2), atol=1e-12)


def test_pursuit_takes_and_explains_what_scikit_learn_does():
    from sklearn.linear_model import OrthogonalMatchingPursuit

    generator = np.random.default_rng(0)
    atoms = generator.normal(size=(20, 50))
    atoms /= np.linalg.norm(atoms, axis=0)
    targets = atoms[:, :6] @ generator.normal(size=(6, 4)) + 0.01 * generator.normal(size=(20, 4))
    found = pursuit.pursue(targets, atoms, 5)
    for index, target in enumerate(targets.T):
        model = OrthogonalMatchingPursuit(n_nonzero_coefs=5, fit_intercept=False).fit(atoms, target)
        assert set(found.chosen[index]) == set(np.flatnonzero(model.coef_))
        left = ((target - model.predict(atoms)) ** 2).sum() / (target**2).sum()
        assert found.explained[index, -1] == pytest.approx(1 - left, abs=1e-9)
    assert (np.diff(found.explained, axis=1) >= -1e-12).all()


def test_pursuit_stops_when_nothing_is_left():
    found = pursuit.pursue(np.array([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), np.eye(3), 3)
    assert found.chosen.tolist() == [[0, -1, -1], [-1, -1, -1]]
    assert found.explained[0].tolist() == [1, 1, 1]
    assert np.isnan(found.explained[1]).all()


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_features_are_pooled_over_the_tokens_that_are_read(matched, pooling):
    plant, match, metrics = matched(pooling=pooling)
    expected = np.stack([codes.POOLINGS[pooling](plant.sae.encode(rows[FIRST:])) for rows in plant.rows])
    assert np.allclose(match.codes, expected, atol=1e-5)
    assert match.pooling == pooling
    means = np.stack([plant.sae.encode(rows[FIRST:]).mean(axis=0) for rows in plant.rows[:3]])
    assert np.allclose(match.mean_codes([0, 1, 2]), means, atol=1e-5)
    other = "mean" if pooling == "max" else "max"
    assert {f"feature_{other}", f"auroc_test_{other}"} <= set(match.table[0])
    assert set(results.read(match.folder, "concepts")["other_pooling"]) == {other}
    assert 0.5 < metrics[f"{other}_pooled_auroc"] <= 1


def test_single_tokens_are_scored_and_shown(matched):
    plant, match, metrics = matched(tokens="all", contexts=2)
    row = match.table[CONCEPTS.index("calm")]
    [feature] = SPLIT["calm"]
    assert row["feature"] == feature
    context = row["contexts"][0]
    activity = plant.sae.encode(plant.rows[context["document"]])[:, feature]
    assert context["value"] == pytest.approx(activity[FIRST:].max(), rel=1e-5)
    assert max(context["values"]) == pytest.approx(context["value"], abs=1e-3)
    assert context["tokens"][int(np.argmax(context["values"]))] == context["token"]
    assert context["emotion"] == "calm"
    assert plant.documents[context["document"]].split == "train"
    every = match._array("auroc/test_tokens")
    assert every.shape == (32, 4)
    assert every[:, CONCEPTS.index("calm")].argmax() == feature
    assert 0.5 < row["auroc_tokens"] < row["auroc_test"], "one token says less than a text"
    assert metrics["token_auroc"] > 0.5


def test_every_figure_is_kept_and_agrees_with_the_table(matched):
    plant, match, _ = matched()
    assert [row["auroc_selection"] for row in match.table] == pytest.approx(matching.own(match.auroc(), match.best))
    assert match.figure("smd").shape == match.figure("ap").shape == (32, 4)
    assert match.probe_scores.shape == (len(match.probe_sizes), len(plant.documents), 4)
    assert [len(row["probes"]) for row in match.table] == [4] * 4
    chosen = [row["assigned_feature"] for row in match.table]
    assert len(set(chosen)) == 4


def test_every_story_is_read_by_the_features_of_the_other_topics(matched):
    plant, match, metrics = matched()
    topics = np.array([document.topic for document in plant.documents])
    scores, codes_ = match.held_out("sae"), match.codes
    for fold, name in enumerate(sorted(set(topics) - {""})):
        rows = topics == name
        assert np.allclose(scores[rows], codes_[rows][:, match.chosen(fold)], atol=1e-6)
    assert np.isnan(scores[topics == ""]).all()
    cells = detection.within_topics(
        scores[topics != ""],
        np.array([[document.emotion == c for c in CONCEPTS] for document in plant.documents])[topics != ""],
        topics[topics != ""],
    )
    assert metrics["best_feature_auroc"] == pytest.approx(cells.mean(), abs=1e-6)
    table = results.read(match.folder, "concepts")
    mean: Any = table["auroc_test"].mean()
    assert mean == pytest.approx(metrics["best_feature_auroc"])


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 1), (1, 1)])
def test_probe_sizes_have_to_ascend(sizes):
    with pytest.raises(ValidationError, match="ascending"):
        MatchConfig(probe_sizes=sizes)
