"""Which model is studied, and what can be known of it without loading it: depth, width, identity, number type."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from affectlens.config import Config
from affectlens.errors import ConfigError, Unavailable, UserError
from affectlens.files import FLOATING, file_digest, require_file, tensor_heads
from affectlens.model import embedded

if TYPE_CHECKING:
    import torch

ADAPTER = "adapter_config.json"
"""What peft keeps beside, or in place of, the weights of a model that needs an adapter."""
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim")


class ModelConfig(Config):
    """Which model is studied, and where in it."""

    name: str = "embedded"
    """`embedded` (SmolLM2-135M-Instruct), the path of a transformers folder or GGUF file, or a hub model's name."""
    revision: str | None = None
    """Of a hub model: branch, tag or commit."""
    layer: int = Field(default=20, ge=0)
    """The layer whose residual stream (after the block) is studied. Left out: two thirds of the model's depth."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and activations. `auto`: bfloat16 where the device computes in it, else float32."""
    template_date: datetime.date = datetime.date(2026, 1, 1)
    """The day that chat templates write which write today's date: fixed, so that equal studies have equal prompts."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")


class Site(NamedTuple):
    """Where in the model: a layer, and one of ``SITES``."""

    layer: int
    name: str = "resid_post"


@dataclass(frozen=True)
class Shape:
    """Depth and width of a model, known from its configuration alone."""

    layers: int
    width: int


def locate(config: ModelConfig) -> Path | None:
    """The folder with the model's configuration, a GGUF file, or the hub cache's snapshot.

    None for the embedded model (it may not be converted yet) and for a hub model not downloaded yet.

    Raises:
        ConfigError: the name is a path, and nothing is there.
    """
    if config.name == "embedded":
        return None
    path = Path(config.name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ConfigError(
            f"`model.name: {config.name}`: a file that is no GGUF file; give the folder that holds the model"
        )
    if config.name.startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise ConfigError(
            f"`model.name: {config.name}`: no such folder or file; give `embedded`, a folder with config.json, a GGUF "
            "file, or a hub name"
        )
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(config.name, "config.json", revision=config.revision)
    except HFValidationError:
        raise ConfigError(
            f"`model.name: {config.name}`: no such folder, and no possible hub name; correct the path"
        ) from None
    return Path(cached).parent if isinstance(cached, str) else None


def settings(config: ModelConfig) -> dict[str, Any] | None:
    """The model's ``config.json``; of the embedded model and of GGUF files, depth and width under transformers' names.

    None while a hub model is not in the local cache.

    Raises:
        ConfigError: there is no such file, or it does not hold a mapping.
    """
    if config.name == "embedded":
        return dict(embedded.SHAPE)
    path = locate(config)
    if path is None:
        return None
    if path.is_file():
        return embedded.gguf_settings(path)
    path = path / "config.json"
    if path.with_name(ADAPTER).is_file():
        raise ConfigError(
            f"`model.name: {config.name}`: holds an adapter ({ADAPTER}), which would be left out; merge it into its "
            "model and save the whole"
        )
    if not path.is_file():
        raise ConfigError(f"`model.name: {config.name}`: the folder has no config.json; save the model there")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeError:
        raise ConfigError(f"`model.name: {config.name}`: {path} is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(
            f"`model.name: {config.name}`: {path} is no valid JSON ({reason}); save the model again"
        ) from None
    if not isinstance(values, dict) or not isinstance(values.get("text_config", {}), dict):
        raise ConfigError(f"`model.name: {config.name}`: {path} does not describe a model; save the model again")
    return values


def require_weights(config: ModelConfig) -> None:
    """Refuse a local folder whose weights are not there in full; only the heads of the files are read.

    Raises:
        ConfigError: names the file that is missing, cut short or no weights, or what is no file at all.
    """
    folder = Path(config.name).expanduser()
    if config.name == "embedded" or not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        with suppress(OSError):  # a link to nothing is no file of the model
            try:
                require_file(path)
            except UserError as error:
                raise ConfigError(f"`model.name: {config.name}`: {error}") from None
    index = folder / "model.safetensors.index.json"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if index.is_file():
        try:
            names = sorted({Path(name).name for name in json.loads(index.read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigError(f"`model.name: {config.name}`: {index.name} is damaged; save the model again") from None
    elif not names and not any(folder.glob("*.bin")):
        raise ConfigError(f"`model.name: {config.name}`: the folder has no weights; save the whole model there")
    quantised = "quantization_config" in (settings(config) or {})
    for name in names:
        try:
            heads = tensor_heads(folder / name)
        except (OSError, ValueError, RecursionError) as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"`model.name: {config.name}`: {name} cannot be read ({words[:200]}); copy or save the model again"
            ) from None
        # A matrix of codes would be read as if they were its values. Vectors of whole numbers are counters and buffers.
        coded = [key for key, head in heads.items() if head.kind not in FLOATING and len(head.shape) > 1]
        coded = [key for key in coded if key.endswith("weight")]
        if coded and not quantised:
            raise ConfigError(
                f"`model.name: {config.name}`: {name} holds {coded[0]} as {heads[coded[0]].kind}, but config.json has "
                "no `quantization_config` that says how to read it; save the model in floating point"
            )


def shape(config: ModelConfig) -> Shape | None:
    """Depth and width without loading weights; None while a hub model is not in the local cache.

    Raises:
        ConfigError: a folder without a usable ``config.json``.
    """
    values = settings(config)
    if values is None:
        return None
    values = values.get("text_config", values)
    depth = next((values[key] for key in DEPTH_KEYS if key in values), None)
    width = next((values[key] for key in WIDTH_KEYS if key in values), None)
    if not all(isinstance(value, int) and value > 0 for value in (depth, width)):
        raise ConfigError(
            f"`model.name: {config.name}`: its config.json names no depth or width; is it a language model?"
        )
    return Shape(int(depth), int(width))  # pyright: ignore[reportArgumentType]


def context(config: ModelConfig) -> int | None:
    """Most positions that the model takes at once; None where its configuration names no limit."""
    values = settings(config) or {}
    values = values.get("text_config", values)
    limit = next((values[key] for key in CONTEXT_KEYS if key in values), None)
    return limit if isinstance(limit, int) and limit > 0 else None


def vocabulary(config: ModelConfig) -> int | None:
    """How many tokens the model has an embedding for; None where its configuration does not say."""
    values = settings(config) or {}
    size = values.get("text_config", values).get("vocab_size")
    return size if isinstance(size, int) and size > 0 else None


def depth_override(config: ModelConfig, layers: int) -> dict[str, Any]:
    """Options that make transformers build and load only the first ``layers`` blocks."""
    values = settings(config) or {}
    key = next((key for key in DEPTH_KEYS if key in values), "num_hidden_layers")
    cut: dict[str, Any] = {key: layers}
    kinds = values.get("layer_types")
    if kinds:
        # transformers cannot run linear attention alone: at least one block of the other kind has to be there.
        other = next((index for index, kind in enumerate(kinds) if kind != "linear_attention"), 0)
        cut = {key: max(layers, other + 1), "layer_types": kinds[: max(layers, other + 1)]}
    return cut


def identity(config: ModelConfig, digest: Callable[[Path], str] = file_digest) -> str:
    """What the model *is*, by content: the hashes of its files, or the resolved revision of a hub model.

    Of a folder every file counts (tokenizer, templates, code of its own) but documents and hidden files.

    Args:
        digest: maps a path to its sha256; the study passes one that remembers unchanged files.

    Raises:
        UserError: a hub model that is neither in the local cache nor reachable.
    """
    if config.name == "embedded":
        return "embedded:" + digest(embedded.weights_file())
    path = locate(config)
    if path is not None and path.is_file():
        return "gguf:" + digest(path)
    if path is not None and Path(config.name).expanduser().is_dir():
        lines = [f"{file.relative_to(path)} {digest(file)}" for file in sorted(path.rglob("*")) if _counts(file, path)]
        return "folder:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if path is not None:
        return f"hub:{config.name}@{path.name}"
    if config.revision is not None and re.fullmatch(r"[0-9a-f]{40}", config.revision):
        return f"hub:{config.name}@{config.revision}"
    from huggingface_hub import HfApi

    try:
        return f"hub:{config.name}@{HfApi().model_info(config.name, revision=config.revision).sha}"
    except Exception as error:
        raise Unavailable(
            f"`model.name: {config.name}`: neither a folder, nor in the local hub cache, nor reachable on the "
            f"hub ({type(error).__name__}); check the name and the network, or give a folder"
        ) from None


def _counts(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and file.suffix.lower() not in {".md", ".png", ".jpg"}


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
        raise Unavailable(f"`compute.device: {device}`: torch sees no CUDA device; use `auto` or `cpu`")
    return [device]


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """The torch type that ``auto`` stands for on this device, or the one that is named. Loads no model."""
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    flags = torch.backends.cpu.get_cpu_capability() if device == "cpu" else ""
    native = device == "cpu" and flags.startswith("AVX512") and _processor_has("avx512_bf16", "amx_bf16")
    return torch.bfloat16 if native else torch.float32


def dtype_name(dtype: str, device: str) -> str:
    """The type that a config means on this machine, as a config names it.

    Args:
        dtype: ``auto`` or a type.
        device: of the section ``compute``.
    """
    if dtype != "auto":
        return dtype
    accelerated = device not in ("auto", "cpu") or sys.platform == "darwin" or Path("/dev/nvidiactl").exists()
    if not accelerated and "ATEN_CPU_CAPABILITY" not in os.environ:
        # Known without the seconds that torch takes to import.
        return "bfloat16" if _processor_has("avx512f") and _processor_has("avx512_bf16", "amx_bf16") else "float32"
    return str(resolve_dtype(dtype, device_names(device)[0])).removeprefix("torch.")


def default_layer(shape: Shape) -> int:
    """Two thirds of the depth, where concepts are read best."""
    return round(shape.layers * 2 / 3)


def _processor_has(*flags: str) -> bool:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    line = next((x for x in info.read_text().splitlines() if x.startswith("flags")), "")
    return any(flag in line.split() for flag in flags)


def shown_name(model: str) -> str:
    """How the page names a model: a hub name as it is, a folder by its last part, the embedded one by its own name."""
    if model == "embedded":
        return "SmolLM2-135M-Instruct"
    return Path(model).name if Path(model).expanduser().is_dir() else model


class TuningConfig(Config):
    """How a copy of a model is trained."""

    steps: int = Field(default=60, ge=1)
    """Updates of the weights."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Of AdamW, after a tenth of the steps; it falls to zero at the end."""
    batch: int = Field(default=2, ge=1)
    """Examples an update."""
    length: int = Field(default=112, ge=8)
    """Most tokens of an example; what is beyond is cut."""
    seed: int = 0
    """Draws the order of the examples."""
    layers: tuple[int, int] | None = None
    """The first and the last block that learn; all others, the embedding and the output stay. All blocks by default."""


def require_blocks(tuning: TuningConfig, model: ModelConfig, key: str) -> None:
    """Refuse blocks to be trained that a model does not have.

    Args:
        tuning: how its copy is trained.
        model: the model.
        key: of the section, for the message.

    Raises:
        ValueError: names the key, and the blocks that there are.
    """
    found = shape(model)
    if tuning.layers is None or found is None:
        return
    first, last = tuning.layers
    if not 0 <= first <= last < found.layers:
        raise ValueError(
            f"`{key}.layers: [{first}, {last}]`: the model has blocks 0 to {found.layers - 1}; give the first "
            "and the last that learn"
        )
