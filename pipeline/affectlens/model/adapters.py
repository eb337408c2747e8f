"""Low-rank adapters (LoRA; Hu et al. 2021) in peft's folders: two thin matrices whose product is added to a weight.

Using one takes no peft: the product is merged into the weights. Training one does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from affectlens.errors import UserError
from affectlens.model.config import ADAPTER

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft sets before the names of a model's modules."""
UNKNOWN = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
"""Settings of peft that would change what the two matrices mean."""


def settings_of(folder: Path) -> dict[str, Any]:
    """What peft says of an adapter.

    Raises:
        UserError: it is no plain low-rank adapter.
    """
    path = folder / ADAPTER
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{folder}: has no {ADAPTER}; give the folder of a low-rank adapter") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is no valid JSON; save the adapter again") from None
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise UserError(f"{path}: describes no low-rank adapter (`peft_type: LORA`); give one")
    odd = next((key for key in UNKNOWN if found.get(key)), None)
    if odd is not None or found.get("bias", "none") != "none":
        raise UserError(f"{path}: an adapter with `{odd or 'bias'}` cannot be merged; merge it with peft")
    if not all(isinstance(found.get(key), int | float) and found[key] > 0 for key in ("r", "lora_alpha")):
        raise UserError(f"{path}: names no rank `r` or no `lora_alpha`; save the adapter again")
    return found


def merge(model: Any, folder: Path) -> None:
    """Add what an adapter adds to the weights of a transformers model, in place.

    Args:
        model: whole; its weights are float32.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        UserError: the folder holds no plain low-rank adapter, or one of another model.
    """
    import torch
    from safetensors.torch import load_file
    from transformers.pytorch_utils import Conv1D

    settings = settings_of(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: has no {WEIGHTS}; save the adapter again")
    tensors = load_file(folder / WEIGHTS)
    scale, modules = settings["lora_alpha"] / settings["r"], dict(model.named_modules())
    names = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
    if not names or len(tensors) != 2 * len(names):
        raise UserError(f"{folder / WEIGHTS}: holds other tensors than pairs of low-rank matrices; save it again")
    for name in names:
        module = modules.get(name.removeprefix(PREFIX))
        weight = getattr(module, "weight", None)
        down, up = tensors[f"{name}.lora_A.weight"].float(), tensors.get(f"{name}.lora_B.weight")
        product = None if up is None or up.shape[1] != down.shape[0] else scale * (up.float() @ down)
        if product is not None and isinstance(module, Conv1D):
            product = product.T  # GPT-2 keeps its matrices the other way round
        if product is None or weight is None or weight.shape != product.shape:
            raise UserError(f"{folder}: its matrices for `{name.removeprefix(PREFIX)}` do not fit this model")
        with torch.no_grad():
            weight += product.to(weight)
