"""From a YAML file and ``key=value`` overrides to a checked, frozen config, or one sentence that says what is wrong."""

from __future__ import annotations

import copy
import difflib
import types
import typing
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from affectlens.errors import ConfigError


class Config(pydantic.BaseModel):
    """Base of every config class: frozen, unknown keys refused, numbers finite and within 64 bits, docstrings under
    fields are their help."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @pydantic.field_validator("*")
    @classmethod
    def _within_64_bits(cls, value: Any) -> Any:
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, int) and abs(each) >= 2**63:
                raise ValueError("a number with too many digits")
        return value

    def on_machine(self, type_name: Callable[[str], str]) -> Config:
        """The same with every number type that `auto` leaves to the machine as it is on this one.

        Args:
            type_name: from ``auto`` or the name of a type to the name of the type.
        """
        return self


C = TypeVar("C", bound=Config)
MERGE_ONLY: dict[str, Any] = {"merge_only": True}
"""``json_schema_extra`` of a field that ``finish`` alone reads: a change of it recomputes the merge and no part."""
LOCATION: dict[str, Any] = {"location": True}
"""``json_schema_extra`` of a field that says where something lies whose content is an identity of the stage: it never
enters a fingerprint."""
LARGEST_FILE, MOST_VALUES, DEEPEST = 10_000_000, 200_000, 40
"""Bytes, values (aliases counted as often as they stand), and levels of a study file; far more than any needs."""


def left_out(kind: type[Config], *, measured: bool) -> set[str]:
    """Fields of a section that no fingerprint is taken over; with ``measured``, those that parts do not read too."""
    marks = {"location", "merge_only"} if measured else {"location"}
    return {
        name
        for name, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and marks & set(field.json_schema_extra)
    }


K = TypeVar("K", bound=type[Any])


class Registry(dict[str, K]):
    """Classes by name, filled by decorators; a module that is imported again replaces its own.

    Args:
        what: the registered things are called in errors.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def add(self, name: str, made: K) -> K:
        """Register a class.

        Raises:
            ValueError: another class has the name already.
        """
        present = self.setdefault(name, made)
        if (present.__module__, present.__qualname__) != (made.__module__, made.__qualname__):
            raise ValueError(f"{self.what} `{name}` is registered already, by {present.__module__}")
        self[name] = made
        return made

    def read(self, value: Any, kind: Any, config_class: Callable[[K], type[C]]) -> C:
        """The section of a registered class.

        Args:
            value: the section.
            kind: the name.
            config_class: the config of a registered class.

        Raises:
            ValueError: there is no such name, or the section does not fit it.
        """
        if kind not in self:
            article = "an" if self.what[0] in "aeiou" else "a"
            raise ValueError(f"`kind: {kind}` is not {article} {self.what}; {nearest(str(kind), sorted(self))}")
        try:
            return validate(config_class(self[kind]), dict(value), f"{self.what} `{kind}`")
        except ConfigError as error:
            raise ValueError(str(error)) from None


def renamed(values: Any, names: Mapping[str, str], section: str) -> Any:
    """A section with the keys of the last release under the names that they have now, each named in a warning.

    Args:
        values: of the section; what is no mapping is returned as it is.
        names: new names by former ones.
        section: for the warning.
    """
    if not isinstance(values, Mapping):
        return values
    for former in names.keys() & values.keys():
        message = f"`{section}.{former}` is called `{names[former]}` now; it goes with the next release"
        warnings.warn(message, FutureWarning, stacklevel=3)
    return {names.get(name, name): value for name, value in values.items()}


class _Loader(yaml.SafeLoader):
    """YAML without surprises: a key that stands twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    """The value that YAML text holds, every alias a copy of its own.

    Raises:
        ValueError: what is wrong, with the line where it is known.
    """
    try:
        return _plain(yaml.load(text, _Loader), DEEPEST, [MOST_VALUES])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        spaces = "; indent with spaces, not tabs" if "'\\t'" in problem else ""
        raise ValueError(f"{line}{problem}{spaces}") from None
    except RecursionError:
        raise ValueError("nested too deeply, or an alias that holds itself") from None
    except (ValueError, OverflowError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"a value that is none ({_short(error)})") from None


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    """A copy in which nothing is shared."""
    left[0] -= 1
    if left[0] < 0:
        raise yaml.MarkedYAMLError(problem="too many values; do aliases multiply?")
    if depth < 0:
        raise RecursionError
    if isinstance(value, dict):
        return {str(key): _plain(item, depth - 1, left) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth - 1, left) for item in value]
    if isinstance(value, str) and "\0" in value:
        raise ValueError("a text with a NUL character")
    return value


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors write.

    Raises:
        ConfigError: it cannot be read, or is in another encoding.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path} line {line}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def read_yaml(path: Path, what: str = "study file") -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: of the file.
        what: it is called in errors.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold a mapping.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give the path of a {what}")
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")], n=1, cutoff=0.5)
        hint = f"; did you mean {path.parent / near[0]}.yaml?" if near else f"; give the path of a {what}"
        raise ConfigError(f"{path}: no such file{hint}")
    if path.stat().st_size > LARGEST_FILE:
        raise ConfigError(f"{path}: larger than {LARGEST_FILE // 1_000_000} MB; give the path of a {what}")
    try:
        loaded = _parse(read_text(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML ({error}); correct it") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}, not a mapping; write `key: value` lines")
    return loaded


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``values`` with each ``dotted.key=value`` set; the value is read as YAML.

    Raises:
        ConfigError: an override without ``=``, or whose value is no YAML.
    """
    result: dict[str, Any] = copy.deepcopy(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override `{override}`: expected key=value, for example sae.k=64")
        try:
            value = _parse(text)
        except ValueError as error:
            raise ConfigError(f"override `{override}`: `{text}` is not valid YAML ({error}); quote it") from None
        *parents, leaf = key.strip().split(".")
        target = result
        for name in parents:
            # `sae.load.path=...` over `load: embedded`: the value gives way, and the check says whether it may.
            if not isinstance(target.get(name), dict):
                target[name] = {}
            target = target[name]
        target[leaf] = value
    return result


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
        faults: dict[str, list[Fault]] = {}
        for details in error.errors():
            fault = Fault.of(kind, details)
            faults.setdefault(fault.key, []).append(fault)
        # An unknown key explains most of the other faults of its section, so it is named first.
        first = min(faults.values(), key=lambda group: group[0].type != "extra_forbidden")
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(f"{source}: {_explain(first)}{more}") from None


PLAIN = {
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "int_parsing_size": "a number with too many digits",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected a text; put it in quotes",
    "path_type": "expected a path",
    **dict.fromkeys(
        ("date_type", "date_parsing", "date_from_datetime_parsing", "date_from_datetime_inexact"),
        "expected a date, as in 2026-01-31",
    ),
    "tuple_type": "expected a list, as in [a, b]",
    "list_type": "expected a list, as in [a, b]",
    "dict_type": "expected a section of `key: value` lines",
    "model_type": "expected a section of `key: value` lines",
    "model_attributes_type": "expected a section of `key: value` lines",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "needs at least {min_length} entries",
    "too_long": "has more than {max_length} entries",
    "string_too_short": "needs at least {min_length} characters",
    "string_too_long": "has more than {max_length} characters",
    "literal_error": "choose {expected}",
    "enum": "choose {expected}",
}
"""What pydantic's faults are called here, by their type."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a value.

    Attributes:
        key: dotted, as in an override.
        type: pydantic's name of the fault.
        message: one clause without subject.
        value: what was given.
        allowed: keys of the section that the key lies in.
    """

    key: str
    type: str
    message: str
    value: Any
    allowed: tuple[str, ...]

    @classmethod
    def of(cls, kind: type[Config], details: Any) -> Fault:
        """From pydantic's description; its names of the members of a union are no part of the key."""
        section: type[Config] | None = kind
        allowed, annotation, description, path = tuple(kind.model_fields), None, "", []
        for part in details["loc"]:
            if isinstance(part, int) or (annotation is not None and _is_mapping(annotation)):
                path.append(str(part))
                continue
            field = section.model_fields.get(part) if section else None
            if field is not None:
                path.append(part)
                annotation, description = field.annotation, field.description or ""
                allowed = tuple(section.model_fields) if section else allowed
                members = _config_classes(annotation)
                section = members[0] if members else None
            elif details["type"] == "extra_forbidden" and part == details["loc"][-1]:
                path.append(part)
                allowed = tuple(section.model_fields) if section else allowed
            else:
                section = next((member for member in _config_classes(annotation) if member.__name__ == part), section)
        message = details["msg"].removeprefix("Value error, ")
        if details["type"] in PLAIN:
            bounds = {name: int(x) if x in (0.0, 1.0) else x for name, x in details.get("ctx", {}).items()}
            message = PLAIN[details["type"]].format(**bounds)
            if details["type"].startswith("model_") and section is not None:
                message += f", as in {{{next(iter(section.model_fields))}: ...}}"
        elif details["type"] == "string_pattern_mismatch":
            form = description.partition(". ")[0].rstrip(".")
            message = f"not of the form that is allowed here: {form[:1].lower() + form[1:]}"
        return cls(".".join(path), details["type"], message, details.get("input"), allowed)


def _explain(faults: Sequence[Fault]) -> str:
    """One sentence for the faults of one key; of a union, what every member would have taken."""
    fault = faults[0]
    if fault.type == "extra_forbidden":
        name = fault.key.rpartition(".")[2]
        within = [each for each in fault.allowed if name.endswith(f"_{each}")]  # `sae_id`, where `id` is meant
        return f"unknown key `{fault.key}`; {nearest(within[0] if within else name, sorted(fault.allowed))}"
    if fault.type == "missing":
        return f"`{fault.key}` is missing; add it"
    if fault.type == "value_error":
        return f"`{fault.key}`: {fault.message}" if fault.key else fault.message
    return f"`{fault.key}: {_short(fault.value)}`: {', or '.join(dict.fromkeys(each.message for each in faults))}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _is_mapping(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _config_classes(annotation: Any) -> list[type[Config]]:
    """The config classes in an annotation, for example in a union or as items of a tuple."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Config) else []
    return [member for argument in typing.get_args(annotation) for member in _config_classes(argument)]


def nearest(name: str, allowed: Sequence[str], listed_by: str = "") -> str:
    """A remedy clause: the closest of ``allowed``, or all of them (the first 40) when none is close.

    Args:
        name: that was given.
        allowed: all that there are.
        listed_by: the command that lists them, named in place of 40 of more than 40.
    """
    # Longer names share letters by chance, so that a likeness of 0.6 is a slip of a key only in short ones.
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6 if len(name) < 8 else 0.7)
    if near:
        return f"did you mean `{near[0]}`?"
    if listed_by and len(allowed) > 40:
        return f"there are {len(allowed)}; `{listed_by}` lists them"
    shown = ", ".join(allowed[:40])
    return f"choose from {shown}" if len(allowed) <= 40 else f"there are {len(allowed)}, among them {shown}"
