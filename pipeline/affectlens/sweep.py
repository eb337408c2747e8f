"""From one study file and overrides with several values to the studies they stand for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from affectlens import shipped
from affectlens.config import read_yaml
from affectlens.errors import ConfigError
from affectlens.study import Study

MOST_STUDIES = 500
"""A slip of the finger multiplies quickly."""
OPENING, CLOSING = "[{(", "]})"


def alternatives(override: str) -> list[str]:
    """The overrides that one with several values stands for: ``sae.k=16,32`` is ``sae.k=16`` and ``sae.k=32``.

    Commas within brackets, braces and quotes do not separate: ``corpus.emotions=[calm,sad]`` is one value.
    """
    key, equals, text = override.partition("=")
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in OPENING or letter in CLOSING:
            depth += 1 if letter in OPENING else -1
        elif letter == "," and depth == 0:
            values.append("")
            continue
        values[-1] += letter
    return [f"{key}{equals}{value.strip()}" for value in values]


def expand(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of the values in ``overrides``, the last key varying fastest.

    Raises:
        ConfigError: an empty or repeated value, no key with several values, or too many combinations.
    """
    choices = [alternatives(override) for override in overrides]
    for override, values in zip(overrides, choices, strict=True):
        if len(set(values)) < len(values) or any(value.endswith("=") for value in values if len(values) > 1):
            raise ConfigError(f"--sweep `{override}`: a value is empty or given twice; give each once")
    if all(len(values) == 1 for values in choices):
        raise ConfigError("--sweep: no key has several values; write for example sae.k=16,32,64")
    combinations = list(itertools.product(*choices))
    if len(combinations) > MOST_STUDIES:
        raise ConfigError(f"--sweep: {len(combinations)} studies; {MOST_STUDIES} at most, leave out some values")
    return combinations


def label(overrides: Sequence[str]) -> str:
    """What tells a study of a sweep from the others: ``k16-layer10``."""
    named = (override.partition("=") for override in overrides)
    words = (f"{key.rsplit('.', 1)[-1]}{value}" for key, _, value in named)
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", word).strip("_") for word in words)


def load(path: Path, overrides: Sequence[str]) -> list[Study]:
    """The studies of a sweep, checked; each carries the values that vary in its name.

    Args:
        path: of the study file, or the name of a shipped study.
        overrides: ``key=value`` with one value or several.

    Raises:
        ConfigError: as :func:`expand` and :meth:`Study.load`.
    """
    combinations, path = expand(overrides), shipped.study_file(path)
    varying = [index for index, override in enumerate(overrides) if len(alternatives(override)) > 1]
    name = next((o.partition("=")[2] for o in overrides if o.startswith("name=")), read_yaml(path).get("name", ""))
    studies = []
    for chosen in combinations:
        own = f"{name}-{label([chosen[index] for index in varying])}"
        rest = [override for override in chosen if not override.startswith("name=")]
        studies.append(Study.load(path, [*rest, f"name={own}"] if name else rest))
    return studies
