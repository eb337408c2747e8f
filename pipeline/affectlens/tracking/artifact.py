"""Files as Weights & Biases keeps them: a named thing with versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """One version.

    Attributes:
        name: letters, digits, ``.``, ``_`` and ``-``.
        type: what it is, for example ``activations``.
        files: by the path that they have inside the artifact.
        reference: record where the files lie and how large they are, without reading or sending them.
        digests: known hashes of files by their path inside; they stand for the contents of references.
        metadata: searchable facts.
    """

    name: str
    type: str
    files: Mapping[str, Path]
    reference: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As :meth:`from_json` takes it."""
        return vars(self) | {"files": {name: str(path.resolve()) for name, path in self.files.items()}}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Artifact:
        """From JSON values."""
        return Artifact(**{**values, "files": {name: Path(path) for name, path in values["files"].items()}})
