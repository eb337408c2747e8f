"""SAEs that somebody else trained: where one is, what it was made for, and whether that is this study.

Nothing here loads weights: a config is checked in a fraction of a second.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import model_validator

from affectlens.config import Config, nearest
from affectlens.model.subject import ModelConfig, Shape
from affectlens.sae.formats import RESIDUAL, Origin
from affectlens.sae.formats.base import settings_of
from affectlens.sae.formats.gemma_scope import LAYER_NAMES, other_site
from affectlens.sae.formats.sae_lens import from_settings, parse_hook

EMBEDDED = Path(__file__).parent.parent / "embedded_sae"
"""The SAE that comes with this package; its card tells what it was made from."""
EMBEDDED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


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
        origin = from_settings(settings_of(cached))
        return replace(origin, model=origin.model or entry.get("model"))
    hook = re.search(r"blocks\.\d+\.hook_\w+", f"{name} {paths[name]}")
    layer, site = parse_hook(hook[0] if hook else None)
    if hook is None:
        layers = re.findall(LAYER_NAMES, paths[name])
        layer, site = int(layers[-1]) if layers else None, other_site(f"{entry['repo_id']}/{paths[name]}")
    return Origin(layer=layer, site=site, model=entry.get("model"))


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
    if origin.refusal:
        raise ValueError(origin.refusal)
    if shape is not None and origin.width is not None and origin.width != shape.width:
        raise ValueError(
            f"made for activations of width {origin.width}, but {model.name} has {shape.width}; "
            "choose an SAE of this model"
        )
    if origin.site not in (None, RESIDUAL):
        raise ValueError(
            f"reads {origin.site}, but studies read the residual stream after a block (hook_resid_post); "
            "choose an SAE of that"
        )
    local = Path(model.name).expanduser().is_dir()
    other = bool(origin.model) and not same_model(str(origin.model), model.name)
    if other and origin.width is None and not local and not related(str(origin.model), model.name):
        raise ValueError(
            f"made for the model {origin.model}, but the study reads {model.name}; choose an SAE of this model"
        )
    if origin.layer is not None and origin.layer != model.layer:
        raise ValueError(
            f"made for layer {origin.layer}, but `model.layer` is {model.layer}; set one of them to the other's"
        )
    notes = list(origin.notes)
    if origin.layer is None:
        notes.append(f"nothing in the SAE's files tells its layer; the study takes it for layer {model.layer}")
    return [*notes, *[f"the SAE was made for the model {origin.model}, the study reads {model.name}"] * other]


def published_name(model: str) -> str:
    """The name under which others know a model of ``model.name``."""
    return EMBEDDED_MODEL if model == "embedded" else model


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: the owner, the case and the path before it do not count."""
    first, second = (Path(published_name(name)).name.lower() for name in (one, other))
    return first == second


def related(one: str, other: str) -> bool:
    """Whether one name goes on where the other ends, as those of a base model and what was tuned from it do."""
    first, second = sorted((Path(published_name(name)).name.lower() for name in (one, other)), key=len)
    return second.startswith(first)
