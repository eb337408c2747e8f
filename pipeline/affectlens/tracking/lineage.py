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
from affectlens.study import Study, stage_named
from affectlens.tracking.interface import Artifact


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
        name=f"{stage.name}-{record['fingerprint'][:16]}",
        type=stage.name,
        files={name: Path(folder) / name for name in sorted(files)},
        reference=not stage.uploads or size > study.config.tracking.upload_mb * 1e6,
        digests=files,
        metadata={
            "fingerprint": record["fingerprint"],
            "bytes": size,
            "files": len(files),
            "sha256": manifest.content_digest(record),
        },
    )


def inputs(study: Study, record: Mapping[str, Any]) -> list[Artifact]:
    """The artifacts that a result was made from."""
    stages = [stage_named(name) for name in record["needs"]]
    records = [(stage, manifest.read(study.folder(stage))) for stage in stages]
    return [artifact(study, stage, found) for stage, found in records if found is not None]
