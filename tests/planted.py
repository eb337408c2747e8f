"""Activations made of a known dictionary, in the shape of the stages that precede ``sae``."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from affectlens.activations.batches import Batches
from affectlens.activations.source import RowSource
from affectlens.corpus.documents import Document

D_MODEL, FEATURES, ACTIVE = 32, 64, 3
CENTRE = 5.0


class PlantedRows:
    """Token rows that are sums of a few of ``FEATURES`` unit directions around a far centre."""

    def __init__(self, documents: int = 40, tokens: int = 60, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        directions = generator.normal(size=(FEATURES, D_MODEL))
        self.dictionary = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        count = documents * tokens
        self.codes = np.zeros((count, FEATURES))
        for row in self.codes:
            row[generator.choice(FEATURES, ACTIVE, replace=False)] = generator.uniform(2, 4, ACTIVE)
        noise = 0.02 * generator.normal(size=(count, D_MODEL))
        self.values = (self.codes @ self.dictionary + CENTRE + noise).astype(np.float32)
        self.document = np.repeat(np.arange(documents), tokens)
        self.position = np.tile(np.arange(tokens), documents)
        self.token = generator.integers(3, 600, count)

    def __len__(self) -> int:
        return len(self.values)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows]

    def of(self, document: int) -> np.ndarray:
        return self.values[self.document == document]


def results(rows: PlantedRows) -> dict:
    """What the sae stage needs: a corpus of train, validation, test and neutral documents, and the rows."""
    count = int(rows.document.max()) + 1
    kinds = ("train", "train", "validation", "test", "neutral")
    documents = tuple(Document(n, "story", "calm", "park", "", kinds[n % 5], "") for n in range(count))
    corpus = SimpleNamespace(
        documents=documents,
        indices=lambda *splits: [document.index for document in documents if document.split in splits],
    )
    norm = float(np.linalg.norm(rows.values, axis=1).mean())
    source = RowSource([rows.values], "float32")

    def batches(size, seed, *, step, steps, rows, **_):
        return Batches(
            source, None, batch_size=size, seed=seed, epoch=0, step=step, steps=steps, chosen=rows, device="cpu",
            dtype=None, prefetch=1,
        )  # fmt: skip

    store = SimpleNamespace(d_model=D_MODEL, tokens=lambda layer: rows, mean_norm=lambda layer: norm, batches=batches)
    return {"corpus": corpus, "activations": store}
