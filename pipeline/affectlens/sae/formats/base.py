"""What a format of SAE folders is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.files import FLOATING, tensor_heads

if TYPE_CHECKING:
    import torch

    Weights = dict[str, torch.Tensor]

RESIDUAL = "hook_resid_post"
"""The residual stream after a block, in transformer-lens's terms."""
PER_TOKEN = ("layer_norm", "constant_norm_rescale")
"""sae-lens's normalisations of each token by itself: a feature's unit is then another length at each token."""


@dataclass(frozen=True)
class Origin:
    """What an SAE was made for; None where its files do not say.

    Attributes:
        width: of the activations it reads.
        layer: from 0.
        site: ``hook_resid_post`` for the residual stream after a block.
        model: the model's name.
        refusal: why its feature activations cannot be computed here as its own library does; empty if they can.
        notes: conditions of its training that a study does not reproduce.
        scale: factor on residuals before encoding that its training estimated, where the files keep it.
    """

    width: int | None = None
    layer: int | None = None
    site: str | None = None
    model: str | None = None
    refusal: str = ""
    notes: tuple[str, ...] = ()
    scale: float | None = None


@dataclass(frozen=True)
class Format:
    """A format of SAE folders.

    Attributes:
        name: of the library that writes it.
        files: by which it is known.
        describe: reads the settings.
        convert: (folder, device) -> settings of a sae-lens SAE with the same feature activations, and its weights.
        optional: further files that change what the SAE computes, where they are there.
        version: raised when the same folder gives other feature activations than before.
    """

    name: str
    files: tuple[str, ...]
    describe: Callable[[Path], Origin]
    convert: Callable[[Path, str], tuple[dict[str, Any], Weights]]
    optional: tuple[str, ...] = ()
    version: int = 1


def settings_of(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: it holds something else.
    """
    values = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(values, dict):
        raise ValueError(f"holds a {type(values).__name__}, not an object")
    return values


def section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object inside settings; empty where it is left out.

    Raises:
        ValueError: something else stands there.
    """
    inner = values.get(key) or {}
    if not isinstance(inner, dict):
        raise ValueError(f"`{key}` is a {type(inner).__name__}, not an object")
    return inner


def whole(value: Any) -> int | None:
    """A whole number that may be written as text."""
    return None if value is None else int(value)


def tensor_fault(path: Path, needed: set[str], optional: set[str], rows: str, width: Any) -> str:
    """What is wrong with a safetensors file by its header alone; empty where nothing is.

    Args:
        needed, optional: names of tensors; any other is a fault.
        rows: a tensor whose last axis is the width of the activations.
        width: that the settings name.
    """
    try:
        heads = tensor_heads(path)
    except (OSError, ValueError, RecursionError) as error:
        return f"{path.name} cannot be read ({' '.join(str(error).split())[:200]})"
    names = set(heads)
    odd = sorted(needed - names) + sorted(names - needed - optional)
    if odd:
        verb = "lacks" if odd[0] in needed else "holds"
        return f"{path.name} {verb} {', '.join(odd[:3])}; it needs {', '.join(sorted(needed))} and nothing else"
    coded = sorted(name for name in needed if heads[name].kind not in FLOATING)
    if coded:
        return f"{path.name} holds {coded[0]} as {heads[coded[0]].kind}, which are codes without their scale"
    if width is not None and heads[rows].shape[-1:] != (int(width),):
        return f"{path.name} has {rows} of shape {list(heads[rows].shape)}, but the settings say d_in: {width}"
    return ""


def plain_settings(origin: Origin, architecture: str, weights: Weights, **more: Any) -> dict[str, Any]:
    """Settings of a sae-lens SAE for weights in sae-lens's names and shapes (``W_enc``: d_in d_sae)."""
    d_in, d_sae = weights["W_enc"].shape
    return {
        "architecture": architecture,
        "d_in": int(d_in),
        "d_sae": int(d_sae),
        "dtype": "float32",
        "device": "cpu",
        "normalize_activations": "none",
        "metadata": {"model_name": origin.model, "hook_name": f"blocks.{origin.layer}.{origin.site}"},
        **more,
    }
