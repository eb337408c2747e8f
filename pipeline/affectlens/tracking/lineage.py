"""Results as artifacts of Weights & Biases, and which were made of which.

An artifact is named after its stage and fingerprint, and holds the files that the manifest lists. So it is the same
whoever computed it, a result computed again is no new version, and a stage can name what it read without asking.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectlens.run import manifest
from affectlens.stage import Stage
from affectlens.study import Study
from affectlens.tracking.artifact import Artifact


def artifact(study: Study, stage: type[Stage[Any, Any]], record: Mapping[str, Any]) -> Artifact:
    """A finished result.

    Args:
        study: whose result; its config says how large it may be to be uploaded.
        stage: that made it. One that does not upload (activations) is always a reference.
        record: its manifest, which holds a host name and times, and is therefore not part of the artifact.
    """
    folder, files = study.folder(stage), record["files"]
    size = sum(record["sizes"].values())
    return Artifact(
        name=_name(stage.name, record["fingerprint"]),
        type=stage.name,
        files={name: Path(folder) / name for name in sorted(files)},
        reference=not stage.uploads or size > study.config.tracking.upload_mb * 1e6,
        digests=files,
        metadata={
            "fingerprint": record["fingerprint"],
            "bytes": size,
            "files": len(files),
            "sha256": manifest.content_digest(record),
            "uses": [_name(need, fingerprint) for need, fingerprint in record["needs"].items()],
        },
    )


def inputs(study: Study, record: Mapping[str, Any]) -> list[Artifact]:
    """The artifacts that a result was made from."""
    stages = [study.stage_named(name) for name in record["needs"]]
    records = [(stage, manifest.read(study.folder(stage))) for stage in stages]
    return [artifact(study, stage, need) for stage, need in records if need is not None]


def _name(stage: str, fingerprint: str) -> str:
    return f"{stage}-{fingerprint[:16]}"
