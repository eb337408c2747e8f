"""Steering: a grid of vectors and strengths as one batch against the loop people write with transformers hooks.

Both compute the same on the embedded model, which is checked first: the next token's log-probabilities under every
vector at every strength, and text generated meanwhile. The loop sets a forward hook on one decoder layer, runs one
row, and removes it. Further rows: tokens generated per second, and what the hooks cost in generation. All contenders
compute with one torch thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from affectlens.files import file_digest
from affectlens.interventions.scoring import injection
from affectlens.model import embedded
from affectlens.model.partial import PartialForward
from affectlens.model.sampling import sample
from affectlens.model.steering import Edit, Span, add, editing
from affectlens.model.subject import ModelConfig, Subject
from affectlens.probing.control_vectors import isotropic
from harness import Row
from transformers import AutoModelForCausalLM

LAYER, STRENGTHS, UNIT = 15, (0.05, 0.1, 0.2), 168.0
"""Where and how strongly is pushed; the unit is about the mean residual norm of the embedded model there."""
FRAME = "Right now I am feeling"
MODELS = Path("cache/models")


class Loop:
    """The peer: plain transformers, one row at a time, a hook on one decoder layer."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.layer = self.model.model.layers[LAYER]

    @contextmanager
    def pushed(self, vector: torch.Tensor, lead: int) -> Iterator[None]:
        """Within, the vector is added to every position from ``lead`` on."""

        def hook(module: Any, inputs: Any, residual: torch.Tensor) -> torch.Tensor:
            if residual.shape[1] == 1:
                return residual + vector.to(residual.dtype)
            return torch.cat([residual[:, :lead], residual[:, lead:] + vector.to(residual.dtype)], dim=1)

        handle = self.layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def grid(self, tokens: torch.Tensor, rows: torch.Tensor, lead: int) -> torch.Tensor:
        """Next-token log-probabilities of every row."""
        found = []
        with torch.no_grad():
            for vector in rows:
                with self.pushed(vector, lead):
                    found.append(self.model(tokens, logits_to_keep=1).logits[0, -1].float().log_softmax(-1))
        return torch.stack(found)

    def write(self, tokens: torch.Tensor, rows: torch.Tensor, lead: int, steps: int) -> list[list[int]]:
        """The likeliest continuation of every row, key-value cache on."""
        found = []
        for vector in rows:
            with self.pushed(vector, lead):
                found += self.plain(tokens, steps)
        return found

    def plain(self, tokens: torch.Tensor, steps: int) -> list[list[int]]:
        """The likeliest continuations of a batch without hooks, by transformers' own ``generate``."""
        with torch.no_grad():
            text = self.model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=steps, min_new_tokens=steps,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        return text[:, tokens.shape[1] :].tolist()


def grids(subject: Subject, loop: Loop, vectors: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """The contenders for the dose-response grid, after a check that they agree; and the number of rows."""
    upper = PartialForward(subject, LAYER)
    units = torch.tensor(isotropic(vectors, 576, np.random.default_rng(0)), dtype=torch.float32)
    rows, doses = units.repeat_interleave(len(STRENGTHS), dim=0), torch.tensor(STRENGTHS * vectors)
    tokens = subject.pad([subject.encode(FRAME)])
    wide = tokens.expand(len(rows), -1)
    push = injection(rows, doses, {LAYER: UNIT}, subject.lead)(slice(0, len(rows)), tokens.shape[1])

    def resumed() -> torch.Tensor:
        residual = upper.lower(tokens)
        return upper.run(wide, residual.expand(len(rows), -1, -1), push).logits[:, 0].log_softmax(-1)

    def whole() -> torch.Tensor:
        with torch.no_grad(), editing(subject.bridge, push):
            return subject.bridge(wide, logits_to_keep=1)[:, -1].float().log_softmax(-1)

    looped = partial(loop.grid, tokens, rows * doses[:, None] * UNIT, subject.lead)
    ours, theirs = resumed(), looped()
    far = (ours - theirs).abs().mean().item()
    if far > 0.1:
        raise SystemExit(f"the batch and the loop disagree by {far:.3f} nats on average; nothing was timed")
    return {"resumed": resumed, "whole": whole, "loop": looped}, len(rows)


def writers(subject: Subject, loop: Loop, rows: int, steps: int) -> dict[str, Callable[[], Any]]:
    """The contenders for generation: our batch with and without hooks, and the loop."""
    prompt = subject.encode(FRAME)
    units = torch.tensor(isotropic(rows, 576, np.random.default_rng(1)), dtype=torch.float32)
    doses = torch.full((rows,), STRENGTHS[1])
    push = Edit(LAYER, partial(add, direction=units, strength=doses, unit=UNIT), span=Span.text(rows, subject.lead))
    chances = np.zeros((rows, 1, steps))
    write = partial(sample, subject, [subject.led(prompt)], chances, temperature=0, special="never")
    tokens = subject.pad([prompt])
    return {
        "steered": partial(write, edits=[push]),
        "plain": partial(write, edits=()),
        "transformers": partial(loop.plain, tokens.expand(rows, -1), steps),
        "loop": partial(loop.write, tokens, units * doses[:, None] * UNIT, subject.lead, steps),
    }


def measure(quick: bool) -> Sequence[Row]:
    """All rows, contenders taken in turns."""
    vectors, rows, steps, repeats = (8, 8, 8, 2) if quick else (43, 16, 20, 3)
    subject = Subject.load(ModelConfig(layer=LAYER), device="cpu", models=MODELS)
    file = embedded.weights_file()
    folder = embedded.model_folder(MODELS, file_digest(file), file)
    loop = Loop(folder, subject.dtype)
    contenders, size = grids(subject, loop, vectors)
    grid = harness.medians(contenders, repeats)
    generation = writers(subject, loop, rows, steps)
    seconds = {"loop": harness.medians({"loop": generation.pop("loop")}, repeats)["loop"]}
    seconds |= harness.medians(generation, 2 * repeats + 1)  # what hooks cost is a small difference
    written = {name: rows * steps / taken for name, taken in seconds.items()}
    texts, rate = f"{rows} texts of {steps} tokens", partial(Row, unit="tokens/s", more=True)
    return [
        Row(f"dose-response grid of {size} rows; peer: one row at a time", grid["resumed"], grid["loop"], "s"),
        Row("the same without resuming above the layer", grid["whole"], grid["loop"], "s"),
        rate(f"{texts}, each steered its own way; peer: one text at a time", written["steered"], written["loop"]),
        rate("the same; peer: our generation without hooks", written["steered"], written["plain"]),
        rate("the same; peer: transformers' generate, unsteered", written["steered"], written["transformers"]),
    ]


def main() -> None:
    """Run all parts and print one table."""
    chosen = harness.options(__doc__)
    torch.set_num_threads(1)
    rows = measure(chosen.quick)
    harness.print_table(rows)
    if chosen.json:
        described = harness.machine("torch", "transformers", "transformer-lens") | {"threads": 1}
        harness.write_json(chosen.json, rows, described)


if __name__ == "__main__":
    main()
