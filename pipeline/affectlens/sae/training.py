"""The training loop: one sparse autoencoder, from a stream of rows to final weights, through any number of kills.

Everything random is a pure function of (seed, step), and a checkpoint holds everything else, so a run that is
interrupted ends with the bytes of one that is not.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from affectlens.files import write_safetensors
from affectlens.sae.architectures import REGISTRY, StepContext
from affectlens.sae.building import normalise_decoder, project_decoder_gradient
from affectlens.sae.feature_activations import Everything
from affectlens.sae.kernels_topk import choose_batch
from affectlens.sae.outcome import Outcome
from affectlens.sae.recipe import Recipe
from affectlens.stage import LIVE

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

    from affectlens.sae.rows import Statistics, Stream

CHECKPOINT = "checkpoint/state.safetensors"
"""In a folder of its own: what a killed write leaves behind goes with the folder."""
RECORDS = 100
"""Points of the training curve."""
CALIBRATION_BATCHES = 32


@dataclass
class Position:
    """What a step depends on besides the weights and the optimizer.

    Attributes:
        step: steps done.
        silent: steps since each feature fired.
        smallest: the last batch's smallest activation.
        curve: rows of the training curve so far.
    """

    step: int
    silent: torch.Tensor
    smallest: float
    curve: list[dict[str, float]]


class Trainer:
    """Trains one SAE in place.

    Args:
        recipe: how.
        sae: as :func:`affectlens.sae.building.build` makes it.
        stream: the rows, unscaled.
        statistics: the scale they are multiplied by.
        device: where to compute.
        half: whether the fast path makes large products in bfloat16.
    """

    def __init__(
        self, recipe: Recipe, sae: TrainingSAE[Any], stream: Stream, statistics: Statistics, device: str, half: bool
    ) -> None:
        self.recipe = recipe
        self.sae = sae.to(device)
        self.stream = stream
        self.scale = statistics.scale
        self.device = device
        self.half = half
        # The sparse sums use operators that only these devices have.
        self.fast = recipe.fast and torch.device(device).type in {"cpu", "cuda"}
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=recipe.lr, fused=device != "mps")
        self.at = Position(0, torch.zeros(sae.cfg.d_sae, dtype=torch.long, device=device), 0.0, [])

    def run(self, folder: Path, progress: Callable[[float], None]) -> list[dict[str, float]]:
        """Train to the end, from the checkpoint in ``folder`` if one is there; returns the training curve.

        A termination signal or an interrupt is obeyed after the step in progress is checkpointed.
        """
        if (folder / CHECKPOINT).is_file():
            self.restore(folder / CHECKPOINT)
            progress(float(self.at.step * self.recipe.train_batch_size_tokens))
        live = (folder / LIVE).open("a", encoding="utf-8", buffering=1)
        with live, termination() as asked, self.stream.batches(self.at.step) as batches:
            while self.at.step < self.recipe.steps:
                points = len(self.at.curve)
                self.step(next(batches))
                for row in self.at.curve[points:]:
                    live.write(json.dumps({"step": row["tokens"]} | row) + "\n")
                progress(float(self.recipe.train_batch_size_tokens))
                due = self.at.step % self.recipe.checkpoint_steps == 0 and self.at.step < self.recipe.steps
                if due or asked():
                    self.save(folder / CHECKPOINT)
                if asked():
                    break
        if self.at.step < self.recipe.steps:
            # Whoever sent the signal also replaced its default action; training still ends here.
            raise SystemExit(128 + signal.SIGTERM)
        if REGISTRY[self.recipe.architecture].batch_threshold:
            self._calibrate()
        return self.at.curve

    def step(self, rows: torch.Tensor) -> None:
        """One optimizer step on a batch of unscaled rows."""
        x = rows.to(self.device) * self.scale
        rate = self.recipe.lr * schedule(self.at.step, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        dead = self.at.silent > self.recipe.dead_feature_window
        outcome = self._gradients(x, dead) if self.fast else self._plain_gradients(x, dead)
        project_decoder_gradient(self.sae)
        self.optimizer.step()
        normalise_decoder(self.sae)
        self.at.silent += 1
        self.at.silent[outcome.fired] = 0
        self.at.smallest = outcome.smallest
        every = max(1, self.recipe.steps // RECORDS)
        if self.at.step % every == 0 or self.at.step == self.recipe.steps - 1:
            self._record(outcome, x, int(dead.sum()))
        self.at.step += 1

    def _coefficients(self) -> dict[str, float]:
        """Weights of the sparsity penalties at this step."""
        from sae_lens.saes.sae import TrainCoefficientConfig

        rise = min(1.0, (self.at.step + 1) / max(1.0, self.recipe.sparsity_warm_up))
        return {
            name: (given.value if isinstance(given, TrainCoefficientConfig) else given) * rise
            for name, given in self.sae.get_coefficients().items()
        }

    def _gradients(self, x: torch.Tensor, dead: torch.Tensor) -> Outcome:
        context = StepContext(dead, self._coefficients(), self.at.smallest, self.half)
        with torch.no_grad():
            return REGISTRY[self.recipe.architecture].step(self.sae, x, context)

    def _plain_gradients(self, x: torch.Tensor, dead: torch.Tensor) -> Outcome:
        """By sae-lens's forward pass and autograd."""
        from sae_lens.saes.sae import TrainStepInput

        self.optimizer.zero_grad()
        out = self.sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients=self._coefficients(),
                dead_neuron_mask=dead,
                n_training_steps=self.at.step,
                is_logging_step=False,
            )
        )
        out.loss.backward()
        codes = out.feature_acts.detach()
        support = Everything(len(codes), codes.shape[1])
        return Outcome.of(support, codes.sign(), out.loss.detach(), out.losses["mse_loss"].detach())

    def _record(self, outcome: Outcome, x: torch.Tensor, dead: int) -> None:
        variance = float((x - x.mean(dim=0)).square().sum() / len(x))
        self.at.curve.append(
            {
                "tokens": (self.at.step + 1) * self.recipe.train_batch_size_tokens,
                "loss": float(outcome.loss),
                "explained_variance": 1 - float(outcome.mse) / max(variance, 1e-12),
                "l0": float(outcome.active),
                "dead": dead,
            }
        )

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Set the threshold of the saved JumpReLU: the mean over batches of the smallest activation that was chosen.

        Bussmann et al. (2024), section 3; measured with the final weights, because a running mean lags behind them.
        """
        sae: Any = self.sae
        encoder, bias = sae.W_enc.data.T, sae.b_enc.data
        smallest = []
        with self.stream.batches(self.recipe.steps) as batches:
            for rows in islice(batches, CALIBRATION_BATCHES):
                x = rows.to(self.device) * self.scale - sae.b_dec.data
                _, value = choose_batch(x, encoder, bias, int(sae.cfg.k * len(x)), floor=self.at.smallest / 2)
                smallest.append(float(value.min()))
        sae.topk_threshold = torch.tensor(sum(smallest) / len(smallest), dtype=torch.double, device=self.device)

    def save(self, path: Path) -> None:
        """Write a checkpoint; the file is whole or absent at any moment."""
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value
        tensors["silent"] = self.at.silent
        facts = {"step": self.at.step, "smallest": self.at.smallest, "curve": self.at.curve}
        path.parent.mkdir(exist_ok=True)
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_safetensors(path, contiguous, {"position": json.dumps(facts)})

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe."""
        from safetensors import safe_open

        with safe_open(path, "pt", device=self.device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["position"])
        for name, value in self.sae.state_dict().items():
            value.copy_(tensors[f"sae.{name}"])
        for name, parameter in self.sae.named_parameters():
            prefix = f"adam.{name}."
            found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            # Fused Adam walks memory, so its averages must lie in the parameter's own order.
            self.optimizer.state[parameter] = {
                key: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                for key, value in found.items()
            }
        self.at = Position(facts["step"], tensors["silent"], facts["smallest"], facts["curve"])


def schedule(step: int, recipe: Recipe) -> float:
    """The learning rate of a step as a share of its highest: a rise, a plateau, a fall to zero, all linear."""
    rise = max(1.0, recipe.warm_up)
    fall = max(1.0, recipe.decay)
    return min(1.0, (step + 1) / rise, (recipe.steps - step) / fall)


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Hold back SIGTERM and SIGINT; the yielded function tells whether one came, and it is delivered at the end."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = {each: signal.signal(each, lambda number, frame: received.append(number)) for each in wanted}
    try:
        yield lambda: bool(received)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if received:
            signal.raise_signal(received[0])
