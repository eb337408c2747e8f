"""The built wheel, installed without the checkout: what a user gets who has never seen the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The ``affectlens`` command of an environment that holds the wheel and, beside it, what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # Built from a copy: a build leaves folders behind, and what an older one left must not get into the wheel.
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "cache", "build", "*.egg-info", "__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True, cwd=folder)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("affectlens-*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*install, str(wheel)], check=True, cwd=folder, env=clean)
    # A path in a .pth file brings the dependencies, but not the editable install that this environment has.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "env" / "bin" / "affectlens"


def call(program: Path, folder: Path, *arguments: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
    command = [str(program), *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_is_used_and_not_the_checkout(program, tmp_path):
    code = "import affectlens; print(affectlens.__file__)"
    place = subprocess.run(
        [program.parent / "python", "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True
    ).stdout
    assert place.startswith(str(program.parents[1]))


def test_experiments_are_listed_in_an_empty_folder(program, tmp_path):
    assert "blackmail" in call(program, tmp_path, "experiments")


def test_init_then_run_in_an_empty_folder(program, tmp_path):
    call(program, tmp_path, "init")
    assert (tmp_path / "experiments" / "blackmail" / "scenarios.jsonl").is_file()
    small = ["corpus.emotions=[afraid, calm, proud, sad]", "tracking.mode=disabled"]
    call(program, tmp_path, "run", "configs/quickstart.yaml", "--stage", "directions", *small)
    assert "done" in call(program, tmp_path, "status", "quickstart.yaml", *small)
