"""What watching 171 rows costs beside generating alone: token by token, and in the batches that a study reads.

The model is the embedded one. One answer is generated with the weights and the key-value cache that the server uses;
beside it the same, with every token's state fed to a card of 171 rows. The token at each place is the same in both.
The card's rows are random: what they mean changes no time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from affectlens.model.config import ModelConfig
from affectlens.model.decoding import Decoder, Opening, Rows
from affectlens.monitor.calibration import BucketConfig, CardConfig, WatchedRowConfig
from affectlens.monitor.statistics import StatisticConfig
from affectlens.monitor.watching import Watch
from harness import Row

LAYER, ROWS = 15, 171
MODELS = Path("cache/models")


def card(width: int, statistic: StatisticConfig) -> CardConfig:
    """A card of 171 random rows, each with a threshold and blocks as a calibration leaves them."""
    generator = np.random.default_rng(0)
    bucket = BucketConfig(longest=None, threshold=4.0, episodes=200, band=(0.02, 0.08))
    rows = tuple(
        WatchedRowConfig(
            name=f"row {n}",
            layer=LAYER,
            weights=tuple(generator.normal(size=width).tolist()),
            offset=0.0,
            mean=0.0,
            deviation=1.0,
            buckets=(bucket,),
            blocks=tuple(sorted(generator.normal(size=400).tolist())),
        )
        for n in range(ROWS)
    )
    names: dict[str, Any] = {"model": "embedded", "template": "", "dtype": "auto", "source": "random", "target": 0.05}
    return CardConfig(**names, layer=LAYER, statistic=statistic, refractory=16, rows=rows)


def measure(quick: bool) -> list[Row]:
    """Milliseconds a token with and without watching, taken in turns."""
    torch.set_num_threads(1)
    decoder = Decoder.load(ModelConfig(layer=LAYER), device="cpu", models=MODELS)
    prompt = decoder.tokenizer("The train was late again, and she had", add_special_tokens=False)["input_ids"]
    tokens = 32 if quick else 96

    def generate(watched: CardConfig | None) -> None:
        rows = Rows(decoder, LAYER)
        ((logits, states),) = rows.join([Opening(prompt)])
        watch = None if watched is None else Watch(watched, tokens)
        if watch is not None:
            watch.feed(states[-1])
        token = int(logits[-1].argmax())
        for _ in range(tokens):
            after, state = rows.step([token])
            if watch is not None:
                watch.feed(state[0])
            token = int(after[0].argmax())

    found = []
    for kind in ("rolling", "own_start", "cusum", "edetector"):
        watched = card(576, StatisticConfig(kind=kind))
        taken = harness.medians(
            {"watched": lambda c=watched: generate(c), "alone": lambda: generate(None)}, 5 if quick else 15
        )
        cost = 1000 / tokens
        found.append(
            Row(
                f"a token with {ROWS} rows ({kind}); peer: without",
                cost * taken["watched"],
                cost * taken["alone"],
                "ms",
            )
        )
    states = np.random.default_rng(0).normal(size=(tokens, 576)).astype(np.float32)
    watched = card(576, StatisticConfig())

    def feed() -> None:
        watch = Watch(watched, tokens)
        for state in states:
            watch.feed(state)

    alone = harness.medians({"feed": feed}, 5 if quick else 15)["feed"]
    return [*found, Row(f"{ROWS} rows alone, by the token", 1000 / tokens * alone, None, "ms")]


def main() -> None:
    """Print one table."""
    chosen = harness.options(__doc__)
    rows = measure(chosen.quick)
    harness.print_table(rows)
    if chosen.json:
        harness.write_json(chosen.json, rows, harness.machine("torch", "transformers") | {"threads": 1})


if __name__ == "__main__":
    main()
