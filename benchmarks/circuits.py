"""Circuits on the embedded model, one thread: what a context costs, with oneDNN's products against PyTorch's own.

The same passes are run in turns on two loaded models, of which one has its products as PyTorch makes them. Half a
minute; four minutes without `--quick`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import harness
import numpy as np
import torch
from affectlens.circuits.anatomy import Anatomy, path
from affectlens.circuits.bench import Bench, exact_effects
from affectlens.circuits.config import CircuitsConfig
from affectlens.circuits.design import Cell
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.interventions.frames import read_lexicon
from affectlens.model.config import ModelConfig
from affectlens.model.products import Packed
from affectlens.model.subject import Subject
from affectlens.model.words import choose_words
from harness import Row

CONCEPTS = ("afraid", "angry", "calm", "happy", "proud", "sad")
TOPIC, CELL = "exam", Cell("exam", "sad")
ROWS = 51


def bench(models: Path, *, packed: bool) -> Bench:
    """The model with six stories of a topic."""
    config = CircuitsConfig()
    subject = Subject.load(ModelConfig(name="embedded", layer=15, dtype="float32"), device="cpu", models=models)
    stories = {
        Cell(row["topic"], row["emotion"]): row["text"]
        for row in read_jsonl(EMBEDDED / "stories.jsonl")
        if row["emotion"] in CONCEPTS and row["topic"] == TOPIC
    }
    anatomy = Anatomy(subject, config.tokens_per_batch)
    if not packed:
        for module in subject.bridge.modules():
            if isinstance(module.__dict__.get("forward"), Packed):
                del module.__dict__["forward"]
    words = choose_words(subject.tokenizer, CONCEPTS, read_lexicon(), config.words)
    return Bench(anatomy, words, stories, config.frame, config.story_tokens)


def measure(quick: bool) -> Sequence[Row]:
    """All rows, contenders taken in turns."""
    torch.set_num_threads(1)
    models = Path("cache/models")
    masks = np.random.default_rng(0).random((ROWS, 270)) < 0.2
    runs: dict[str, dict[str, Callable[[], object]]] = {}
    for name in ("packed", "plain"):
        made = bench(models, packed=name == "packed")
        taken = made.take(CELL)
        along = path(taken.recorded, taken.reference, 5)
        passes: dict[str, Callable[[], object]] = {
            f"{ROWS} circuits kept alone": lambda made=made, taken=taken: made.kept(taken, masks),
            "every head ablated, exactly": lambda made=made, taken=taken: exact_effects(made, taken),
            "integrated gradients, 5 steps": lambda made=made, taken=taken, along=along: made.anatomy.gradients(
                taken.tokens, along, lambda logits, read: [made.contrast(logits)[:, 0]]
            ),
            "every unit of one text": lambda made=made, taken=taken: made.anatomy.record(taken.tokens),
        }
        for each, run in passes.items():
            runs.setdefault(each, {})[name] = run
    rows = []
    for each, pair in runs.items():
        found = harness.medians(pair, 1 if quick else 5)
        rows.append(Row(f"{each}; peer: PyTorch's float32 products", found["packed"], found["plain"], "s"))
    return rows


def main() -> None:
    """Run all parts and print one table."""
    chosen = harness.options(__doc__)
    rows = measure(chosen.quick)
    harness.print_table(rows)
    if chosen.json:
        harness.write_json(chosen.json, rows, harness.machine("torch", "transformers") | {"threads": 1})


if __name__ == "__main__":
    main()
