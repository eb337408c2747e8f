"""Every figure of the quickstart, so that a change of numbers is never silent.

``golden/quickstart.json`` holds the metrics of all stages, to four digits, as they were when somebody last looked at
them. A change that mends a fault writes the file again and says in its commit which figures moved and why::

    python tests/test_golden.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "quickstart.json"
ABSOLUTE, RELATIVE = 0.003, 0.01
"""Processors round differently; a figure that moves by more than this is another figure."""
UNTESTED = ("report/",)
"""The size of the page is no finding."""


def figures(cache: Path) -> dict[str, float | None]:
    """Metrics of the quickstart by ``stage/name``. In float32, which every processor has."""
    arguments = [f"cache={cache}", "model.dtype=float32", "tracking.mode=disabled", "compute.device=cpu"]
    study = str(ROOT / "configs" / "quickstart.yaml")
    subprocess.run([sys.executable, "-m", "affectlens.cli", "run", study, *arguments], check=True, cwd=ROOT)
    command = [sys.executable, "-m", "affectlens.cli", "status", study, "--json", *arguments]
    stages = json.loads(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout)["stages"]
    metrics = {f"{stage}/{name}": value for stage, row in stages.items() for name, value in row["metrics"].items()}
    return {name: value for name, value in metrics.items() if not name.startswith(UNTESTED)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_figures_of_the_quickstart_have_not_moved(tmp_path):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    seen = figures(tmp_path)
    assert sorted(seen) == sorted(golden)
    moved = {
        name: (value, seen[name])
        for name, value in golden.items()
        if (None if value is None else pytest.approx(value, abs=ABSOLUTE, rel=RELATIVE, nan_ok=True)) != seen[name]
    }
    assert not moved


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        rounded = {
            name: None if value is None else float(f"{value:.4g}") for name, value in figures(Path(scratch)).items()
        }
    GOLDEN.write_text(json.dumps(rounded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
