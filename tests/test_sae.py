"""The sae stage: what it trains on, what it leaves behind, and what it says about the result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from affectlens.model.subject import ModelConfig, Subject
from affectlens.sae import metrics as health
from affectlens.sae.model import Dictionary, Sae
from affectlens.sae.recipe import SaeLimits
from affectlens.sae.training import CHECKPOINT, Trainer
from affectlens.stage import Setting
from affectlens.stages.sae import SaeConfig, SaeStage, combinations
from planted import ACTIVE, D_MODEL, PlantedRows, results

QUICK = {"width": 96, "k": ACTIVE, "train_batch_size_tokens": 128, "steps": 240, "lr": 5e-3, "health_texts": 0}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _stage(rows: PlantedRows, folder: Path, model: str = "some/model", seed: int = 0, **settings: object) -> SaeStage:
    config = SaeConfig.model_validate(QUICK | settings)
    setting = Setting(seed, ModelConfig(name=model, layer=2, dtype="float32"), "cpu", 1, folder / "models")
    return SaeStage(config, setting, results(rows))


def _run(stage: SaeStage, folder: Path) -> tuple[Sae, dict[str, float]]:
    folders = {}
    for part in stage.parts():
        folders[part.name] = folder / "parts" / part.name
        folders[part.name].mkdir(parents=True, exist_ok=True)
        units: list[float] = []
        stage.run_part(part, folders[part.name], units.append)
        assert sum(units) == part.size
    out = folder / "out"
    out.mkdir()
    metrics = stage.finish(folders, out)
    return SaeStage.open(out), metrics


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_result_is_what_later_stages_were_promised(tmp_path) -> None:
    from sae_lens import SAE

    rows = PlantedRows()
    sae, metrics = _run(_stage(rows, tmp_path), tmp_path)
    assert (sae.d_sae, sae.d_model) == (96, D_MODEL)
    codes = sae.encode(rows.values[:300])
    assert codes.shape == (300, 96)
    assert codes.dtype == np.float32
    assert sae.decoder.shape == (96, D_MODEL)
    assert sae.encoder.shape == (D_MODEL, 96)
    alone = SAE.load_from_disk(sae.folder)
    np.testing.assert_array_equal(alone.encode(torch.from_numpy(rows.values[:300])).detach().numpy(), codes)
    assert alone.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert metrics["explained_variance"] > 0.7 > metrics["random_explained_variance"] + 0.2
    assert metrics["l0"] == ACTIVE
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "health.json",
        "sae",
        "tables",
        "training.json",
    ]


def test_the_same_seed_gives_the_same_files_and_another_one_others(tmp_path) -> None:
    rows = PlantedRows()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _run(_stage(rows, tmp_path, seed=seed), tmp_path / name)
    first, second, third = (_files(tmp_path / name / "out") for name in "abc")
    assert first == second
    assert first["sae/sae_weights.safetensors"] != third["sae/sae_weights.safetensors"]


def test_a_part_that_was_interrupted_is_finished_from_its_checkpoint(tmp_path, monkeypatch) -> None:
    rows = PlantedRows()
    _run(_stage(rows, tmp_path), tmp_path / "whole")
    stage = _stage(rows, tmp_path)
    part = stage.parts()[0]
    out = tmp_path / "cut" / "parts" / part.name
    out.mkdir(parents=True)
    steps = 0

    def fail(units: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 215:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run_part(part, out, fail)
    assert (out / CHECKPOINT).is_file()
    (out / CHECKPOINT).with_name(".tmpKilled").write_bytes(b"half a file")
    taken = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, rows: (taken.append(self.at.step), step(self, rows))[1])
    _run(stage, tmp_path / "cut")
    assert taken[0] == 200
    assert _files(tmp_path / "cut" / "out") == _files(tmp_path / "whole" / "out")


def test_neither_test_topics_nor_held_out_texts_touch_the_weights(tmp_path) -> None:
    rows = PlantedRows()
    stage = _stage(rows, tmp_path)
    corpus = results(rows)["corpus"]
    used = set(rows.document[stage.training_rows(2)])
    assert used <= set(corpus.indices("train", "neutral")) - set(stage.held_out)
    assert not set(stage.held_out) & set(corpus.indices("test"))
    before, _ = _run(stage, tmp_path / "a")
    spoiled = PlantedRows()
    spoiled.values[~np.isin(rows.document, sorted(used))] += 3
    after, _ = _run(_stage(spoiled, tmp_path), tmp_path / "b")
    np.testing.assert_array_equal(before.decoder, after.decoder)


def test_one_huge_row_changes_neither_the_weights_nor_the_figures(tmp_path) -> None:
    """An attention sink, forty times longer than the other rows, in training text and in held-out text."""
    clean, _ = _run(_stage(PlantedRows(), tmp_path), tmp_path / "a")
    rows = PlantedRows()
    stage = _stage(rows, tmp_path)
    extra = [int(np.flatnonzero(rows.document == document)[0]) for document in (0, stage.held_out[0])]
    rows.values[extra] *= 40
    dirty, metrics = _run(_stage(rows, tmp_path), tmp_path / "b")
    assert metrics["explained_variance"] > 0.7
    cosine = (clean.decoder * dirty.decoder).sum(axis=1)
    assert np.median(cosine) > 0.9
    assert stage.rows_of([0], 2).tolist() == np.flatnonzero(rows.document == 0)[1:].tolist()


def test_a_random_sae_has_the_shape_the_sparsity_and_the_centre(tmp_path) -> None:
    rows = PlantedRows()
    sae, _ = _run(_stage(rows, tmp_path), tmp_path)
    random = sae.random(3)
    codes = random.encode(rows.values[:200])
    assert codes.shape == (200, sae.d_sae)
    assert (codes > 0).sum(axis=1).max() <= ACTIVE
    assert (codes > 0).sum(axis=1).mean() > ACTIVE - 0.5
    np.testing.assert_array_equal(random.decoder, sae.random(3).decoder)
    assert not np.array_equal(random.decoder, sae.random(4).decoder)
    np.testing.assert_array_equal(random.load().b_dec.numpy(), sae.load().b_dec.numpy())


def test_further_saes_see_the_same_rows_and_their_agreement_is_reported(tmp_path) -> None:
    settings: dict[str, Any] = {"also": {"widths": [48], "ks": [2], "seeds": 2}}
    stage = _stage(PlantedRows(), tmp_path, **settings)
    names = [part.name for part in stage.parts()]
    assert names[0] == "l2-w96-k3-s0"
    assert len(names) == 8
    assert len(set(names)) == 8
    sae, metrics = _run(stage, tmp_path)
    assert sae.d_sae == 96
    other = Sae(tmp_path / "out" / "others" / "l2-w48-k2-s1")
    assert other.d_sae == 48
    assert other.health["l0"] == 2
    assert metrics["seeds_matched_share"] > 0.3
    alone, _ = _run(_stage(PlantedRows(), tmp_path), tmp_path / "alone")
    np.testing.assert_array_equal(alone.decoder, sae.decoder)


def test_an_sae_of_another_layer_names_that_layer(tmp_path) -> None:
    stage = _stage(PlantedRows(), tmp_path, also={"layers": [3]})
    _run(stage, tmp_path)
    settings = tmp_path / "out" / "others" / "l3-w96-k3-s0" / "sae" / "cfg.json"
    assert json.loads(settings.read_text())["metadata"]["hook_name"] == "blocks.3.hook_resid_post"


def test_half_the_bytes_hold_nearly_the_same_sae(tmp_path) -> None:
    from sae_lens import SAE

    rows = PlantedRows()
    whole, _ = _run(_stage(rows, tmp_path), tmp_path / "a")
    half, _ = _run(_stage(rows, tmp_path, storage="bfloat16"), tmp_path / "b")
    sizes = [(sae.folder / "sae_weights.safetensors").stat().st_size for sae in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    assert half.decoder.dtype == np.float32
    np.testing.assert_allclose(half.decoder, whole.decoder, atol=2e-3)
    assert half.health["explained_variance"] == pytest.approx(whole.health["explained_variance"], abs=2e-3)
    assert SAE.load_from_disk(half.folder).dtype == torch.bfloat16


def test_a_loaded_sae_keeps_its_codes_and_is_examined(tmp_path) -> None:
    rows = PlantedRows()
    trained, _ = _run(_stage(rows, tmp_path), tmp_path / "a")
    stage = _stage(rows, tmp_path, load={"path": str(trained.folder)})
    assert [part.name for part in stage.parts()] == ["loaded"]
    loaded, metrics = _run(stage, tmp_path / "b")
    np.testing.assert_array_equal(loaded.encode(rows.values[:50]), trained.encode(rows.values[:50]))
    assert metrics["explained_variance"] == pytest.approx(trained.health["explained_variance"])


def test_splicing_costs_nothing_for_a_perfect_copy_and_everything_for_the_mean(model_folder, tmp_path) -> None:
    model = ModelConfig(name=str(model_folder("llama")), layer=2, dtype="float32")
    subject = Subject.load(model, device="cpu", models=tmp_path)
    texts = [subject.encode("the door closed and nobody said a word"), subject.encode("a second, shorter one")]
    seen = []
    found = health.cross_entropies(
        subject,
        2,
        texts,
        {
            "copy": lambda rows: seen.append(len(rows)) or rows,
            "mean": lambda rows: 0 * rows,
            "half": lambda rows: rows / 2,
        },
    )
    assert seen == [len(text) for text in texts]
    assert found["copy"] == pytest.approx(found["clean"], abs=1e-6)
    assert abs(found["mean"] - found["clean"]) > 1e-3
    logs = [subject.log_probabilities(subject.pad([text]))[0] for text in texts]
    by_hand = [
        -float(log[1 + n, text[n + 1]]) for log, text in zip(logs, texts, strict=True) for n in range(len(text) - 1)
    ]
    assert found["clean"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert health.recovered({"clean": 1, "mean": 5, "x": 2}, "x") == 0.75
    # Where the mean costs nothing, nothing can be given back: no share of it is told.
    assert health.recovered({"clean": 1, "mean": 1 + 1e-8, "x": 1.1}, "x") is None
    assert health.recovered({"clean": 1, "mean": 0.9, "x": 1.1}, "x") is None


def test_cross_entropy_enters_the_metrics(model_folder, tmp_path) -> None:
    stage = _stage(PlantedRows(), tmp_path, model=str(model_folder("llama")), health_texts=2)
    sae, metrics = _run(stage, tmp_path)
    entropies = sae.health["cross_entropy"]
    assert set(entropies) == {"clean", "spliced", "random", "mean"}
    told = entropies["mean"] - entropies["clean"] >= health.LEAST_COST
    assert all((key in metrics) == told for key in ("ce_recovered", "random_ce_recovered"))


GOOD = {
    "l0": 32.0, "explained_variance": 0.8, "dead_share": 0.02, "dense_share": 0.01, "width": 2304, "ce_recovered": 0.9,
    "random": {"explained_variance": 0.3},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "sound"),
        ({"dead_share": 0.2}, "weak"),
        ({"dead_share": 0.61}, "bad"),
        ({"explained_variance": 0.31}, "bad"),
        ({"explained_variance": 0.45}, "weak"),
        ({"dense_share": 0.2}, "weak"),
        ({"l0": 900.0}, "weak"),
        ({"ce_recovered": 0.4}, "weak"),
        ({"agreement": {"matched_share": 0.1}}, "weak"),
    ],
)
def test_a_bad_sae_is_called_so(changes, verdict) -> None:
    listed = health.faults(GOOD | changes, SaeLimits())
    assert health.verdict(listed) == verdict
    assert len(listed) == (verdict != "sound")
    lenient = SaeLimits(
        dead_share=1, explained_variance=0, margin_over_random=0, dense_share=1, active_share=1, ce_recovered=0,
        matched_share=0,
    )  # fmt: skip
    assert health.faults(GOOD | changes, lenient) == []


def test_dead_and_dense_features_are_counted(tmp_path) -> None:
    """Feature 0 never fires, feature 1 always, the rest on one row in twenty."""
    codes = np.zeros((200, 10), dtype=np.float32)
    codes[:, 1] = 1
    for feature in range(2, 10):
        codes[feature::20, feature] = 1
    rows = SimpleNamespace(read=lambda chosen: np.eye(200, dtype=np.float32)[chosen])
    fake = SimpleNamespace(
        d_sae=10, d_model=200, encode=lambda x: codes[x.argmax(axis=1)], decode=lambda z: np.zeros((len(z), 200)),
        decoder=np.eye(10, 200, dtype=np.float32), per_token=False,
    )  # fmt: skip
    found = health.measure(fake, rows, np.arange(200))  # pyright: ignore[reportArgumentType]
    assert found["dead_share"] == 0.1
    assert found["dense_share"] == 0.1
    assert found["l0"] == pytest.approx(1 + 8 * 0.05)
    assert sum(found["density_histogram"]["features"]) == 9
    assert found["nearest_cosine"]["1.0"] == 0


def test_agreement_is_one_for_a_permutation_and_low_for_strangers() -> None:
    generator = np.random.default_rng(0)
    decoder = generator.normal(size=(50, 64))
    a, b = (SimpleNamespace(decoder=rows) for rows in (decoder, 3 * decoder[generator.permutation(50)]))
    stranger = SimpleNamespace(decoder=generator.normal(size=(50, 64)))
    same = health.agreement([a, b])  # pyright: ignore[reportArgumentType]
    assert same["matched_share"] == 1
    assert same["median_cosine"] == pytest.approx(1)
    assert health.agreement([a, stranger])["matched_share"] < 0.1  # pyright: ignore[reportArgumentType]


def _check(**settings: object) -> None:
    model = ModelConfig(name="embedded", layer=15)
    activations = SimpleNamespace(token_layers=(10,))
    study: Any = SimpleNamespace(sae=SaeConfig.model_validate(settings), model=model, activations=activations)
    SaeStage.check(study)


def test_too_many_active_features_are_refused() -> None:
    _check()
    with pytest.raises(ValueError, match=r"`sae.k: 3000`: more than the 1728 features"):
        _check(k=3000)
    with pytest.raises(ValueError, match=r"`sae.k: 64`: more than the 50 features"):
        _check(k=8, also={"widths": [50], "ks": [64]})
    with pytest.raises(ValueError, match=r"`sae.also.layers: 11`: no token rows are cached there"):
        _check(also={"layers": [10, 11]})
    _check(also={"layers": [10]})
    with pytest.raises(ValueError, match=r"rising shares"):
        _check(matryoshka_levels=[0.5, 0.25])


def test_a_missing_folder_is_refused_with_its_key(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"^`sae.load.path: .*nowhere`: no such folder"):
        _check(load={"path": str(tmp_path / "nowhere")})


def test_the_grid_starts_with_the_study_s_own() -> None:
    config = SaeConfig.model_validate({"k": 8, "also": {"widths": [64, 128], "ks": [4], "seeds": 2}})
    grid = combinations(config, 2, 16)
    assert grid[0] == (2, 48, 8, 0)
    assert len(grid) == len(set(grid)) == 12


def test_codes_do_not_depend_on_how_many_rows_are_encoded_together() -> None:
    from sae_lens import SAE

    module = SAE.from_dict({"architecture": "topk", "d_in": 16, "d_sae": 64, "k": 4})
    x = np.random.default_rng(0).normal(size=(2500, 16))
    sae = Dictionary(module)
    whole = sae.encode(x)
    np.testing.assert_allclose(np.concatenate([sae.encode(x[:700]), sae.encode(x[700:])]), whole, rtol=1e-5, atol=1e-6)
