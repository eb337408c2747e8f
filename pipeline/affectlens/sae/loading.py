"""Opening the SAEs of others through sae-lens: one float32 inference module, whatever the files look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from affectlens.errors import Unavailable, UserError
from affectlens.sae.formats import describe, recognise
from affectlens.sae.source import LoadConfig

if TYPE_CHECKING:
    from sae_lens import SAE

UNIT = 0.01
"""By how much the length of decoder rows may differ from 1 without being folded."""
REASON = 300
"""Letters of a library's message that are passed on."""


def load(source: LoadConfig, *, mean_norm: float) -> SAE[Any]:
    """The SAE in eval mode, on the processor, float32, with everything folded in that is the same for all tokens.

    What is folded: one factor on all activations, and (for TopK with ``rescale_acts_by_decoder_norm``) the lengths of
    decoder rows, so that a feature's activation is the length of what it writes.

    Args:
        source: where it is.
        mean_norm: mean Euclidean norm of the study's residuals, for SAEs that expect activations of norm
            sqrt(width) and do not bring the factor.

    Raises:
        UserError: it cannot be opened, or its weights are not finite.
    """
    from sae_lens import SAE

    scale, settings = None, {}
    try:
        if source.path is not None:
            folder = source.path.expanduser()
            origin, form = describe(folder), recognise(folder)
            if origin.refusal:
                raise ValueError(origin.refusal)
            scale = origin.scale
            settings, weights = form.convert(folder, "cpu")

            def converted(path: Any, device: str = "cpu", cfg_overrides: Any = None) -> Any:
                return settings | (cfg_overrides or {}), {name: value.float() for name, value in weights.items()}

            module = SAE.load_from_disk(folder, device="cpu", dtype="float32", converter=converted)
        else:
            assert source.release is not None
            assert source.id is not None
            module = SAE.from_pretrained(source.release, source.id, device="cpu", dtype="float32")
            settings = module.cfg.to_dict()
    except Exception as error:
        # The first line of torch's message says nothing; the key that does not fit stands in the next.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON]
        raise Unavailable(
            f"{source.key}: sae-lens cannot open it ({reason}); check the files, or the network"
        ) from error
    broken = [name for name, value in module.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{source.key}: {broken[0]} holds values that are not finite (NaN); take a sound copy of the SAE"
        )
    if module.cfg.normalize_activations == "expected_average_only_in":
        module.fold_activation_norm_scaling_factor(scale or module.cfg.d_in**0.5 / mean_norm)
    # Rows whose length is 1 but for rounding stay as they are.
    if settings.get("rescale_acts_by_decoder_norm") and (module.W_dec.norm(dim=1) - 1).abs().max() > UNIT:
        module.fold_W_dec_norm()
        if "topk" in module.cfg.architecture():
            module.cfg.rescale_acts_by_decoder_norm = False
    module.requires_grad_(False)
    return module.eval()
