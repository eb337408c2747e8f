"""Training: reproducible, unbreakable, and able to find a dictionary that is there."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affectlens.sae.building import build, save_folded
from affectlens.sae.model import Dictionary, open_folder
from affectlens.sae.recipe import Recipe
from affectlens.sae.rows import Statistics, Stream
from affectlens.sae.training import CHECKPOINT, Trainer, schedule
from affectlens.stage import LIVE
from planted import ACTIVE, D_MODEL, FEATURES, PlantedRows

ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "standard", "gated", "jumprelu")
SHORT = {
    "width": 48,
    "k": 3,
    "train_batch_size_tokens": 32,
    "steps": 12,
    "checkpoint_steps": 4,
    "dead_feature_window": 2,
    "aux_loss_coefficient": 0.5,
}
CUT = 6


def _train(settings: dict, folder: Path, *, seed: int = 0, at_step: tuple[int, int] | None = None, half: bool = False):
    """A finished trainer; ``at_step`` (step, signal) sends this process a signal after that step."""
    recipe = Recipe.model_validate(settings)
    rows: Any = PlantedRows()
    chosen = np.arange(len(rows))
    statistics = Statistics.of(rows, chosen)
    centre = torch.from_numpy(statistics.centre * np.float32(statistics.scale))
    sae = build(recipe, d_in=D_MODEL, width=recipe.width or FEATURES, centre=centre, seed=seed, metadata={})
    trainer = Trainer(
        recipe,
        sae,
        Stream.of_values(rows.values, size=recipe.train_batch_size_tokens, seed=1),
        statistics,
        "cpu",
        half=half,
    )
    folder.mkdir(exist_ok=True)
    steps = 0

    def progress(units: float) -> None:
        nonlocal steps
        steps += 1
        if at_step is not None and steps == at_step[0]:
            os.kill(os.getpid(), at_step[1])

    trainer.run(folder, progress)
    return trainer


def _train_and_die(settings: dict, folder: Path, number: int) -> None:
    torch.set_num_threads(1)
    _train(settings, folder, at_step=(CUT, number))


@pytest.fixture(scope="module")
def processes():
    """Processes that have sae-lens imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sae_lens", "planted"])
    return context


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _same(one: Trainer, other: Trainer) -> bool:
    ours, theirs = one.sae.state_dict(), other.sae.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and one.at.curve == other.at.curve


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    built: dict[str, Trainer] = {}

    def get(architecture: str) -> Trainer:
        if architecture not in built:
            folder = tmp_path_factory.mktemp(architecture)
            built[architecture] = _train(SHORT | {"architecture": architecture}, folder)
        return built[architecture]

    return get


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "terminate"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    architecture, number, undisturbed, processes, tmp_path
) -> None:
    from safetensors import safe_open

    settings = SHORT | {"architecture": architecture}
    victim = processes.Process(target=_train_and_die, args=(settings, tmp_path, number))
    victim.start()
    victim.join(120)
    assert victim.exitcode == -number
    with safe_open(tmp_path / CHECKPOINT, "pt") as file:
        assert f'"step": {CUT if number == signal.SIGTERM else 4}' in file.metadata()["position"]
    assert _same(_train(settings, tmp_path), undisturbed(architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_seed_decides_the_weights(architecture, undisturbed, tmp_path) -> None:
    settings = SHORT | {"architecture": architecture}
    assert _same(_train(settings, tmp_path / "a"), undisturbed(architecture))
    assert not _same(_train(settings, tmp_path / "b", seed=1), undisturbed(architecture))


def test_the_checkpoint_is_replaced_whole(undisturbed, tmp_path, monkeypatch) -> None:
    """A run that dies while it writes a checkpoint leaves the one before."""
    trainer = undisturbed("topk")
    trainer.save(tmp_path / CHECKPOINT)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    trainer.at.step += 1
    with pytest.raises(OSError, match="No space"):
        trainer.save(tmp_path / CHECKPOINT)
    trainer.at.step -= 1
    assert (tmp_path / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_planted_dictionary_is_found(architecture, tmp_path) -> None:
    settings = {
        "architecture": architecture,
        "width": 2 * FEATURES,
        "k": ACTIVE,
        "train_batch_size_tokens": 256,
        "lr": 4e-3,
    }
    trainer = _train(settings | {"steps": 400}, tmp_path)
    found = trainer.sae.W_dec.detach().numpy()
    best = (found @ PlantedRows().dictionary.T).max(axis=0)
    assert (best > 0.9).mean() > 0.75
    assert trainer.at.curve[-1]["explained_variance"] > 0.8
    assert trainer.at.curve[-1]["l0"] < 15
    live = [json.loads(line) for line in (tmp_path / LIVE).read_text(encoding="utf-8").splitlines()]
    assert live == [{"step": row["tokens"]} | row for row in trainer.at.curve]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_codes_are_the_training_codes_in_residual_units(architecture, undisturbed, tmp_path) -> None:
    """Exactly for topk, standard, gated, jumprelu; BatchTopK and Matryoshka keep the same sparsity within 15%."""
    trainer = _train(SHORT | {"architecture": architecture, "steps": 60}, tmp_path)
    x = PlantedRows().values[:512]
    with torch.no_grad():
        scaled, _ = trainer.sae.encode_with_hidden_pre(torch.from_numpy(x) * trainer.scale)
    save_folded(trainer.sae, trainer.scale, tmp_path / "sae")
    folded = Dictionary(open_folder(tmp_path / "sae"))
    codes, expected = folded.encode(x), scaled.numpy() / trainer.scale
    np.testing.assert_allclose(np.linalg.norm(folded.decoder, axis=1), 1, rtol=1e-5)
    if architecture in ("batchtopk", "matryoshka"):
        assert abs((codes > 0).sum() / (expected > 0).sum() - 1) < 0.15
        both = (codes > 0) & (expected > 0)
        assert both.sum() > 0.85 * (expected > 0).sum()
        np.testing.assert_allclose(codes[both], expected[both], rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_allclose(codes, expected, rtol=1e-3, atol=1e-3)


def test_fast_and_plain_paths_train_to_the_same_weights(tmp_path) -> None:
    for architecture in ARCHITECTURES:
        settings = SHORT | {"architecture": architecture}
        fast = _train(settings, tmp_path / f"fast-{architecture}")
        plain = _train(settings | {"fast": False}, tmp_path / f"plain-{architecture}")
        for name, ours in fast.sae.named_parameters():
            theirs = dict(plain.sae.named_parameters())[name]
            assert float((ours - theirs).detach().norm() / theirs.detach().norm()) < 1e-2


def test_the_stream_shows_every_row_once_an_epoch_from_any_step() -> None:
    values = PlantedRows(documents=3, tokens=7).values

    def taken(step: int, count: int) -> np.ndarray:
        with Stream.of_values(values, size=6, seed=3).batches(step) as batches:
            return np.concatenate([batch.numpy() for batch in islice(batches, count)])

    whole = taken(0, 14)
    np.testing.assert_array_equal(taken(2, 5), whole[12:42])
    for epoch in (whole[:21], whole[21:42]):
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, values))
    assert not np.array_equal(whole[:21], whole[21:42])


def test_the_scale_does_not_depend_on_where_the_centre_lies() -> None:
    rows: Any = PlantedRows()
    near = Statistics.of(rows, np.arange(len(rows)))
    rows.values += 100
    far = Statistics.of(rows, np.arange(len(rows)))
    assert abs(far.scale / near.scale - 1) < 1e-4
    distances = np.linalg.norm(rows.values - far.centre, axis=1)
    assert abs(float(distances.mean()) * far.scale - D_MODEL**0.5) < 1e-2


def test_the_learning_rate_rises_stays_and_falls_to_nearly_nothing() -> None:
    recipe = Recipe(steps=100, lr_warm_up_steps=10, lr_decay_steps=20)
    rates = [schedule(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1
    assert rates[79] == 1
    assert rates[-1] == pytest.approx(0.05)
    assert min(rates) > 0


def test_rows_that_all_are_alike_do_not_break_training(tmp_path) -> None:
    rows: Any = PlantedRows()
    rows.values[:] = 1
    statistics = Statistics.of(rows, np.arange(100))
    assert np.isfinite(statistics.scale)


def test_outliers_are_found_alike_in_the_cache_and_in_memory():
    """Two rows are planted that lie a thousand times farther out; more rows than are looked at for the centre."""
    import types

    from affectlens.sae.rows import STATISTICS_ROWS, typical, typical_values

    values = np.random.default_rng(0).normal(size=(2 * STATISTICS_ROWS + 5, 4)).astype(np.float32)
    values[[7, len(values) - 1]] *= 1000
    rows = types.SimpleNamespace(read=lambda chosen: values[chosen])
    kept = typical(rows, np.arange(len(values)))  # pyright: ignore[reportArgumentType]
    assert {7, len(values) - 1}.isdisjoint(kept.tolist()) and len(kept) > 0.9 * len(values)
    assert np.array_equal(typical_values(values), values[kept])
