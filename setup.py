"""Copies the shipped studies and experiments into the wheel; everything else is declared in pyproject.toml.

They lie beside the source root, where users of a checkout find them, so setuptools does not see them as package data.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStudies(build_py):
    """Copies ``configs/`` and ``experiments/`` into the built package as ``affectlens/shipped/``."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in ("configs", "experiments"):
                target = Path(self.build_lib, "affectlens", "shipped", name)
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))


setup(cmdclass={"build_py": BuildWithStudies})
