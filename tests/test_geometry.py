"""Geometry: components, ratings, clusters and similarities, beside what words and story length give."""

from __future__ import annotations

import json

import numpy as np
import pytest
from affectlens import stats
from affectlens.errors import ConfigError
from affectlens.probing import similarity
from affectlens.probing.geometry import CLUSTERS, principal_components
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.geometry import GeometryStage
from affectlens.study import Study
from test_planted import CONCEPTS, FAST, Plant, run


def options() -> dict:
    """The same draws for whoever asks."""
    return {"permutations": 199, "rng": np.random.default_rng(0)}


@pytest.fixture
def geometry(tmp_path, model_folder, monkeypatch):
    """``geometry(**config)`` -> data and metrics of the stage on planted activations."""

    def get(**config):
        monkeypatch.setitem(FAST, "geometry", {"permutations": 99, "shuffles": 19, "components": 2, **config})
        results = Plant(signal=3.0).build(tmp_path, model_folder("llama"))
        for stage in (DirectionsStage, GeometryStage):
            metrics = run(stage, results, model_folder("llama"), tmp_path)
        return results["geometry"].data, metrics

    return get


def test_components_keep_distances_and_shares_are_of_the_variance():
    vectors = np.random.default_rng(0).normal(size=(6, 9)) + 50
    coordinates, shares = principal_components(vectors, 10)
    assert coordinates.shape == (6, 5)
    assert shares.sum() == pytest.approx(1)
    assert list(shares) == sorted(shares, reverse=True)
    apart = np.linalg.norm(vectors[0] - vectors[1])
    assert np.linalg.norm(coordinates[0] - coordinates[1]) == pytest.approx(apart)


def test_similarities_agree_with_themselves_and_not_with_shuffled_ones():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    a, b = (similarity.cosines(generator.normal(size=(12, 6))) for _ in range(2))
    same, other = similarity.compare(a, a, **options()), similarity.compare(a, b, **options())
    upper = np.triu_indices(12, 1)
    assert same.value == pytest.approx(1)
    assert same.p == same.floor == 1 / 200
    assert other.value == pytest.approx(spearmanr(a[upper], b[upper])[0])
    assert other.p > 0.05


def test_similarity_does_not_depend_on_length_or_rotation_of_vectors():
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(8, 5))
    turned = np.linalg.qr(generator.normal(size=(5, 5)))[0]
    assert np.allclose(similarity.cosines(vectors), similarity.cosines(3 * vectors @ turned))


def test_planted_clusters_are_found_and_chance_ones_are_not():
    from sklearn.metrics import adjusted_rand_score

    generator = np.random.default_rng(0)
    names = [name for name in ("joy", "fear", "rage") for _ in range(8)]
    centres = 5 * generator.normal(size=(3, 20))
    vectors = np.repeat(centres, 8, axis=0) + generator.normal(size=(24, 20))
    found = similarity.groups(vectors, 3, seed=2**62)
    good = similarity.grouping(found.tolist(), names, **options())
    assert good.value == 1
    assert good.p == good.floor
    noise = similarity.groups(generator.normal(size=(24, 20)), 3, seed=1)
    bad = similarity.grouping(noise.tolist(), names, **options())
    assert bad.value == adjusted_rand_score(names, noise)
    assert bad.p > 0.05


def test_the_published_clusters_cover_the_studied_words():
    clusters = json.loads(CLUSTERS.read_text(encoding="utf-8"))
    found = similarity.membership(clusters, ("happy", "sad", "no such word"))
    assert set(found) == {"happy", "sad"}
    assert found["happy"] != found["sad"]
    assert len(clusters) == 10


def test_what_a_nuisance_explains_is_taken_away():
    generator = np.random.default_rng(0)
    length, noise = generator.normal(size=(2, 200))
    left = stats.residuals(5 * length + noise, length)
    assert abs(np.corrcoef(left, length)[0, 1]) < 1e-9
    assert np.corrcoef(left, noise)[0, 1] > 0.99
    assert np.allclose(stats.residuals(noise, np.ones(200)), noise - noise.mean())


def test_the_stage_gives_ratings_clusters_layers_and_the_same_for_words(geometry):
    data, metrics = geometry()
    assert data["rated_words"] == 4 == metrics["rated_words"]
    assert set(data["order"]) == set(CONCEPTS)
    assert {row["rating"] for row in data["correlations"]} >= {"valence", "arousal"}
    assert {"r_beyond_length", "low_beyond_length"} <= set(data["correlations"][0])
    assert {"variance", "correlations", "clusters", "similarity"} == set(data["vocabulary"])
    assert data["layers"] == [], "a study of one layer has none to compare"
    assert len(data["length_correlation"]) == 2


def test_ratings_of_ones_own_count_the_words_they_share(geometry, tmp_path):
    path = tmp_path / "norms.csv"
    path.write_text("word,valence,arousal\nCalm,8,2\nsad,2,3\nafraid,2,8\nproud,8,6\nunheard,1,1\n", encoding="utf-8")
    data, _ = geometry(ratings=str(path))
    assert data["rated_words"] == 4
    assert data["ratings"]["calm"] == {"valence": 8.0, "arousal": 2.0}
    assert {row["rating"] for row in data["correlations"]} == {"valence", "arousal"}


def test_missing_ratings_are_named_before_anything_runs(study_values, write_study):
    for stage in ("geometry", "compare"):
        path = write_study({**study_values, stage: {"ratings": "/nowhere/norms.csv"}})
        with pytest.raises(ConfigError, match=rf"`{stage}\.ratings: /nowhere/norms\.csv`: no such file"):
            Study.load(path)
