"""SAEs that somebody else trained: which files make one, what they were made for, and whether that is this study.

Nothing here loads weights: a config is checked in a fraction of a second.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from affectlens.config import Config, nearest
from affectlens.model.subject import ModelConfig, Shape

Format = Literal["sae_lens", "sparsify", "dictionary_learning", "gemma_scope"]
FILES: dict[Format, tuple[str, ...]] = {
    "sae_lens": ("cfg.json", "sae_weights.safetensors"),
    "sparsify": ("cfg.json", "sae.safetensors"),
    "dictionary_learning": ("config.json", "ae.pt"),
    "gemma_scope": ("params.npz",),
}
"""The files by which each format is recognised."""
EMBEDDED = Path(__file__).parent.parent / "embedded_sae"
"""The SAE that comes with this package; its card tells what it was made from."""
EMBEDDED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SITES = ("hook_out", "hook_resid_post")
LAYER_NAMES = r"(?:^|[^a-z])(?:layers?[._]|blocks\.)(\d+)"


class LoadConfig(Config):
    """An SAE that somebody else trained: a folder, or an entry of sae-lens's registry."""

    path: Path | None = None
    """A folder as sae-lens, sparsify or dictionary_learning writes it, or one of Gemma Scope with params.npz."""
    release: str | None = None
    """A release of sae-lens's registry, or the hub repository of one that is not registered; with `id`."""
    id: str | None = None
    """The SAE within the release. Published releases are taken to stay as they are."""

    @model_validator(mode="after")
    def _one_source(self) -> LoadConfig:
        if (self.path is None) == (self.release is None) or (self.release is None) != (self.id is None):
            raise ValueError("give either `path`, or `release` and `id`")
        return self

    @property
    def key(self) -> str:
        """How messages name it."""
        if self.path == EMBEDDED:
            return "`sae.load: embedded`"
        return f"`sae.load.path: {self.path}`" if self.path else f"`sae.load.release: {self.release}`, id {self.id}"


@dataclass(frozen=True)
class Origin:
    """What an SAE was made for; None where its files do not say.

    Attributes:
        width: of the activations it reads.
        layer: from 0.
        site: ``hook_resid_post`` for the residual stream after a block.
        model: the model's name.
    """

    width: int | None = None
    layer: int | None = None
    site: str | None = None
    model: str | None = None


def recognise(folder: Path) -> Format:
    """The format of a folder.

    Raises:
        ValueError: no such folder, or none of the known formats.
    """
    if not folder.is_dir():
        raise ValueError("no such folder; give one that holds an SAE")
    for name, files in FILES.items():
        if all((folder / file).is_file() for file in files):
            return name
    known = "; ".join(f"{name}: {' and '.join(files)}" for name, files in FILES.items())
    raise ValueError(f"holds no SAE of a known format ({known}); give the folder of one SAE")


def files(folder: Path) -> tuple[Path, ...]:
    """The files that make the SAE of a folder: what else lies there does not change it.

    Raises:
        ValueError: see :func:`recognise`.
    """
    return tuple(folder / name for name in FILES[recognise(folder)])


def describe(folder: Path) -> Origin:
    """What the SAE in a folder was made for.

    Raises:
        ValueError: see :func:`recognise`; or the settings cannot be read.
    """
    kind = recognise(folder)
    try:
        return {
            "sae_lens": _describe_sae_lens,
            "sparsify": _describe_sparsify,
            "dictionary_learning": _describe_dictionary_learning,
            "gemma_scope": _describe_gemma_scope,
        }[kind](folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its settings cannot be read ({type(error).__name__}: {error}); repair the folder") from None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _describe_sae_lens(folder: Path) -> Origin:
    return from_settings(_read(folder / "cfg.json"))


def from_settings(settings: Mapping[str, Any]) -> Origin:
    """From the content of a sae-lens ``cfg.json``, of version 6 (``metadata``) or before."""
    metadata = settings.get("metadata") or {}
    hook = metadata.get("hook_name") or settings.get("hook_name")
    layer, site = parse_hook(hook)
    return Origin(settings.get("d_in"), layer, site, metadata.get("model_name") or settings.get("model_name"))


def parse_hook(hook: str | None) -> tuple[int | None, str | None]:
    """``blocks.3.hook_resid_post`` -> (3, ``hook_resid_post``); a name of another form is its own site.

    The residual stream before a block is the one after the block before.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook or "")
    if found is None:
        return None, hook
    if found[2] == "hook_resid_pre" and int(found[1]) > 0:
        return int(found[1]) - 1, "hook_resid_post"
    return int(found[1]), found[2]


def _describe_sparsify(folder: Path) -> Origin:
    found = re.fullmatch(r"layers[._](\d+)(?:[._](.+))?", folder.name)
    layer = int(found[1]) if found else None
    site = found[2] if found and found[2] else "hook_resid_post"
    beside = folder.parent / "config.json"
    model = _read(beside).get("model") if beside.is_file() else None
    return Origin(_read(folder / "cfg.json")["d_in"], layer, site, model)


def _describe_dictionary_learning(folder: Path) -> Origin:
    trainer = _read(folder / "config.json")["trainer"]
    submodule = trainer.get("submodule_name") or ""
    site = "hook_resid_post" if not submodule or "resid_post" in submodule else submodule
    return Origin(trainer["activation_dim"], trainer.get("layer"), site, trainer.get("lm_name"))


def _describe_gemma_scope(folder: Path) -> Origin:
    import numpy as np

    with np.load(folder / "params.npz", allow_pickle=False) as arrays:
        width = int(arrays["b_dec"].shape[0])
    found = re.findall(LAYER_NAMES, folder.as_posix())
    return Origin(width, int(found[-1]) if found else None, "hook_resid_post")


def describe_release(release: str, name: str) -> Origin:
    """What a registered SAE was made for, as far as the registry and the local hub cache tell without a download.

    Raises:
        ValueError: no such release, or no such SAE in it.
    """
    entry = registered(release)
    if entry is None:
        if "/" not in release:
            raise ValueError(f"sae-lens {_version()} has no such release; {nearest(release, release_names())}")
        entry = {"repo_id": release, "saes": [{"id": name, "path": name}]}
    paths = {str(row["id"]): str(row["path"]) for row in entry["saes"]}
    if name not in paths:
        raise ValueError(f"the release has no SAE `{name}`; {_nearest_id(name, list(paths))}")
    cached = _cached(entry["repo_id"], f"{paths[name]}/cfg.json")
    if cached is not None:
        found = from_settings(_read(cached))
        return Origin(found.width, found.layer, found.site, found.model or entry.get("model"))
    layers = re.findall(LAYER_NAMES, paths[name])
    return Origin(layer=int(layers[-1]) if layers else None, model=entry.get("model"))


def _nearest_id(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("did") or len(known) <= 12 else f"it has {known[0]}, {known[1]}, ..."


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None


def _registry_lines() -> list[str]:
    spec = importlib.util.find_spec("sae_lens")
    folder = Path(next(iter(spec.submodule_search_locations or [""]))) if spec else Path()
    path = folder / "pretrained_saes.yaml"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def release_names() -> list[str]:
    """All releases of the installed sae-lens's registry."""
    return [line[:-1] for line in _registry_lines() if re.fullmatch(r"[\w.-]+:", line)]


def registered(release: str) -> dict[str, Any] | None:
    """One entry of the registry. Only its own lines are parsed: the whole file takes seconds."""
    import yaml

    lines = _registry_lines()
    if f"{release}:" not in lines:
        return None
    first = lines.index(f"{release}:")
    last = next((n for n in range(first + 1, len(lines)) if re.match(r"\S", lines[n]) and lines[n][0] != "-"), None)
    # The compiled loader is as safe and ten times as fast, but not everywhere.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load("\n".join(lines[first:last]), Loader=loader)[release]


def _version() -> str:
    from importlib.metadata import version

    return version("sae-lens")


def compare(origin: Origin, model: ModelConfig, shape: Shape | None) -> list[str]:
    """Refuse an SAE that was made for something else.

    Returns:
        Warnings: what differs but may be meant.

    Raises:
        ValueError: another width, another site or another layer; one clause without the key.
    """
    if shape is not None and origin.width is not None and origin.width != shape.width:
        raise ValueError(
            f"made for activations of width {origin.width}, but {model.name} has {shape.width}; "
            "choose an SAE of this model"
        )
    if origin.site is not None and origin.site not in SITES:
        raise ValueError(
            f"reads {origin.site}, but studies read the residual stream after a block (hook_resid_post); "
            "choose an SAE of that"
        )
    if origin.layer is not None and origin.layer != model.layer:
        raise ValueError(
            f"made for layer {origin.layer}, but `model.layer` is {model.layer}; set one of them to the other's"
        )
    if origin.model and not same_model(origin.model, model.name):
        return [f"the SAE was made for the model {origin.model}, the study reads {model.name}"]
    return []


def published_name(model: str) -> str:
    """The name under which others know a model of ``model.name``."""
    return EMBEDDED_MODEL if model == "embedded" else model


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: the owner, the case and the path before it do not count."""
    first, second = (Path(published_name(name)).name.lower() for name in (one, other))
    return first == second
