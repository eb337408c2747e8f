"""Make answers a Python that will not do in one sentence, before it installs anything; cleaning keeps results."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHONS = {
    "python3.10": 'case "$1" in -c) exit 1;; --version) echo Python 3.10.12;; esac',
    "python-without-venv": 'case "$2" in *venv*) exit 1;; esac; exec python3 "$@"',
}


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name, script in PYTHONS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("python", "said"),
    [("./python3.10", "Python 3.10.12"), ("./python-without-venv", "venv"), ("./no-such-python", "no-such-python")],
)
def test_a_python_that_will_not_do_is_named_at_once(python, said, checkout):
    done = subprocess.run(
        ["make", "install", f"PYTHON={python}", "UV="], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    first = done.stderr.splitlines()[0]
    assert said in first
    assert "Traceback" not in done.stderr
    assert not (checkout / ".venv").exists()


def test_cleaning_keeps_results_unless_they_are_named(checkout):
    result = checkout / "cache" / "corpus" / "0123" / "manifest.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    (checkout / "cache" / "README.md").write_text("kept")
    (checkout / ".venv").mkdir()
    subprocess.run(["make", "clean"], cwd=checkout, check=True, capture_output=True)
    assert result.is_file()
    assert not (checkout / ".venv").exists()
    subprocess.run(["make", "clean-cache"], cwd=checkout, check=True, capture_output=True)
    assert [path.name for path in (checkout / "cache").rglob("*")] == ["README.md"]
