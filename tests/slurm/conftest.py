"""One Slurm for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from slurm_node import SlurmNode, missing


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmNode]:
    """A running Slurm that every command of this process and its children reaches."""
    if absent := missing():
        pytest.skip(f"Slurm cannot be started here; missing: {', '.join(absent)}")
    before = os.environ.get("SLURM_CONF")
    with SlurmNode(tmp_path_factory.mktemp("slurm") / "node") as node:
        os.environ.update(node.environment)
        yield node
    os.environ.pop("SLURM_CONF")
    if before is not None:
        os.environ["SLURM_CONF"] = before
