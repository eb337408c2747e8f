"""Training of an arm: a low-rank adapter through peft, from checkpoints of its own where it was interrupted.

Everything random is a function of the arm's seed and the step: the adapter's first values, and which chats a step sees.
A checkpoint holds the rest, so that a run that was killed ends with the same bytes as one that was not.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from affectlens.errors import UserError
from affectlens.files import write_json, write_safetensors
from affectlens.model.adapters import WEIGHTS
from affectlens.model.config import ADAPTER, ModelConfig, TuningConfig, resolve_dtype, shown_name
from affectlens.model.loading import load_tokenizer, load_weights
from affectlens.model.tuning import Example, Learnt, draws, learnt_tokens, rate
from affectlens.shaping import texts as written
from affectlens.shaping.arms import Arm
from affectlens.shaping.config import ShapeConfig
from affectlens.shaping.objectives import (
    Answers,
    Figures,
    Learner,
    Objective,
    Preferences,
    SetPoint,
    benign_units,
    projections,
)
from affectlens.shaping.texts import Texts
from affectlens.stage import LIVE

CHECKPOINT, STATE = "checkpoint", "state.safetensors"
"""In a part's folder while it is trained."""
SUMMARY = "training.json"
RECORDS = 30
"""Points of a loss curve, about."""


@dataclass(frozen=True)
class Axis:
    """What a set-point moves along.

    Attributes:
        along: unit vector by layer: the axis, or the twin's random one.
        sizes: unit vector by layer whose spread over benign tokens is a dose of 1: the axis itself, for twins too.
    """

    along: Mapping[int, Float[np.ndarray, "d_model"]]
    sizes: Mapping[int, Float[np.ndarray, "d_model"]]


def require_peft() -> None:
    """Refuse to train where peft is not installed.

    Raises:
        UserError: says what to install.
    """
    if importlib.util.find_spec("peft") is None:
        raise UserError(
            "arms are trained with peft, which is not installed; install it with `pip install 'affectlens[shape]'`, or "
            "leave the trained arms out of `shape.arms`"
        )


def tuning(arm: Arm, config: ShapeConfig) -> TuningConfig:
    """Steps, batch and learning rate of an arm."""
    rates = {"calm_dpo": config.dpo_learning_rate, "set_point": config.set_point_learning_rate}
    return TuningConfig(
        steps=config.steps,
        batch=config.batch,
        length=config.length,
        seed=arm.seed,
        learning_rate=rates.get(arm.kind, config.learning_rate),
    )


def train(
    arm: Arm,
    model: ModelConfig,
    config: ShapeConfig,
    texts: tuple[Texts, Texts],
    out: Path,
    *,
    models: Path,
    device: str = "cpu",
    axis: Axis | None = None,
    progress: Callable[[float], None] = lambda units: None,
) -> dict[str, Any]:
    """Train an arm and write its adapter, in peft's format, with a summary.

    Args:
        arm: a trained one.
        model: where training starts.
        config: how.
        texts: trained on, and held out.
        out: gets ``adapter_model.safetensors``, ``adapter_config.json`` and ``training.json``; a checkpoint that an
            interrupted run left there is gone on from.
        models: the folder that holds converted models.
        device: where training computes.
        axis: of a set-point.
        progress: called with the steps done.

    Returns:
        The summary: ``curve`` (rows of step, loss, tokens and figures), ``before`` and ``after`` (figures on held-out
        chats), ``tokens``.

    Raises:
        UserError: peft is missing, or the model cannot be loaded.
    """
    require_peft()
    how, depth = tuning(arm, config), None if axis is None else max(axis.along) + 1
    tokenizer = load_tokenizer(model, models)
    out.mkdir(parents=True, exist_ok=True)
    learner = _learner(model, config.rank, how.seed, depth, device, models)
    objective = _objective(arm, config, texts, tokenizer, learner, axis)
    objective.begin(learner)
    with learner.off():
        before = objective.held_out(learner)
    run = _Run(learner, objective, how, out)
    run.train(config.checkpoint_steps, progress)
    summary = {"curve": run.curve, "before": before, "after": objective.held_out(learner), "tokens": run.tokens}
    if isinstance(objective, SetPoint):
        summary["units"] = {str(layer): size for layer, size in objective.units.items()}
    _save(learner.wrapped, shown_name(model.name), out)
    write_json(out / SUMMARY, summary)
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    return summary


def _learner(model: ModelConfig, rank: int, seed: int, depth: int | None, device: str, models: Path) -> Learner:
    """The model in float32 with a fresh adapter; only its first blocks where no more are needed."""
    import peft
    import torch

    base = load_weights(model, device=device, models=models, layers=depth, dtype=torch.float32)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(base, settings)
    wrapped.eval()  # no dropout of the model's own either
    return Learner(wrapped, device, resolve_dtype(model.dtype, device))


def _objective(
    arm: Arm, config: ShapeConfig, texts: tuple[Texts, Texts], tokenizer: Any, learner: Learner, axis: Axis | None
) -> Objective:
    def rows(examples: Sequence[Example]) -> list[Learnt]:
        return [learnt_tokens(tokenizer, each, config.length) for each in examples]

    learnt, held = texts
    if arm.kind == "calm_dpo":
        both = [
            list(zip(rows(written.answered("calm_sft", each)), rows(written.answered("distressed", each)), strict=True))
            for each in texts
        ]
        return Preferences(both[0], both[1], config.beta)
    if arm.kind == "set_point":
        assert axis is not None
        benign = rows(written.answered("filler", learnt))
        with learner.off():
            units = benign_units(projections(learner, benign, axis.sizes), benign, list(axis.sizes))
        return SetPoint(rows(written.shifted(learnt)), rows(written.shifted(held)), axis.along, units, arm.dose)
    return Answers(rows(written.answered(arm.kind, learnt)), rows(written.answered(arm.kind, held)))


class _Run:
    """One training, from its beginning or from a checkpoint.

    Attributes:
        curve: what was recorded.
        tokens: that went through the model while it learnt.
    """

    def __init__(self, learner: Learner, objective: Objective, how: TuningConfig, out: Path) -> None:
        import torch

        self.learner, self.objective, self.how, self.out = learner, objective, how, out
        named = learner.model.named_parameters()
        self.learning = {name: weights for name, weights in named if weights.requires_grad}
        weights = list(self.learning.values())
        self.optimiser = torch.optim.AdamW(weights, lr=how.learning_rate, weight_decay=0.0, fused=device_fuses(learner))
        self.step, self.tokens, self.curve = 0, 0, list[dict[str, float]]()

    def train(self, checkpoint_steps: int, progress: Callable[[float], None]) -> None:
        """To the end. A checkpoint is written every so many steps; whatever breaks off later goes on from there."""
        if (self.out / CHECKPOINT / STATE).is_file():
            self._restore()
            progress(self.step)
        live = (self.out / LIVE).open("a", encoding="utf-8", buffering=1)
        with live:
            for chosen in islice(draws(self.objective.count, self.how), self.step, None):
                figures = self._update(chosen)
                if self.step % max(1, self.how.steps // RECORDS) == 0 or self.step == self.how.steps - 1:
                    self.curve.append({"step": float(self.step), "tokens": float(self.tokens)} | figures)
                    live.write(json.dumps(self.curve[-1]) + "\n")
                self.step += 1
                if self.step % checkpoint_steps == 0 and self.step < self.how.steps:
                    self._keep()
                progress(1)

    def _update(self, chosen: Sequence[int]) -> Figures:
        import torch

        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.step, self.how)
        loss, tokens, figures = self.objective.loss(self.learner, chosen)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.learning.values()), 1.0)
        self.optimiser.step()
        self.tokens += tokens
        return {"loss": float(loss.detach()), **figures}

    def _keep(self) -> None:
        tensors = dict(self.learning)
        for name, weights in self.learning.items():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.optimiser.state[weights].items()}
        facts = {"step": self.step, "tokens": self.tokens, "curve": self.curve}
        (self.out / CHECKPOINT).mkdir(exist_ok=True)
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_safetensors(self.out / CHECKPOINT / STATE, contiguous, {"position": json.dumps(facts)})

    def _restore(self) -> None:
        import torch
        from safetensors import safe_open

        with safe_open(self.out / CHECKPOINT / STATE, "pt", device=self.learner.device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["position"])
        for name, weights in self.learning.items():
            with torch.no_grad():
                weights.copy_(tensors[name])
            found = {
                key: tensors[f"adam.{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"adam.{key}.{name}" in tensors
            }
            self.optimiser.state[weights] = {
                # The fused optimiser walks memory, so its averages must lie in the parameter's own order.
                key: torch.empty_like(weights).copy_(value) if value.shape == weights.shape else value
                for key, value in found.items()
            }
        self.step, self.tokens, self.curve = facts["step"], facts["tokens"], facts["curve"]


def device_fuses(learner: Learner) -> bool:
    """Whether torch has a fused AdamW there."""
    return learner.device.partition(":")[0] in ("cpu", "cuda")


def _save(wrapped: Any, name: str, out: Path) -> None:
    """The adapter in peft's format, the same bytes for the same training: keys sorted, no path of this machine."""
    saved = out / "saved"
    wrapped.save_pretrained(saved)
    settings = json.loads((saved / ADAPTER).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = name
    if isinstance(settings.get("target_modules"), list):
        settings["target_modules"] = sorted(settings["target_modules"])
    write_json(out / ADAPTER, dict(sorted(settings.items())))
    (saved / WEIGHTS).replace(out / WEIGHTS)
    shutil.rmtree(saved)
