"""``affectlens config`` and ``affectlens concepts``: what a study file may say, and which concepts have stories."""

from __future__ import annotations

import json
import re
import types
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from affectlens.config import Config as ConfigClass
from affectlens.config import nearest
from affectlens.entry import Debug, printable
from affectlens.errors import ConfigError


@dataclass(frozen=True)
class Key:
    """One key of a study file.

    Attributes:
        name: dotted, as on the command line.
        kind: its type in words.
        default: as YAML writes it; ``required`` where there is none; empty for a section.
        meaning: what it is for.
    """

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A config class: its name as a prefix (empty at the top), what it is, and its keys."""

    name: str
    about: str
    keys: tuple[Key, ...]


def sections(prefix: str, config: type[ConfigClass]) -> Iterator[Section]:
    """A config class, followed by those of its fields.

    Args:
        prefix: of its keys, with the dot; empty at the top.
        config: the class.
    """
    nested: list[tuple[str, type[ConfigClass]]] = []
    keys = []
    for name, field in config.model_fields.items():
        key = f"{prefix}{name}"
        nested += [(f"{key}.", each) for each in _config_classes(field.annotation)]
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else "" if isinstance(value, ConfigClass) else plain(value)
        keys.append(Key(key, kind(field.annotation), default, " ".join((field.description or "").split())))
    yield Section(prefix.rstrip("."), " ".join((config.__doc__ or "").split("\n\n")[0].split()), tuple(keys))
    for inner, each in nested:
        yield from sections(inner, each)


def _config_classes(annotation: Any) -> list[type[ConfigClass]]:
    if isinstance(annotation, type) and issubclass(annotation, ConfigClass):
        return [annotation]
    return [each for argument in typing.get_args(annotation) for each in _config_classes(argument)]


def kind(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kind(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{plain(each)}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(each) for each in arguments))
    if origin in (tuple, list):
        return f"list of {kind(arguments[0])}"
    if origin is not None and arguments:
        return f"mapping to {kind(arguments[-1])}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    names[type(None)] = "nothing"
    if isinstance(annotation, type) and issubclass(annotation, ConfigClass):
        return "section"
    return names.get(annotation, re.sub(r"^.*\.", "", getattr(annotation, "__name__", str(annotation))))


def plain(value: Any) -> str:
    """A default as it is written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(plain(each) for each in value)}]"
    return str(value)


def config(
    names: Annotated[
        list[str] | None, typer.Argument(help="Keys or sections, as sae or sae.k; all by default.", metavar="[KEY]...")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON Schema of study files, for editors.")] = False,
    debug: Debug = False,
) -> None:
    """List the keys of a study file with their types, defaults and meaning.

    Examples: [bold]affectlens config sae[/bold], [bold]affectlens config model.dtype[/bold], [bold]affectlens config
    --schema > study.schema.json[/bold]
    """
    from affectlens.study import StudyConfig

    if schema:
        print(json.dumps(StudyConfig.model_json_schema(), indent=1, ensure_ascii=False))
        return
    keys = [key for section in sections("", StudyConfig) for key in section.keys]
    for name in names or ():
        if not any(key.name == name or key.name.startswith(f"{name}.") for key in keys):
            raise ConfigError(f"there is no key `{name}`; {nearest(name, [key.name for key in keys])}")
    for key in keys:
        if not names or any(key.name == name or key.name.startswith(f"{name}.") for name in names):
            print(f"{key.name}: {key.kind}" + (f" ({key.default})" if key.default else ""))
            if key.meaning:
                print(f"    {key.meaning}")


def concepts(
    contains: Annotated[str, typer.Argument(help="Only concepts with these letters in their name.")] = "",
    stories: Annotated[
        str, typer.Option(help="A file of stories as for corpus.stories; the embedded ones by default.")
    ] = "embedded",
    to_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List the concepts that have stories: topics, stories, and ratings of valence and arousal from 1 to 9.

    Example: [bold]affectlens concepts calm[/bold]
    """
    from affectlens.corpus.documents import CorpusConfig
    from affectlens.corpus.documents import stories as read_stories
    from affectlens.corpus.ratings import EMBEDDED_RATINGS, read_ratings
    from affectlens.corpus.texts import texts_path

    if not texts_path("stories", stories).is_file():
        raise ConfigError(f"--stories {stories}: no such file; give a JSONL file, or `embedded`")
    rows, ratings = read_stories(CorpusConfig(stories=stories)), read_ratings(EMBEDDED_RATINGS)
    counts = Counter(row["emotion"] for row in rows)
    topics = {name: len({row["topic"] for row in rows if row["emotion"] == name}) for name in counts}
    found = [
        {"concept": name, "stories": counts[name], "topics": topics[name]}
        | {axis: ratings.get(name, {}).get(axis) for axis in ("valence", "arousal")}
        for name in sorted(counts)
        if contains.lower() in name.lower()
    ]
    if not found:
        raise ConfigError(
            f"no concept has `{contains}` in its name; {nearest(contains, sorted(counts), 'affectlens concepts')}"
        )
    if to_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    width = max(len(str(row["concept"])) for row in found)
    print(f"{'concept':{width}}  stories  topics  valence  arousal")
    for row in found:
        rated = "  ".join(" " * 7 if row[axis] is None else f"{row[axis]:7.1f}" for axis in ("valence", "arousal"))
        print(f"{printable(str(row['concept'])):{width}}  {row['stories']:7d}  {row['topics']:6d}  {rated}")
