"""Directions: the recipe step by step, its rivals, the choice of a layer, steadiness, and other tools' formats."""

from __future__ import annotations

import numpy as np
import pytest
from affectlens.corpus.documents import Fold
from affectlens.errors import UserError
from affectlens.probing import detection, export, layers
from affectlens.probing import methods as readouts
from affectlens.probing.config import DirectionsConfig
from affectlens.stages.directions import DirectionsStage
from affectlens.stats import auroc, permuted_within
from pydantic import ValidationError
from test_planted import FAST, LAYER, Plant, run


def stories(seed: int = 0, concepts: int = 3, topics: int = 4, each: int = 5, width: int = 12, signal: float = 2.0):
    """Activations [docs, width] with a mean of their own per concept and a shift per topic, labels, topics."""
    generator = np.random.default_rng(seed)
    concept = np.tile(np.repeat(np.arange(concepts), each), topics)
    topic = np.repeat(np.arange(topics), concepts * each)
    means = signal * generator.normal(size=(concepts, width))
    values = means[concept] + generator.normal(size=(topics, width))[topic] + generator.normal(size=(len(topic), width))
    return values + 5, concept[:, None] == np.arange(concepts), topic


def test_the_recipe_is_difference_of_means_without_neutral_components():
    values, labels, _ = stories()
    generator = np.random.default_rng(1)
    neutral = readouts.neutral_components(generator.normal(size=(30, 12)) * np.arange(1, 13), 0.5)
    plain = readouts.difference_of_means(values, labels)
    assert np.allclose(
        plain.weights[1], values[labels[:, 1]].mean(0) - np.mean([values[m].mean(0) for m in labels.T], 0)
    )
    assert np.allclose(plain.weights.sum(axis=0), 0)
    cleaned = readouts.difference_of_means(values, labels, neutral)
    assert np.abs(cleaned.weights @ neutral.T).max() < 1e-9
    assert np.allclose(readouts.without(plain.weights, neutral), cleaned.weights)
    whole = readouts.difference_of_means(values, labels, subtract_mean=False)
    assert np.allclose(whole.weights - whole.weights.mean(axis=0), plain.weights)


def test_neutral_components_hold_the_share_asked_for_and_none_is_none():
    rows = np.random.default_rng(0).normal(size=(40, 6)) * np.array([10, 5, 1, 1, 1, 1])
    kept = readouts.neutral_components(rows, 0.5)
    centred = rows - rows.mean(axis=0)
    shares = np.linalg.svd(centred, compute_uv=False) ** 2 / (centred**2).sum()
    assert shares[: len(kept)].sum() >= 0.5 > shares[: len(kept) - 1].sum()
    assert len(readouts.neutral_components(rows, 0)) == 0


@pytest.mark.parametrize("fit", [readouts.difference_of_means, readouts.discriminant, readouts.logistic])
def test_readouts_do_not_depend_on_where_the_origin_is(fit):
    values, labels, _ = stories()
    shift = 100 * np.random.default_rng(2).normal(size=12)
    moved = fit(values + shift, labels).scores(values + shift)
    assert np.allclose(moved, fit(values, labels).scores(values), atol=1e-3 * np.abs(moved).max())


def test_the_discriminant_is_the_inverse_shrunk_covariance_times_the_difference():
    from sklearn.covariance import ledoit_wolf

    values, labels, _ = stories(concepts=2)
    means = np.stack([values[mine].mean(axis=0) for mine in labels.T])
    covariance, _ = ledoit_wolf(values - means[labels.argmax(axis=1)], assume_centered=True)
    expected = np.linalg.solve(covariance, means[1] - means[0])
    found = readouts.discriminant(values, labels).weights
    assert np.allclose(found[1] - found[0], expected, rtol=1e-6)


def test_the_discriminant_sees_through_correlated_noise_that_hides_a_concept_from_the_means():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 100)[:, None] == np.arange(2)
    values = generator.normal(size=(200, 4)) @ np.diag([10, 1, 1, 1])
    values[:, 1] = values[:, 0] + generator.normal(size=200) * 0.2 + labels[:, 1]
    fitted = {fit: fit(values[::2], labels[::2]) for fit in (readouts.difference_of_means, readouts.discriminant)}
    areas = [auroc(linear.scores(values[1::2]), labels[1::2])[1, 1] for linear in fitted.values()]
    assert areas[1] > 0.95 > 0.85 > areas[0]


def test_logistic_scores_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, labels, _ = stories()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3))
    theirs = model.fit(values, labels.argmax(axis=1)).decision_function(values)
    ours = readouts.logistic(values, labels).scores(values)
    assert np.allclose(ours - ours.mean(axis=0), theirs - theirs.mean(axis=0), atol=1e-8)


def in_folds(values: np.ndarray, labels: np.ndarray, topics: np.ndarray) -> layers.Stories:
    """Every topic the test once."""
    names = np.unique(topics)
    sides = [(np.flatnonzero(topics != name), np.flatnonzero(topics == name)) for name in names]
    folds = [Fold(tuple(train.tolist()), tuple(test.tolist())) for train, test in sides]
    return layers.Stories(values.astype(np.float32), labels.argmax(axis=1), topics, folds, labels.shape[1])


def rebuilt(told: layers.Stories, labels: np.ndarray) -> float:
    """Mean AUROC within left-out topics, step by step."""
    scores = np.empty(labels.shape)
    for fold in told.folds:
        train, test = list(fold.train), list(fold.test)
        scores[test] = readouts.difference_of_means(told.values[train], labels[train]).scores(told.values[test])
    return float(detection.within_topics(scores, labels, told.topics).mean())


def test_the_null_of_a_layer_builds_directions_anew_from_permuted_labels():
    values, labels, topics = stories(signal=1.0)
    told = in_folds(values, labels, topics)
    null = layers.rebuilt_null(told, permutations=20, rng=np.random.default_rng(0))
    orders = permuted_within(topics, 20, np.random.default_rng(0))
    assert null == pytest.approx([rebuilt(told, labels[order]) for order in orders], abs=1e-5)


def test_the_best_layer_has_to_beat_the_best_of_all_layers_under_chance():
    values, labels, topics = stories(signal=0.6)
    noise = [np.random.default_rng(layer).normal(size=values.shape) for layer in range(1, 6)]
    told = {layer: in_folds(each, labels, topics) for layer, each in enumerate([values, *noise])}
    observed = {layer: rebuilt(each, labels) for layer, each in told.items()}
    options = {"permutations": 199}
    null = {layer: layers.rebuilt_null(each, **options, rng=np.random.default_rng(0)) for layer, each in told.items()}
    found = layers.layer_test(observed, null)
    assert found.p[0] == found.floor == 1 / 200
    assert min(found.p[layer] for layer in range(1, 6)) > 0.05
    alone = layers.layer_test({1: observed[1]}, {1: null[1]})
    assert alone.p[1] <= found.p[1], "looking at more layers makes the same figure less surprising"


def test_a_fold_chooses_by_its_own_training_topics_only():
    values, labels, topics = stories(signal=1.0)
    before = layers.inner_areas(in_folds(values, labels, topics))
    changed = values.copy()
    changed[topics == 2] = np.random.default_rng(9).normal(size=changed[topics == 2].shape)
    after = layers.inner_areas(in_folds(changed, labels, topics))
    assert after[2] == before[2], "what the fold tests has no part in its choice"
    assert (np.delete(after, 2) < np.delete(before, 2)).all()


def test_mean_area_is_that_of_the_cells():
    values, labels, topics = stories(signal=0.5)
    scores = np.round(readouts.difference_of_means(values, labels).scores(values), 0)  # with ties
    expected = detection.within_topics(scores, labels, topics).mean()
    assert detection.mean_area(scores, labels.argmax(axis=1), topics) == pytest.approx(expected)


def test_a_probe_is_registered_once_and_named_in_the_study(monkeypatch):
    monkeypatch.setattr(readouts, "PROBES", dict(readouts.PROBES))

    @readouts.probe("first coordinate")
    def first(pooled, labels, options):
        return readouts.Linear(np.eye(labels.shape[1], pooled.shape[1]), pooled.mean(axis=0))

    assert DirectionsConfig(baselines=("first coordinate",)).baselines == ("first coordinate",)
    with pytest.raises(ValueError, match="two probes called"):
        readouts.probe("first coordinate")(first)
    with pytest.raises(ValidationError, match="did you mean `logistic`"):
        DirectionsConfig(baselines=("logistics",))
    with pytest.raises(ValidationError, match="there is no probe"):
        DirectionsConfig(baselines=(readouts.RECIPE,))


def test_logistic_of_more_columns_than_rows_is_that_of_the_rotated_columns():
    values, labels, _ = stories(topics=2, each=4, width=60)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, tol=1e-8))
    theirs = model.fit(values, labels.argmax(axis=1)).decision_function(values)
    ours = readouts.logistic(values, labels).scores(values)
    assert np.allclose(ours - ours.mean(axis=0), theirs - theirs.mean(axis=0), atol=0.05)


def test_standardised_means_ignore_the_scale_of_columns_and_silent_ones():
    values, labels, _ = stories()
    values[:, 3] = 0.0
    scaled = values * np.geomspace(1e-3, 1e3, 12)
    plain, moved = (readouts.standardised(each, labels).scores(each) for each in (values, scaled))
    assert np.allclose(plain, moved, atol=1e-6)


def test_directions_shared_by_topics_are_steady_and_those_of_one_topic_are_not():
    values, labels, topics = stories(signal=3.0, width=40)
    none = np.empty((0, 40))
    values[(topics == 0) & labels[:, 0]] += 20 * np.random.default_rng(3).normal(size=40)
    options = {"draws": 50, "rng": np.random.default_rng(0)}
    found = layers.stability(values, labels, topics, none, **options)
    assert found.halves[0] < 0.3 < found.halves[1:].min()
    assert (found.bootstrap > found.halves).all(), "halves share no story"
    assert np.isnan(layers.stability(values, labels, np.zeros(len(topics)), none, **options).halves).all()


NORMS = {0: 1.0, 3: 170.0}


@pytest.fixture
def vectors() -> dict[int, np.ndarray]:
    return {layer: np.random.default_rng(layer).normal(size=(2, 8)).astype(np.float32) for layer in (0, 3)}


def test_directions_survive_a_round_trip_through_both_formats(tmp_path, vectors):
    concepts = ("at ease", "sad")
    export.write_npz(tmp_path / "all.npz", concepts, vectors)
    files = export.write_gguf(tmp_path / "gguf", concepts, vectors, NORMS, "llama")
    assert [path.name for path in files] == ["at_ease.gguf", "sad.gguf"]
    for source in (tmp_path / "all.npz", tmp_path / "gguf"):
        assert np.array_equal(export.read(source, ("sad", "at ease"), 3, 8), vectors[3][::-1])


def test_control_vectors_are_what_their_readers_expect(tmp_path, vectors):
    from gguf import GGUFReader

    [path, _] = export.write_gguf(tmp_path, ("calm", "sad"), vectors, NORMS, "llama")
    reader = GGUFReader(path)
    text = {key: bytes(reader.fields[key].parts[-1]).decode() for key in ("general.architecture",)}
    assert text["general.architecture"] == "controlvector"
    assert [tensor.name for tensor in reader.tensors] == ["direction.3"], "their readers have no place for layer 0"
    assert np.array_equal(reader.tensors[0].data, vectors[3][0])
    norms = {
        key: float(reader.fields[f"affectlens.direction.3.{key}"].parts[-1][0]) for key in ("norm", "residual_norm")
    }
    assert norms["norm"] == pytest.approx(np.linalg.norm(vectors[3][0]))
    assert norms["residual_norm"] == NORMS[3]


@pytest.mark.parametrize(
    ("concepts", "layer", "width", "said"),
    [
        (("calm", "proud"), 3, 8, "'proud'|proud.gguf"),
        (("calm",), 7, 8, "layer_7|direction.7"),
        (("calm",), 3, 9, "8 numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, vectors, concepts, layer, width, said):
    export.write_npz(tmp_path / "all.npz", ("calm", "sad"), vectors)
    export.write_gguf(tmp_path / "gguf", ("calm", "sad"), vectors, NORMS, "llama")
    for source in (tmp_path / "all.npz", tmp_path / "gguf"):
        with pytest.raises(UserError, match=said):
            export.read(source, concepts, layer, width)


def test_the_stage_reports_all_methods_and_takes_its_own_export_back(tmp_path, model_folder, monkeypatch):
    model, results = model_folder("llama"), Plant(signal=3.0).build(tmp_path, model_folder("llama"))
    run(DirectionsStage, results, model, tmp_path / "one")
    first = results["directions"]
    assert first.methods == ("difference of means", "LDA (shrunk)", "logistic")
    assert first.sweep[0]["methods"]["LDA (shrunk)"]["auroc_test"] > 0.9
    assert {"stability", "halves", "neutral_energy", "words"} <= set(first.table[0])
    centred = first.readout(LAYER, first.centre(LAYER)[None])
    assert np.abs(centred).max() < 1e-5, "the centre of the training stories reads as nothing"
    for source in ("directions.npz", "gguf"):
        changed = {**FAST["directions"], "imported": first.folder / source, "export": ()}
        monkeypatch.setitem(FAST, "directions", changed)
        run(DirectionsStage, results, model, tmp_path / source)
        assert np.array_equal(results["directions"].vectors(LAYER), first.vectors(LAYER))
    assert DirectionsConfig(baselines=()).baselines == ()
