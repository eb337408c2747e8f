"""The model under study: named by one key, loaded once, read and scored.

A *residual site* is written ``resid_post`` at a layer and is transformer-lens's ``blocks.<layer>.hook_out``.
Everything pads on the right and masks by its own count of tokens: left padding silently shifts positions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from affectlens.config import Config
from affectlens.errors import ConfigError, UserError
from affectlens.files import file_digest
from affectlens.model import embedded

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim")


class ModelConfig(Config):
    """Which model is studied, and where in it."""

    name: str = "embedded"
    """`embedded` (SmolLM2-135M-Instruct), the path of a transformers folder, or the name of a hub model."""
    revision: str | None = None
    """Of a hub model: branch, tag or commit."""
    layer: int = Field(default=15, ge=0)
    """The layer whose residual stream (after the block) is studied; from half to two thirds of the depth reads best."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and activations. `auto`: bfloat16 where the device computes in it, else float32."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


@dataclass(frozen=True)
class Shape:
    """Depth and width of a model, known from its configuration alone."""

    layers: int
    width: int


def locate(config: ModelConfig) -> Path | None:
    """The folder with the model's configuration: the given folder, or the hub cache's snapshot.

    None for the embedded model (it may not be converted yet) and for a hub model not downloaded yet.
    """
    if config.name == "embedded":
        return None
    folder = Path(config.name).expanduser()
    if folder.is_dir():
        return folder
    if config.name.startswith((".", "/", "~")):
        raise ConfigError(
            f"`model.name: {config.name}`: no such folder; give `embedded`, a folder with config.json, or a hub name"
        )
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.name, "config.json", revision=config.revision)
    return Path(found).parent if isinstance(found, str) else None


def shape(config: ModelConfig) -> Shape | None:
    """Depth and width without loading weights; None while a hub model is not in the local cache.

    Raises:
        ConfigError: a folder without a usable ``config.json``.
    """
    if config.name == "embedded":
        return Shape(embedded.SHAPE["num_hidden_layers"], embedded.SHAPE["hidden_size"])
    folder = locate(config)
    if folder is None:
        return None
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"`model.name: {config.name}`: the folder has no config.json; save the model there")
    values = json.loads(path.read_text(encoding="utf-8"))
    values = values.get("text_config", values)
    depth = next((values[key] for key in DEPTH_KEYS if key in values), None)
    width = next((values[key] for key in WIDTH_KEYS if key in values), None)
    if depth is None or width is None:
        raise ConfigError(f"`model.name: {config.name}`: {path} names no depth or width; is it a language model?")
    return Shape(int(depth), int(width))


def identity(config: ModelConfig, digest: Any = file_digest) -> str:
    """What the model *is*, by content: file hashes of a folder, or the resolved revision of a hub model.

    Args:
        digest: maps a path to its sha256; the study passes one that remembers unchanged files.
    """
    if config.name == "embedded":
        return "embedded:" + digest(embedded.weights_file())
    folder = locate(config)
    if folder is not None and folder.parent.name == "snapshots":
        return f"hub:{config.name}@{folder.name}"
    if folder is None:
        from huggingface_hub import HfApi

        try:
            return f"hub:{config.name}@{HfApi().model_info(config.name, revision=config.revision).sha}"
        except Exception as error:
            raise UserError(
                f"`model.name: {config.name}`: neither a folder, nor in the local hub cache, nor reachable on the "
                f"hub ({type(error).__name__}); check the name and the network, or give a folder"
            ) from None
    wanted = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".bin", ".jinja", ".model"})
    lines = [f"{path.name} {digest(path)}" for path in wanted]
    return "folder:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def device_names(device: str) -> list[str]:
    """The devices that workers may take, one each: ``auto`` means every accelerator, else the processor.

    Raises:
        UserError: an accelerator was asked for and is not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        if count:
            return [f"cuda:{index}" for index in range(count)]
        return ["mps"] if torch.backends.mps.is_available() else ["cpu"]
    if device.startswith("cuda") and not count:
        raise UserError(f"`compute.device: {device}`: torch sees no CUDA device; use `auto` or `cpu`")
    return [device]


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """The torch type that ``auto`` stands for on this device, or the one that is named."""
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    flags = torch.backends.cpu.get_cpu_capability() if device == "cpu" else ""
    native = device == "cpu" and flags.startswith("AVX512") and _processor_has("avx512_bf16", "amx_bf16")
    return torch.bfloat16 if native else torch.float32


def _processor_has(*flags: str) -> bool:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    line = next((x for x in info.read_text().splitlines() if x.startswith("flags")), "")
    return any(flag in line.split() for flag in flags)


def load_tokenizer(config: ModelConfig, models: Path) -> Any:
    """The model's transformers tokenizer, without its weights."""
    from transformers import AutoTokenizer

    name, options = source(config, models)
    return AutoTokenizer.from_pretrained(name, trust_remote_code=config.trust_remote_code, **options)


def source(config: ModelConfig, models: Path) -> tuple[str, dict[str, Any]]:
    """What transformers is told to load, a folder where there is one, else the hub name; the revision, as options."""
    if config.name == "embedded":
        return str(embedded.model_folder(models, file_digest(embedded.weights_file()))), {}
    folder = locate(config)
    if folder is not None:
        return str(folder), {}
    return config.name, {} if config.revision is None else {"revision": config.revision}


@contextmanager
def loading(config: ModelConfig) -> Iterator[None]:
    """Within, whatever transformers raises over a model becomes one sentence.

    Raises:
        UserError: the model cannot be loaded, with the reason.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"`model.name: {config.name}`: the model could not be loaded ({reason})") from error


@dataclass
class Subject:
    """A loaded language model with its tokenizer.

    Attributes:
        bridge: transformer-lens's ``TransformerBridge``.
        tokenizer: the transformers tokenizer.
        device: where it computes.
    """

    bridge: Any
    tokenizer: Any
    device: str
    dtype: torch.dtype
    shape: Shape
    loaded_layers: int = field(default=0)

    @classmethod
    def load(cls, config: ModelConfig, *, device: str, models: Path, layers: int | None = None) -> Subject:
        """Load the model, or only its first ``layers`` blocks when no more are needed.

        Raises:
            UserError: the model cannot be loaded, with the reason.
        """
        import torch
        import transformers
        from transformer_lens.model_bridge import TransformerBridge

        transformers.utils.logging.disable_progress_bar()
        dtype = resolve_dtype(config.dtype, device)
        with loading(config), torch.no_grad():
            name, options = source(config, models)
            bridge = TransformerBridge.boot_transformers(
                name,
                device=device,
                dtype=dtype,
                hf_config_overrides=None if layers is None else depth_override(config, layers),
                trust_remote_code=config.trust_remote_code,
                **options,
            )
        bridge.eval()
        depth = int(bridge.cfg.n_layers)
        known = shape(config) or Shape(depth, int(bridge.cfg.d_model))
        # Not the bridge's copy of the tokenizer: it is given a begin token where the model has none.
        return cls(bridge, load_tokenizer(config, models), device, dtype, known, depth)

    @cached_property
    def bos(self) -> int | None:
        """The token set before every text: the tokenizer's own begin token, or None where the model has none."""
        return self.tokenizer.bos_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no special token is added, none is hidden in the text."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def pad(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, "rows positions"]:
        """Right-padded token ids with the begin token, where there is one, at position 0 of every row."""
        import torch

        lead = [] if self.bos is None else [self.bos]
        width = max(len(row) for row in rows) + len(lead)
        fill = self.tokenizer.pad_token_id
        fill = (self.tokenizer.eos_token_id or 0) if fill is None else fill
        padded = [[*lead, *row, *[fill] * (width - len(lead) - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.long, device=self.device)

    @property
    def lead(self) -> int:
        """How many positions stand before the first text token in what :meth:`pad` returns."""
        return 0 if self.bos is None else 1

    def residuals(
        self, tokens: Int[Tensor, "rows positions"], layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "rows positions d_model"]]:
        """The residual stream after each of ``layers``; blocks above the highest are not run."""
        import torch

        names = {hook_name(layer): layer for layer in layers}
        with torch.no_grad():
            _, cache = self.bridge.run_with_cache(
                tokens,
                names_filter=list(names),
                stop_at_layer=max(layers) + 1,
                return_cache_object=False,
            )
        return {layer: cache[name] for name, layer in names.items()}

    def log_probabilities(
        self, tokens: Int[Tensor, "rows positions"], hooks: Sequence[tuple[str, Any]] = ()
    ) -> Float[Tensor, "rows positions vocabulary"]:
        """float32 next-token log-probabilities, with forward hooks in place."""
        import torch

        with torch.no_grad(), self.bridge.hooks(fwd_hooks=list(hooks)):
            return torch.log_softmax(self.bridge(tokens).float(), dim=-1)

    def lens_words(self, vectors: Any, count: int = 10) -> list[list[str]]:
        """What each residual direction writes towards: the tokens whose logits it raises most (logit lens).

        The direction is scaled by the gain of the final normalisation and multiplied by the output matrix
        (nostalgebraist 2020, "interpreting GPT: the logit lens"). Only tokens that spell a word are listed.

        Args:
            vectors: array, shape ``directions d_model``.
            count: words a direction.
        """
        import torch

        directions = torch.as_tensor(vectors, dtype=torch.float32, device=self.device)
        gain = dict(self.bridge.ln_final.named_parameters()).get("_original_component.weight")
        if gain is not None:
            directions = directions * gain.detach().float()
        logits = directions @ self.bridge.unembed.W_U.detach().float()
        ranked = logits.argsort(dim=-1, descending=True)[:, : 200 * count].tolist()
        return [self._words(row, count) for row in ranked]

    def _words(self, ids: Sequence[int], count: int) -> list[str]:
        """The first ``count`` different words among tokens that begin one."""
        found: list[str] = []
        for token in ids:
            spelled = self.tokenizer.decode([token])
            word = spelled.strip().lower()
            if spelled[:1].isspace() and word.isalpha() and len(word) > 2 and word not in found:
                found.append(word)
            if len(found) == count:
                break
        return found


def hook_name(layer: int) -> str:
    """transformer-lens's name of the residual stream after block ``layer``."""
    return f"blocks.{layer}.hook_out"


def depth_override(config: ModelConfig, layers: int) -> dict[str, Any]:
    """Options that make transformers build and load only the first ``layers`` blocks."""
    if config.name == "embedded":
        return {"num_hidden_layers": layers}
    folder = locate(config)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    key = next((key for key in DEPTH_KEYS if key in values), "num_hidden_layers")
    cut: dict[str, Any] = {key: layers}
    if "layer_types" in values:
        cut["layer_types"] = values["layer_types"][:layers]
    return cut
