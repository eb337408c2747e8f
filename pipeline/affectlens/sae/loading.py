"""Opening the SAEs of others through sae-lens: one float32 inference module, whatever the files look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from affectlens.errors import UserError
from affectlens.sae.formats import describe, recognise
from affectlens.sae.source import LoadConfig

if TYPE_CHECKING:
    from sae_lens import SAE

REASON = 300
"""Letters of a library's message that are passed on."""


def load(source: LoadConfig, *, mean_norm: float) -> SAE[Any]:
    """The SAE in eval mode, on the processor, float32, with activation normalisation folded into its weights.

    Args:
        source: where it is.
        mean_norm: mean Euclidean norm of the study's residuals, for SAEs that expect activations of norm
            sqrt(width) and do not bring the factor.

    Raises:
        UserError: it cannot be opened, it normalises every token by itself, or its weights are not finite.
    """
    from sae_lens import SAE

    scale = None
    try:
        if source.path is not None:
            folder = source.path.expanduser()
            origin, form = describe(folder), recognise(folder)
            if origin.refusal:
                raise ValueError(origin.refusal)
            scale = origin.scale

            def convert(path: Any, device: str = "cpu", cfg_overrides: Any = None) -> Any:
                settings, weights = form.convert(folder, device)
                return settings | (cfg_overrides or {}), {name: value.float() for name, value in weights.items()}

            module = SAE.load_from_disk(folder, device="cpu", dtype="float32", converter=convert)
        else:
            assert source.release is not None
            assert source.id is not None
            module = SAE.from_pretrained(source.release, source.id, device="cpu", dtype="float32")
    except Exception as error:
        # The first line of torch's message says nothing; the key that does not fit stands in the next.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON]
        raise UserError(f"{source.key}: sae-lens cannot open it ({reason}); check the files, or the network") from error
    broken = [name for name, value in module.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{source.key}: {broken[0]} holds values that are not finite (NaN); take a sound copy of the SAE"
        )
    fold_normalisation(module, scale or module.cfg.d_in**0.5 / mean_norm, source.key)
    module.requires_grad_(False)
    return module.eval()


def fold_normalisation(module: SAE[Any], scale: float, key: str) -> None:
    """Make the SAE read and write raw residuals.

    Args:
        scale: what residuals are multiplied by before they are encoded, where the SAE expects that.

    Raises:
        UserError: the normalisation is not one factor for all tokens.
    """
    kind = module.cfg.normalize_activations
    if kind == "expected_average_only_in":
        module.fold_activation_norm_scaling_factor(scale)
    elif kind not in ("none", None):
        raise UserError(
            f"{key}: normalises each token by itself ({kind}), so a feature has no fixed size in the residual stream; "
            "choose an SAE without that"
        )
