"""Writes ``docs/study_file.md``, the reference of every key of a study file, from the config classes.

``make docs`` runs it; a test fails while the page and the classes differ.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from affectlens.config import Config
from affectlens.study import StudyConfig

PAGE = Path(__file__).parent / "study_file.md"
HEAD = """# The study file

Every key of a study file, generated from the config classes. A study names what differs from the defaults; only `name`
must be there. On the command line any key can be changed: every command takes `--set section.key=value`, and those
that take no texts the same without `--set`. A wrong key, a wrong value or a contradiction is answered before any model
loads.
"""


def page() -> str:
    """The whole page."""
    sections: list[str] = [HEAD, *_section("", StudyConfig)]
    return "\n".join(sections)


def _section(prefix: str, config: type[Config]) -> Iterator[str]:
    """A table of one config class, followed by those of its sections."""
    nested: list[tuple[str, type[Config]]] = []
    rows = []
    for name, field in config.model_fields.items():
        key = f"{prefix}{name}"
        inner = _config_classes(field.annotation)
        nested += [(f"{key}.", each) for each in inner]
        if field.is_required():
            default = "required"
        else:
            value = field.get_default(call_default_factory=True)
            default = "" if isinstance(value, Config) else f"`{_plain(value)}`"
        help_text = " ".join((field.description or "").split())
        rows.append(f"| `{key}` | {_type(field.annotation)} | {default} | {help_text} |".replace("\n", " "))
    title = prefix.rstrip(".")
    about = " ".join((config.__doc__ or "").split("\n\n")[0].split())
    yield f"## {f'`{title}`' if title else 'Top level'}\n\n{about}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    yield "\n".join(rows) + "\n"
    for inner_prefix, each in nested:
        yield from _section(inner_prefix, each)


def _config_classes(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [each for argument in typing.get_args(annotation) for each in _config_classes(argument)]


def _type(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{_plain(each)}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(each) for each in arguments))
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is not None and arguments:
        return f"mapping to {_type(arguments[-1])}"
    names = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "true or false",
        Path: "path",
        type(None): "nothing",
    }
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "section"
    return names.get(annotation, re.sub(r"^.*\.", "", getattr(annotation, "__name__", str(annotation))))


def _plain(value: Any) -> str:
    """A default as it is written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(_plain(each) for each in value)}]"
    return str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
