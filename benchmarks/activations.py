"""What caching activations costs beside the model itself, and what reading them back costs beside the memory.

The model is the embedded one, the texts are the embedded stories. Four questions: how much slower than a bare forward
pass over the same batches, cut at the same layer, with nothing stored; how much faster than sae-lens's
``CacheActivationsRunner``; how fast shuffled training batches come back, against sae-lens's store on disk and against
rows gathered from one ``np.memmap``; and whether memory stays flat and time linear as texts become more.

All contenders compute with one torch thread. Ours may use others beside it: it tokenises, writes and reads ahead while
the model computes.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from affectlens.activations import ActivationStore, to_bits
from affectlens.activations.config import ActivationsConfig
from affectlens.activations.joining import write_index
from affectlens.activations.writing import ShardWriter
from affectlens.corpus.documents import CorpusConfig, Document, select
from affectlens.model.loading import load_weights
from affectlens.model.subject import ModelConfig, source
from affectlens.model.tokens import Text, plan_batches
from affectlens.run import manifest, verify
from affectlens.stage import Setting
from affectlens.stages.activations import ActivationsStage
from harness import Row, in_new_process, interleaved, machine, options, peak_memory, print_table, write_json

LAYER, LOW_LAYER = 15, 0
MODELS = Path("cache/models")
WIDTH = 576
BATCH = 4096
CONTEXT, PROMPTS = 128, 16
"""Of sae-lens: tokens in a sequence (its texts are packed), and sequences in a batch; 2,048 tokens, as ours."""
NAME = "model.layers.{}"


def stage_for(documents: Sequence[Document], layer: int, threads: int) -> ActivationsStage:
    """The stage over these texts, with everything but the model at its defaults."""
    setting = Setting(0, ModelConfig(layer=layer), "cpu", threads, MODELS)
    return ActivationsStage(ActivationsConfig(), setting, {"corpus": SimpleNamespace(documents=tuple(documents))})


def cache(stage: ActivationsStage) -> int:
    """Every part as the runner does it, checksums included; returns the number of rows."""
    with tempfile.TemporaryDirectory() as place:
        folder, parts = Path(place), {}
        for part in stage.parts():
            out = parts[part.name] = folder / "parts" / part.name
            out.mkdir(parents=True)
            stage.run_part(part, out, lambda units: None)
            sealed = manifest.seal_files(out)
            manifest.write_part(out, {"files": sealed, "sizes": verify.sizes(out, sealed), "run": {}})
        return int(stage.finish(parts, folder)["rows"])


def padded_batches(stage: ActivationsStage) -> list[torch.Tensor]:
    """The batches that the stage runs, ready for the model."""
    found = []
    for part in stage.parts():
        texts: list[Text] = stage.tokenising.texts(stage.documents(part))
        rows = [[*text.lead, *text.ids.tolist()] for text in texts]
        for batch in plan_batches([len(row) for row in rows], stage.config.tokens_per_batch):
            width = max(len(rows[index]) for index in batch)
            found.append(torch.tensor([rows[index] + [0] * (width - len(rows[index])) for index in batch]))
    return found


def forward(model: Any, batches: Sequence[torch.Tensor]) -> None:
    """The model alone."""
    with torch.inference_mode():
        for tokens in batches:
            model(tokens, use_cache=False)


def against_the_model(documents: Sequence[Document], repeats: int) -> list[Row]:
    """Caching beside a bare forward pass."""
    threads = torch.get_num_threads()
    stage = stage_for(documents, LAYER, threads)
    model = load_weights(stage.setting.model, layers=LAYER + 1, head=False, device="cpu", models=MODELS)
    batches, tokens = padded_batches(stage), cache(stage)
    contenders = {"ours": partial(cache, stage), "peer": partial(forward, model, batches)}
    title = f"(a) caching {tokens:,} tokens at layer {LAYER}; peer: the same batches through the cut model, not stored"
    return [rate(title, interleaved(contenders, repeats), {"ours": tokens, "peer": tokens})]


def rate(title: str, taken: Mapping[str, Sequence[float]], tokens: Mapping[str, int], peer: str = "peer") -> Row:
    """Tokens a second, by the median of the times."""
    ours, theirs = (tokens[name] / median(taken[name]) for name in ("ours", peer))
    return Row(title, ours, theirs, "tokens/s", more=True)


def sae_lens_runner(texts: Sequence[str], layers: int | None, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """sae-lens's caching of these texts, with the model loaded beforehand, and how many tokens it caches."""
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = source(ModelConfig(), MODELS)
    cut = {} if layers is None else {"num_hidden_layers": layers}
    cache_activations_runner.tqdm = lambda steps, **given: steps  # pyright: ignore[reportAttributeAccessIssue]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **cut).eval()
    loaded = sae_lens_model(model, folder, None if layers is None else [NAME.format(LAYER)])
    counted = sum(len(ids) + 1 for ids in AutoTokenizer.from_pretrained(folder)(list(texts))["input_ids"])
    tokens = (counted // CONTEXT - 1) // PROMPTS * PROMPTS * CONTEXT
    data = Dataset.from_dict({"text": list(texts)})

    def run() -> None:
        with tempfile.TemporaryDirectory() as place:
            config = CacheActivationsRunnerConfig(
                dataset_path="texts",
                model_name=folder,
                model_class_name="AutoModelForCausalLM",
                model_batch_size=PROMPTS,
                hook_name=NAME.format(LAYER),
                d_in=WIDTH,
                training_tokens=tokens,
                context_size=CONTEXT,
                new_cached_activations_path=place,
                device="cpu",
                buffer_size_gb=min(2.0, tokens * WIDTH * 4 / 1e9),
                streaming=False,
            )
            cache_activations_runner.load_model = lambda **given: loaded  # pyright: ignore[reportAttributeAccessIssue]
            CacheActivationsRunner(config, override_dataset=data).run()

    return run, tokens


def sae_lens_model(model: Any, folder: str, hooked: list[str] | None) -> Any:
    """A transformers model as sae-lens wraps it, hooked at these modules; at all, as its runner does, when None."""
    from sae_lens.load_model import HookedProxyLM
    from transformers import AutoTokenizer

    return HookedProxyLM(model, AutoTokenizer.from_pretrained(folder), hook_names=hooked)


def against_sae_lens(documents: Sequence[Document], repeats: int) -> list[Row]:
    """Caching beside sae-lens, as documented and with its model cut and in half precision by hand."""
    stage = stage_for(documents, LAYER, torch.get_num_threads())
    texts = [document.text for document in documents]
    plain, tokens = sae_lens_runner(texts, None, torch.float32)
    tuned, _ = sae_lens_runner(texts, LAYER + 1, torch.bfloat16)
    contenders = {"ours": partial(cache, stage), "plain": plain, "tuned": tuned}
    rows, taken = {"ours": cache(stage), "plain": tokens, "tuned": tokens}, interleaved(contenders, repeats)
    title = f"(b) caching {rows['ours']:,} tokens; peer: sae-lens CacheActivationsRunner"
    return [
        rate(title, taken, rows, "plain"),
        rate(f"{title}, its model cut and in bfloat16 by hand", taken, rows, "tuned"),
        products(repeats),
    ]


def products(repeats: int) -> Row:
    """The matrix products of a block alone: the most that half precision can gain on a peer that stops there too."""
    from torch.nn.functional import linear
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(source(ModelConfig(), MODELS)[0])
    wide, narrow = model.hidden_size, model.num_key_value_heads * model.hidden_size // model.num_attention_heads
    hidden = model.intermediate_size
    shapes = [(wide, wide)] * 2 + [(wide, narrow)] * 2 + [(wide, hidden)] * 2 + [(hidden, wide)]

    def block(dtype: torch.dtype) -> Callable[[], object]:
        pairs = [
            (torch.ones(CONTEXT * PROMPTS, given, dtype=dtype), torch.ones(to, given, dtype=dtype))
            for given, to in shapes
        ]
        return lambda: [linear(rows, weights) for _ in range(8) for rows, weights in pairs]

    taken = interleaved({"ours": block(torch.bfloat16), "peer": block(torch.float32)}, repeats)
    done = 8 * 2 * CONTEXT * PROMPTS * sum(given * to for given, to in shapes) / 1e9
    title = "(b) the bound: matrix products of one block alone in bfloat16; peer: in float32"
    return Row(title, done / median(taken["ours"]), done / median(taken["peer"]), "GFLOP/s", more=True)


def random_store(folder: Path, rows: int, shards: int) -> ActivationStore:
    """A store of random bfloat16 rows: what reading costs does not depend on what they hold."""
    generator, parts = torch.Generator().manual_seed(0), {}
    attributes = {"d_model": WIDTH, "means": False, "first_token": 0, "spans": [], "positions": [], "columns": []}
    for shard in range(shards):
        count = rows // shards
        out = parts[f"{shard:05d}"] = folder / "parts" / f"{shard:05d}"
        out.mkdir(parents=True)
        with ShardWriter(out / "activations.h5", attributes) as writer:
            writer.add("documents/index", np.array([shard], dtype=np.int32))
            writer.add("rows/token", np.zeros(count, dtype=np.int32))
            writer.reserve(f"layers/{LAYER}/resid_post/rows", (count, WIDTH), "bfloat16")
            writer.add(f"layers/{LAYER}/resid_post/norms", np.ones(1))
            writer.begin()
            values = torch.randn(count, WIDTH, generator=generator).bfloat16()
            writer.put(f"layers/{LAYER}/resid_post/rows", 0, to_bits(values))
    write_index(folder, parts)
    return ActivationStore(folder)


def sae_lens_store(folder: Path, store: ActivationStore) -> Any:
    """The same rows as sae-lens caches them, opened by its store for training."""
    from datasets import Array2D, Dataset, Features
    from sae_lens.training.activations_store import ActivationsStore
    from transformers import AutoConfig, AutoModelForCausalLM

    name, rows = NAME.format(LAYER), store.tokens(LAYER)
    sequences = len(rows) // CONTEXT
    values = rows.read(np.arange(sequences * CONTEXT)).reshape(sequences, CONTEXT, WIDTH)
    features = Features({name: Array2D(shape=(CONTEXT, WIDTH), dtype="float32")})
    Dataset.from_dict({name: values}, features=features).save_to_disk(folder)
    model, _ = source(ModelConfig(), MODELS)
    tiny = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, num_hidden_layers=LAYER + 1))
    return ActivationsStore(
        model=sae_lens_model(tiny, model, [name]),
        dataset=None,
        streaming=False,
        hook_name=name,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=WIDTH,
        n_batches_in_buffer=64,
        total_training_tokens=len(rows),
        store_batch_size_prompts=PROMPTS,
        train_batch_size_tokens=BATCH,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(folder),
    )


def training_batches(rows: int, repeats: int) -> list[Row]:
    """Shuffled batches of 4,096 rows beside sae-lens's on-disk store and a bare gather from one memory map."""
    with tempfile.TemporaryDirectory() as place:
        store = random_store(Path(place) / "ours", rows, shards=40)
        theirs = sae_lens_store(Path(place) / "peer", store)
        flat = Path(place) / "flat"
        np.concatenate(store.tokens(LAYER).source.maps).tofile(flat)
        mapped = np.memmap(flat, dtype=np.uint16, mode="r", shape=(rows, WIDTH))
        order = np.random.default_rng(0).permutation(rows)
        steps, few = rows // BATCH, max(1, rows // BATCH // 4)

        def gather() -> None:
            for step in range(steps):
                torch.from_numpy(mapped[order[step * BATCH : (step + 1) * BATCH]])

        def batches(**options: Any) -> None:
            for batch in store.batches(BATCH, seed=0, **options):
                assert batch.shape[1] == WIDTH

        contenders = {
            "sae-lens": lambda: [theirs.next_batch() for _ in range(few)],
            "float32": partial(batches, dtype=torch.float32),
            "float32, disk": partial(batches, keep="disk", dtype=torch.float32),
            "memmap": gather,
            "stored": batches,
            "stored, disk": partial(batches, keep="disk"),
        }
        taken = interleaved(contenders, repeats)
        each = {name: rows / median(seconds) for name, seconds in taken.items()}
        each["sae-lens"] *= few * BATCH / rows
    title = f"(c) shuffled batches of {rows:,} rows of {WIDTH}"
    compared = (
        ("float32", "float32", "sae-lens"),
        ("stored", "bfloat16", "sae-lens"),
        ("stored", "bfloat16", "memmap"),
    )
    named = {"sae-lens": "sae-lens's store on disk, float32", "memmap": "np.memmap gather, bfloat16"}
    return [
        Row(f"{title}, {kind}, {where}; peer: {named[peer]}", each[name + suffix], each[peer], "rows/s", more=True)
        for name, kind, peer in compared
        for suffix, where in (("", "as the store chooses (memory)"), (", disk", "memory-mapped"))
    ]


def cache_many(tokens: int) -> tuple[int, float, float, float]:
    """Rows, processor seconds, seconds and MiB at the peak of caching so many tokens. Runs alone in a process."""
    torch.set_num_threads(1)
    stories = [document for document in select(CorpusConfig()) if document.split != "neutral"]
    mean = 148  # tokens of a story
    many = [stories[index % len(stories)] for index in range(tokens // mean)]
    stage = stage_for([Document(**{**vars(text), "index": place}) for place, text in enumerate(many)], LOW_LAYER, 1)
    assert stage.reader.width == WIDTH
    forget_peak()
    start, processor = time.perf_counter(), time.process_time()
    rows = cache(stage)
    return rows, time.process_time() - processor, time.perf_counter() - start, peak()


def forget_peak() -> None:
    """Begin measuring the peak of memory anew, where the system can: loading the model would hide what follows."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak() -> float:
    """The most memory held since then, in MiB; since the process began, where the system cannot forget."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return peak_memory()


def scaling(small: int, large: int, repeats: int) -> list[Row]:
    """Memory and time as texts become more. The lowest layer, so that what is not the model weighs most."""
    runs: dict[int, list[tuple[int, float, float, float]]] = {small: [], large: []}
    for _ in range(repeats):
        for size in (small, large, small):
            runs[size].append(in_new_process(cache_many, size))
    (fewer, *peer), (more, *ours) = (np.median(runs[size], axis=0) for size in (small, large))
    title, against = f"(d) {more:,.0f} tokens at layer {LOW_LAYER}", f"peer: ours, {fewer:,.0f}"
    return [
        Row(f"{title}, time; {against}", ours[1] / more * 1e6, peer[1] / fewer * 1e6, "µs a token"),
        Row(f"{title}, processor time; {against}", ours[0] / more * 1e6, peer[0] / fewer * 1e6, "µs a token"),
        Row(f"{title}, peak memory of the process; {against}", ours[2], peer[2], "MiB"),
    ]


def main() -> None:
    """Run all parts and print one table."""
    given = options(__doc__)
    os.environ["HF_HUB_OFFLINE"], os.environ["TQDM_DISABLE"] = "1", "1"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning)  # of sae-lens, about small data sets
    torch.set_num_threads(1)
    quick = given.quick
    stories = [document for document in select(CorpusConfig()) if document.split != "neutral"]
    rows = against_the_model(stories[: 24 if quick else 96], 1 if quick else 5)
    rows += against_sae_lens(stories[: 24 if quick else 48], 1 if quick else 3)
    rows += training_batches(*(40_000, 3) if quick else (250_000, 5))
    rows += scaling(*(5_000, 20_000) if quick else (100_000, 1_000_000), repeats=1)
    print_table(rows)
    if given.json:
        write_json(given.json, rows, machine("torch", "transformers", "sae-lens", "h5py") | {"threads": 1})


if __name__ == "__main__":
    main()
