"""The study's section ``activations``: what is read from the model, and how it is stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from affectlens.config import Config

SiteName = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]


Position = Annotated[str, StringConstraints(pattern=r"^(last|answer|(before|end):[A-Za-z0-9_.-]+)$")]


class ActivationsConfig(Config):
    """What is read from the model, and how it is stored."""

    sites: tuple[SiteName, ...] = ("resid_post",)
    """What is read at each layer: the residual stream before and after the block, and what its two halves add to it."""
    token_rows: bool = True
    """Whether values are kept at every text token: SAEs need them, directions do not."""
    token_layers: tuple[int, ...] = ()
    """Further layers whose token rows are kept. The study's layer always is."""
    pooled_layers: tuple[int, ...] = ()
    """Further layers that are kept per text, for comparing layers. Layers with token rows always are."""
    means: bool = True
    """Whether the mean over each text's tokens from `first_token` on is kept."""
    first_token: int = Field(default=50, ge=0)
    """Means are over the text's tokens from this one on: the first tokens say little about the story yet."""
    spans: tuple[Name, ...] = ()
    """Means over these are kept too: a speaker of chats (`user`, `assistant`, ...), or a span that texts name."""
    positions: tuple[Position, ...] = ()
    """Values kept at single tokens: `last`, `answer` (just before it), `before:NAME` or `end:NAME` of a span."""
    window: int = Field(default=2048, ge=16)
    """Most tokens that go through the model at once. Longer texts are cut into windows; none is cut off."""
    overlap: int | None = Field(default=None, ge=0)
    """Tokens of the window before that every further window sees again as context; a quarter of it by default."""
    storage: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the stored token rows. `auto`: as computed."""
    texts_per_part: int = Field(default=48, ge=1)
    """Size of the slices that are computed, stored and resumed as one; a few thousand suit an accelerator."""
    tokens_per_batch: int = Field(default=2048, ge=1)
    """Most tokens, padding included, that go through the model at once. Belongs to the part, not to the machine."""

    @field_validator("sites")
    @classmethod
    def _with_residual(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "resid_post" not in value or len(set(value)) < len(value):
            raise ValueError("name each site once, and resid_post among them; the later stages read it")
        return value

    @field_validator("overlap")
    @classmethod
    def _less_than_window(cls, value: int | None, info: Any) -> int | None:
        if value is not None and value > info.data.get("window", 2 * value) // 2:
            raise ValueError(f"{value} tokens of overlap are more than half a window; lower it or raise `window`")
        return value
