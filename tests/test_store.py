"""The activation store: readable by h5py alone, exact shuffled epochs, and one-line views for other libraries."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from affectlens.activations import ActivationStore, to_float32
from affectlens.activations.batches import shuffled
from affectlens.activations.source import RowSource
from affectlens.activations.views import TorchRows, to_datasets
from affectlens.activations.writing import ShardWriter
from affectlens.errors import DamagedResult, UserError
from cached import LAYER, build, write_texts


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_folder) -> ActivationStore:
    """Five shards, bfloat16."""
    folder = tmp_path_factory.mktemp("store")
    neutral = write_texts(folder / "neutral.jsonl", [{"text": "The lock has two gates. " * 12}])
    return build(folder, model_folder("llama"), neutral=neutral, storage="bfloat16", texts_per_part=5)


@pytest.fixture(scope="module")
def everything(store) -> np.ndarray:
    return store.tokens(LAYER).read(np.arange(store.index["rows"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_h5py_alone_reads_what_the_store_reads(tmp_path, model_folder, dtype):
    neutral = write_texts(tmp_path / "neutral.jsonl", [{"text": "The lock has two gates. " * 12}])
    store = build(tmp_path, model_folder("llama"), neutral=neutral, storage=dtype, texts_per_part=7)
    rows = store.tokens(LAYER)
    with h5py.File(tmp_path / "activations" / "activations.h5", "r") as opened:
        file: Any = opened
        assert (file.attrs["format"], file.attrs["format_version"]) == ("affectlens-activations", 3)
        data = file[f"layers/{LAYER}/resid_post/rows"]
        assert data.attrs["dtype"] == dtype
        whole = data[...]
        assert len(whole) == len(rows) == len(file["rows/token"])
        for name in ("document", "position", "token"):
            np.testing.assert_array_equal(file[f"rows/{name}"][...], getattr(rows, name))
        means = file[f"layers/{LAYER}/resid_post/mean"][...]
        np.testing.assert_array_equal(means[np.argsort(file["documents/index"][...])], store.pooled(LAYER))
        assert file["documents/emotion"].asstr()[0] in ("calm", "sad")
    if dtype == "bfloat16":
        whole = (whole.astype(np.uint32) << 16).view(np.float32)
    order = np.random.default_rng(0).permutation(len(rows))[:200]
    np.testing.assert_array_equal(rows.read(order), whole.astype(np.float32)[order])


def test_shards_are_contiguous_and_can_be_mapped_where_the_index_says(store):
    for shard in store.index["shards"]:
        path = store.folder / shard["file"]
        with h5py.File(path, "r") as opened:
            file: Any = opened
            for name, offset in shard["offsets"].items():
                assert file[name].chunks is None
                assert file[name].id.get_offset() == offset
                assert offset % 4096 == 0
                mapped = np.memmap(path, mode="r", dtype=np.uint16, offset=offset, shape=file[name].shape)
                np.testing.assert_array_equal(mapped, file[name][...])


def test_the_corpus_comes_along(store):
    from affectlens.stages.corpus import CorpusStage

    documents = CorpusStage.open(store.folder.parent / "corpus").documents
    for column in ("kind", "emotion", "topic", "narrator"):
        assert store.documents[column].tolist() == [getattr(document, column) for document in documents]
    assert store.documents["tokens"].sum() == store.index["rows"]


def test_bfloat16_bits_are_torchs():
    values = torch.randn(100, dtype=torch.bfloat16)
    stored = values.view(torch.uint16).numpy()
    np.testing.assert_array_equal(to_float32(stored, "bfloat16"), values.float().numpy())


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_shuffled_is_a_permutation_whatever_the_count(count):
    assert sorted(shuffled(np.arange(count), count, 5, 0)) == list(range(count))


def test_shuffled_needs_no_more_than_the_position():
    whole = shuffled(np.arange(3000), 3000, 1, 2)
    np.testing.assert_array_equal(shuffled(np.array([2999, 0, 17]), 3000, 1, 2), whole[[2999, 0, 17]])
    beyond = (1 << 33) + 5  # more rows than 32 bits count
    far = shuffled(np.array([0, 1, beyond - 1]), beyond, 1, 2)
    assert len(set(far.tolist())) == 3
    assert far.min() >= 0
    assert far.max() < beyond


def test_shuffled_looks_random():
    """Uniform places, no memory between neighbours, no two keys alike: each by a z-score over 60 permutations."""
    count = 1000
    orders = np.array([shuffled(np.arange(count), count, key, 0) for key in range(60)])
    places = orders[:, 0] / (count - 1)
    assert abs(places.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 60)
    steps = np.abs(np.diff(orders, axis=1)).mean(axis=1)  # expected (n+1)/3
    assert np.abs(steps - (count + 1) / 3).max() < 5 * count * np.sqrt(1 / 18 / count)
    fixed = (orders == np.arange(count)).sum(axis=1)  # expected 1 each
    assert fixed.mean() < 2
    shared = (orders[1:] == orders[:-1]).sum(axis=1)
    assert shared.mean() < 2
    correlation = np.corrcoef(orders)[np.triu_indices(60, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(count)


def epoch_of(store: ActivationStore, **options) -> torch.Tensor:
    return torch.cat(list(store.batches(64, seed=3, **options)))


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(store, everything):
    first, second = epoch_of(store, epoch=0), epoch_of(store, epoch=1)
    assert first.dtype == torch.bfloat16
    assert not torch.equal(first, second)
    order = store.batches(64, seed=3).rows(0, 10**9)
    assert sorted(order.tolist()) == list(range(store.index["rows"]))
    np.testing.assert_array_equal(first.float().numpy(), everything[order])
    batches = list(store.batches(64, seed=3))
    assert {len(batch) for batch in batches[:-1]} == {64}
    assert len(batches) == len(store.batches(64, seed=3)) == -(-len(everything) // 64)
    assert not torch.equal(first, torch.cat(list(store.batches(64, seed=4))))


@pytest.mark.parametrize("options", [{"keep": "memory"}, {"keep": "disk"}, {"prefetch": 5}], ids=str)
def test_where_rows_lie_changes_nothing(store, options):
    assert torch.equal(epoch_of(store), epoch_of(store, **options))


@pytest.mark.parametrize("block", [1, 500, 1 << 20])
def test_any_step_can_be_gone_on_from(store, monkeypatch, block):
    """From (seed, epoch, step) alone, whatever is fetched at once."""
    whole = list(store.batches(50, seed=1, epoch=2))
    monkeypatch.setattr("affectlens.activations.batches.ORDER_BLOCK", block)
    for step in (0, 1, 7, len(whole) - 1, len(whole)):
        rest = list(store.batches(50, seed=1, epoch=2, step=step))
        assert len(rest) == len(whole) - step
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[step:], strict=True))


def test_a_choice_of_rows_and_a_type(store, everything):
    chosen = np.flatnonzero(store.tokens(LAYER).document % 2 == 0)
    found = torch.cat(list(store.batches(64, seed=3, rows=chosen, dtype=torch.float32)))
    assert found.dtype == torch.float32
    expected = everything[chosen]
    assert sorted(map(bytes, found.numpy())) == sorted(map(bytes, expected))
    assert len(found) > 1200
    large = store.batches(1200, seed=3, rows=chosen, dtype=torch.float32)
    assert torch.equal(torch.cat(list(large)), found)


def test_steps_go_through_epochs_without_a_gap(store, everything):
    """Training: full batches only, each epoch holds each row once, and any step is the same by itself and resumed."""
    count = len(everything)
    steps = 3 * count // 50
    whole = store.batches(50, seed=1, steps=steps, dtype=torch.float32)
    batches = list(whole)
    assert len(batches) == len(whole) == steps and {len(batch) for batch in batches} == {50}
    order = whole.rows(0, steps)
    for epoch in range(2):
        assert sorted(order[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))
    single = store.batches(50, seed=1, epoch=1).rows(0, count)
    np.testing.assert_array_equal(order[count : 2 * count], single)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), everything[order])
    for step in (0, count // 50, steps - 1):
        assert torch.equal(whole.batch(step), batches[step])
        rest = list(store.batches(50, seed=1, steps=steps, step=step, dtype=torch.float32))
        assert all(torch.equal(one, other) for one, other in zip(rest, batches[step:], strict=True))


def test_rows_of_chosen_documents(store):
    rows = store.tokens(LAYER)
    train = np.flatnonzero(store.documents["kind"] == "story")
    chosen = rows.rows_of(train)
    assert set(rows.document[chosen]) == set(train.tolist())
    assert len(chosen) == sum(len(rows.of(document)) for document in train.tolist())
    with pytest.raises(ValueError, match="no rows"):
        store.batches(8, seed=0, rows=chosen[:0])


def test_leaving_an_epoch_early_leaves_nothing_behind(store):
    before = threading.active_count()
    for _ in store.batches(8, seed=0):
        break
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="batch_size"):
        store.batches(0, seed=0)


def test_rows_are_taken_across_shards_in_the_order_given():
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 1 << 16, size=(count, 6)).astype(np.uint16) for count in (5, 1, 0, 9)]
    source = RowSource(arrays, "bfloat16")
    rows = generator.integers(0, 15, size=40)
    np.testing.assert_array_equal(source.take(rows), np.concatenate(arrays)[rows])
    np.testing.assert_array_equal(source.in_memory().take(rows), np.concatenate(arrays)[rows])
    assert source.take(np.array([], dtype=np.int64)).shape == (0, 6)
    for wrong in (-1, 15):
        with pytest.raises(IndexError, match="rows from 0 to 14"):
            source.take(np.array([wrong]))


def test_a_hugging_face_dataset_in_one_line(store, everything):
    data = to_datasets(store, store.tokens(store.only_layer()))
    assert len(data) == len(everything)
    some = data[[3, 700, 5]]
    np.testing.assert_array_equal(np.stack(some["activation"]), everything[[3, 700, 5]])
    rows = store.tokens(LAYER)
    assert list(some["token"]) == rows.token[[3, 700, 5]].tolist()
    assert list(some["emotion"]) == store.documents["emotion"][rows.document[[3, 700, 5]]].tolist()
    calm = data.filter(lambda emotion: emotion == "calm", input_columns="emotion")
    assert len(calm) == store.documents["tokens"][store.documents["emotion"] == "calm"].sum()


def test_a_torch_dataset_in_one_line(store, everything):
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    data = TorchRows(store.tokens(store.only_layer()))
    assert len(data) == len(everything)
    np.testing.assert_array_equal(data[9]["activation"].float(), everything[9])
    loader = DataLoader(data, batch_size=100)
    np.testing.assert_array_equal(torch.cat([batch["activation"] for batch in loader]).float(), everything)
    sampler = BatchSampler(RandomSampler(data), 300, drop_last=False)
    batches = list(DataLoader(data, batch_size=None, sampler=sampler))
    assert sum(len(batch["token"]) for batch in batches) == len(everything)
    assert batches[0]["activation"].shape == (300, 32)


def test_float_storage_needs_no_conversion_in_a_dataset(tmp_path, model_folder):
    neutral = write_texts(tmp_path / "neutral.jsonl", [{"text": "The lock has two gates. " * 12}])
    store = build(tmp_path, model_folder("llama"), neutral=neutral, storage="float16")
    some = to_datasets(store, store.tokens(store.only_layer()))[10:12]["activation"]
    np.testing.assert_array_equal(np.asarray(some, dtype=np.float32), store.tokens(LAYER).read(np.array([10, 11])))


def copied(store: ActivationStore, target: Path) -> Path:

    return Path(shutil.copytree(store.folder, target))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda path: path.unlink(), "is gone"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), r"has \d+ bytes instead of \d+"),
    ],
)
def test_a_lost_or_truncated_shard_is_named_before_a_row_is_read(store, tmp_path, change, fault):
    folder = copied(store, tmp_path / "copy")
    change(folder / "parts" / "00001" / "activations.h5")
    broken = ActivationStore(folder)
    for read in (lambda: broken.tokens(LAYER), lambda: broken.pooled(LAYER), lambda: broken.batches(8, 0)):
        with pytest.raises(DamagedResult, match=rf"00001.activations\.h5: a shard .* {fault}; run the study again"):
            read()


def test_merging_a_truncated_shard_is_one_sentence(store, tmp_path):
    from affectlens.activations.joining import write_index

    folder = copied(store, tmp_path / "copy")
    shard = folder / "parts" / "00001" / "activations.h5"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(DamagedResult, match=r"00001.activations\.h5: the shard cannot be read \(it is cut short\)"):
        write_index(folder, dict.fromkeys(("00000", "00001"), folder))


def test_another_format_is_refused(store, tmp_path):
    folder = copied(store, tmp_path / "copy")
    index = (folder / "index.json").read_text(encoding="utf-8")
    (folder / "index.json").write_text(index.replace('"format_version": 3', '"format_version": 1'), encoding="utf-8")
    with pytest.raises(DamagedResult, match="not an activation cache of format version 3"):
        ActivationStore(folder)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        UserError, match=r"shard.h5: the disk refuses the shard \(No space left on device\); free space"
    ):
        write_rows(tmp_path / "shard.h5", monkeypatch, full)


def test_partial_writes_are_gone_on_with(tmp_path, monkeypatch):
    """As disks do that are nearly full, or when a signal arrives."""
    from os import pwrite

    write_rows(tmp_path / "shard.h5", monkeypatch, lambda descriptor, data, at: pwrite(descriptor, data[:5], at))
    with h5py.File(tmp_path / "shard.h5", "r") as opened:
        file: Any = opened
        np.testing.assert_array_equal(file["rows"][...], np.arange(12, dtype=np.float32).reshape(4, 3))


def write_rows(path: Path, monkeypatch, pwrite) -> None:
    with ShardWriter(path, {}) as writer:
        writer.reserve("rows", (4, 3), "float32")
        writer.begin()
        monkeypatch.setattr("os.pwrite", pwrite)
        writer.put("rows", 2, np.arange(6, 12, dtype=np.float32))
        writer.put("rows", 0, np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize("rows", [(0,), (0, 0), (0, 1, 1), (0, 1, 3)])
def test_every_row_is_written_exactly_once(tmp_path, rows):
    """One row written twice and one never do not cancel out."""
    with pytest.raises(ValueError, match="written"), ShardWriter(tmp_path / "shard.h5", {}) as writer:
        writer.reserve("rows", (3, 3), "float32")
        writer.add("names", np.array([1, 2], dtype=np.int32))
        writer.begin()
        for row in rows:
            writer.put("rows", row, np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"storage": "float16"}])
def test_parts_of_different_number_types_are_refused(tmp_path, model_folder, store, change):
    """As parts from two machines are, one of which computes in bfloat16: bits of one type are no values of another."""
    from affectlens.activations.joining import write_index

    folder = tmp_path / "mixed"
    neutral = write_texts(tmp_path / "neutral.jsonl", [{"text": "The lock has two gates. " * 12}])
    ours = build(tmp_path / "one", model_folder("llama"), neutral=neutral, texts_per_part=5)
    theirs = build(tmp_path / "two", model_folder("llama"), neutral=neutral, texts_per_part=5, **change)
    for number, source in enumerate((ours, theirs)):
        shutil.copytree(source.folder / "parts" / f"{number:05d}", folder / "parts" / f"{number:05d}")
    with pytest.raises(
        UserError, match=r"parts/00001/activations\.h5: its .* is (bfloat16|float16).*float32; .*model\.dtype"
    ):
        write_index(folder, dict.fromkeys(("00000", "00001"), folder))
    index = json.loads((ours.folder / "index.json").read_text(encoding="utf-8"))
    index["shards"][1]["dtype"] = "bfloat16"
    (ours.folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(DamagedResult, match=r"00001.activations\.h5: its rows are bfloat16"):
        ActivationStore(ours.folder)
