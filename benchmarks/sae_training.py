"""What a training step of each SAE architecture costs, and whether the cheaper step learns as much.

The peers: sae-lens's ``SAETrainer`` for every architecture, and EleutherAI's sparsify for TopK where it is installed.
Everything starts from the same weights and sees the same batches with the same learning rates. Data are sums of a few
of many directions with a heavy-tailed spread, of the residual stream's width of SmolLM2-135M. The loss is sae-lens's
own, on rows that no step saw. All contenders compute with one torch thread.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from affectlens.model.subject import resolve_dtype
from affectlens.sae.building import build
from affectlens.sae.recipe import Recipe
from affectlens.sae.rows import Statistics, Stream
from affectlens.sae.training import Trainer
from harness import Row, interleaved, machine, options, print_table, write_json
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer

D_MODEL = 576
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "standard", "gated", "jumprelu")
WARM_UP, DECAY = 0.1, 0.3
OURS = {False: "all in float32", True: "large products in bfloat16"}
"""By whether the trainer makes large products in bfloat16, as it does by itself where the processor has it."""
TURN = 10
"""Steps that one contender takes before the other does, in whole trainings."""


class Rows:
    """Residual-like rows in memory, with the store's ``read``."""

    def __init__(self, count: int, directions: int = 4096, active: int = 24, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        dictionary = generator.standard_normal((directions, D_MODEL), dtype=np.float32) / D_MODEL**0.5
        popularity = 1 / np.arange(8, directions + 8)
        chosen = generator.choice(directions, (count, active), p=popularity / popularity.sum())
        sizes = generator.lognormal(0.5, 0.5, (count, active)).astype(np.float32)
        self.values = 0.05 * generator.standard_normal((count, D_MODEL), dtype=np.float32)
        for column in range(active):
            self.values += sizes[:, column, None] * dictionary[chosen[:, column]]

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows]


@dataclass
class Task:
    """One comparison: the same SAE, rows and schedule for all contenders."""

    recipe: Recipe
    rows: Rows
    width: int

    def __post_init__(self) -> None:
        chosen = np.arange(len(self.rows.values) - self.recipe.train_batch_size_tokens)
        self.statistics = Statistics.of(self.rows, chosen)  # pyright: ignore[reportArgumentType]
        self.stream = Stream.of_values(self.rows.values[chosen], size=self.recipe.train_batch_size_tokens, seed=1)
        self.held_out = (
            torch.from_numpy(self.rows.values[-self.recipe.train_batch_size_tokens :]) * self.statistics.scale
        )
        centre = torch.from_numpy(self.statistics.centre) * self.statistics.scale
        self.start = build(self.recipe, d_in=D_MODEL, width=self.width, centre=centre, seed=0, metadata={})

    def ours(self, *, half: bool) -> Trainer:
        return Trainer(self.recipe, copy.deepcopy(self.start), self.stream, self.statistics, "cpu", half)

    def sae_lens(self) -> SAETrainer[Any, Any]:
        steps, batch = self.recipe.steps, self.recipe.train_batch_size_tokens
        rise = round(self.recipe.sparsity_warm_up)
        sae = copy.deepcopy(self.start)
        sae.W_enc.data = sae.W_enc.data.contiguous()
        for name in ("l1_warm_up_steps", "l0_warm_up_steps"):
            if hasattr(sae.cfg, name):
                setattr(sae.cfg, name, rise)
        settings = SAETrainerConfig(
            total_training_samples=steps * batch,
            train_batch_size_samples=batch,
            lr=self.recipe.lr,
            lr_end=self.recipe.lr / 100,
            lr_warm_up_steps=round(WARM_UP * steps),
            lr_decay_steps=round(DECAY * steps),
            dead_feature_window=self.recipe.dead_feature_window,
        )
        return SAETrainer(settings, sae, self.batches())

    def rows_in_order(self) -> Iterator[torch.Tensor]:
        """Unscaled batches from the first step on."""
        with self.stream.batches(0) as batches:
            yield from batches

    def batches(self) -> Iterator[torch.Tensor]:
        """The same, scaled."""
        return (rows * self.statistics.scale for rows in self.rows_in_order())

    @torch.no_grad()
    def loss(self, sae: Any) -> float:
        """sae-lens's training loss on held-out rows, with the sparsity penalty at full weight."""
        given = sae.get_coefficients()
        full = {name: getattr(value, "value", value) for name, value in given.items()}
        step = TrainStepInput(
            sae_in=self.held_out, coefficients=full, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
        return float(sae.training_forward_pass(step).loss)


def _lens_steps(trainer: SAETrainer[Any, Any], count: int) -> None:
    """What ``fit`` does per step, without its progress bar."""
    for _ in range(count):
        trainer.maybe_reset_sparsity()
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1


def _our_steps(trainer: Trainer, batches: Iterator[torch.Tensor], count: int) -> None:
    for _ in range(count):
        trainer.step(next(batches))


def sparsify_steps(task: Task) -> Callable[[int], None] | None:
    """Steps of sparsify's own coder with its own decoder upkeep; None where it is not installed."""
    if importlib.util.find_spec("sparsify") is None:
        return None
    from sparsify import SparseCoder  # pyright: ignore[reportMissingImports]
    from sparsify.config import SparseCoderConfig  # pyright: ignore[reportMissingImports]

    coder = SparseCoder(D_MODEL, SparseCoderConfig(num_latents=task.width, k=task.recipe.k))
    optimizer = torch.optim.Adam(coder.parameters(), lr=task.recipe.lr)
    batches = task.batches()

    def run(count: int) -> None:
        for _ in range(count):
            coder.set_decoder_norm_to_unit_norm()
            coder(next(batches)).fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            optimizer.zero_grad()

    return run


def speed(task: Task, repeats: int, *, half: bool) -> list[Row]:
    """Tokens a second of everything that can train this SAE, by single steps."""
    name = f"{task.recipe.architecture}, {task.width:,} features"
    lens = task.sae_lens()
    contenders: dict[str, Callable[[], None]] = {"sae-lens": partial(_lens_steps, lens, 1)}
    for kind in (False, True) if half else (False,):
        contenders[OURS[kind]] = partial(_our_steps, task.ours(half=kind), task.rows_in_order(), 1)
    other = sparsify_steps(task) if task.recipe.architecture == "topk" else None
    if other is not None:
        contenders["sparsify"] = partial(other, 1)
    rate = {
        key: task.recipe.train_batch_size_tokens / median(taken)
        for key, taken in interleaved(contenders, repeats).items()
    }
    return [
        Row(f"{name}, {kind}; peer: {peer}", rate[kind], rate[peer], "tokens/s", more=True)
        for peer in ("sae-lens", "sparsify")
        for kind in OURS.values()
        if kind in rate and peer in rate
    ]


def whole(task: Task, *, half: bool) -> list[Row]:
    """A whole short training, ours (as fast as this machine can) and sae-lens's in turns: speed and held-out loss."""
    ours, lens = task.ours(half=half), task.sae_lens()
    turns = task.recipe.steps // TURN
    contenders = {
        "ours": partial(_our_steps, ours, task.rows_in_order(), TURN),
        "sae-lens": partial(_lens_steps, lens, TURN),
    }
    seconds = interleaved(contenders, turns, warmup=0)
    rate = {key: TURN * task.recipe.train_batch_size_tokens / median(taken) for key, taken in seconds.items()}
    name = f"{task.recipe.architecture}, {task.width:,} features, {turns * TURN} steps, {OURS[half]}; peer: sae-lens"
    return [
        Row(f"{name}; whole training", rate["ours"], rate["sae-lens"], "tokens/s", more=True),
        Row(f"{name}; final loss", task.loss(ours.sae), task.loss(lens.sae), "loss"),
    ]


def main() -> None:
    """Run all parts and print one table."""
    given = options(__doc__)
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    half = resolve_dtype("auto", "cpu") is torch.bfloat16
    rows = Rows(4096 if given.quick else 32_768)
    recipe = Recipe
    table: list[Row] = []
    for width, repeats in ((1152, 3),) if given.quick else ((4608, 5), (16_384, 3)):
        for architecture in ARCHITECTURES:
            size = 256 if given.quick else 1024
            chosen = recipe(architecture=architecture, steps=1000, train_batch_size_tokens=size)
            table += speed(Task(chosen, rows, width), repeats, half=half)
    steps, batch, width = (40, 256, 576) if given.quick else (60, 512, 4608)
    for architecture in ARCHITECTURES:
        # Dead early, so that the auxiliary loss takes part.
        chosen = recipe(
            architecture=architecture, steps=steps, train_batch_size_tokens=batch, dead_feature_window=steps // 4
        )
        table += whole(Task(chosen, rows, width), half=half)
    print_table(table)
    if given.json:
        write_json(given.json, table, machine("torch", "sae-lens") | {"threads": 1})


if __name__ == "__main__":
    main()
