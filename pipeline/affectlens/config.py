"""From a YAML file and ``key=value`` overrides to a checked, frozen config, or one sentence that says what is wrong."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import yaml

from affectlens.errors import ConfigError


class Config(pydantic.BaseModel):
    """Base of every config class: frozen, unknown keys refused, docstrings under fields are their help."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold a mapping.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; give the path of a study file"
        raise ConfigError(f"{path}: no such file{hint}")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}); correct that line"
        ) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}, not a mapping; write `key: value` lines")
    return loaded


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``values`` with each ``dotted.key=value`` set; the value is read as YAML.

    Raises:
        ConfigError: an override without ``=``, or one that goes through something that is not a mapping.
    """
    result: dict[str, Any] = _copy(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override `{override}`: expected key=value, for example sae.k=64")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"override `{override}`: `{text}` is not valid YAML; quote it") from None
        *parents, leaf = key.strip().split(".")
        target = result
        for name in parents:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise ConfigError(f"override `{override}`: `{name}` is a value, not a section")
        target[leaf] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def validate(kind: type[C], values: dict[str, Any], source: str) -> C:
    """``values`` as a ``kind``.

    Args:
        kind: the config class.
        values: nested mapping, as read from YAML.
        source: what the error message calls the origin, usually the path of the file.

    Raises:
        ConfigError: with the first fault: the key, the value, what is allowed and the nearest valid name.
    """
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        # An unknown key explains most of the other faults of its section, so it is named first.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(f"{source}: {_explain(kind, faults[0])}{more}") from None


def _explain(kind: type[Config], fault: Any) -> str:
    path = [part for part in fault["loc"] if not (isinstance(part, str) and "[" in part)]
    key = ".".join(str(part) for part in path)
    value = fault.get("input")
    if fault["type"] == "extra_forbidden":
        allowed = sorted(_fields_at(kind, path[:-1]))
        near = difflib.get_close_matches(str(path[-1]), allowed, n=1, cutoff=0.5)
        remedy = f"did you mean `{near[0]}`?" if near else f"allowed here: {', '.join(allowed)}"
        return f"unknown key `{key}`; {remedy}"
    if fault["type"] == "missing":
        return f"`{key}` is missing; add it"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"`{key}`: {message}" if key else message
    message = message[0].lower() + message[1:]
    return f"`{key}: {_short(value)}`: {message}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(kind: type[Config], path: Sequence[str | int]) -> set[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None:
            continue
        nested = _config_class(field.annotation)
        if nested is None:
            return set()
        kind = nested
    return set(kind.model_fields)


def _config_class(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    for argument in typing.get_args(annotation):
        found = _config_class(argument)
        if found is not None:
            return found
    return None


def nearest(name: str, allowed: Sequence[str]) -> str:
    """A remedy clause: the closest of ``allowed``, or all of them (the first 40) when none is close."""
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    shown = ", ".join(allowed[:40])
    return f"choose from {shown}" if len(allowed) <= 40 else f"there are {len(allowed)}, among them {shown}"


class TrackingConfig(Config):
    """What is sent to Weights & Biases. Never part of a fingerprint."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    """`offline` keeps runs in the cache for `wandb sync`; `online` needs an API key. WANDB_MODE can lower it."""
    project: str = pydantic.Field(default="affectlens", pattern=r"^[^/\\#?%:]+$", max_length=128)
    """Where the runs appear."""
    entity: str | None = None
    """User or team that owns the project; the account's own when left out."""
    tags: tuple[Annotated[str, pydantic.Field(min_length=1, max_length=64)], ...] = ()
    """Labels on every run of the study."""
    upload_mb: float = pydantic.Field(default=100.0, ge=0)
    """Results up to this size (megabytes) are uploaded as artifacts; larger ones, and activations always, are recorded
    by reference: where they lie, how large they are, and their sha256."""
    timeout: float = pydantic.Field(default=20.0, gt=0)
    """Seconds to wait for the server when a run is opened, and again for its uploads when the study has ended."""
