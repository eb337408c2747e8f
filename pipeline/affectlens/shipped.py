"""The studies (``configs/``) and experiments (``experiments/``) that come with the package."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path
from typing import Literal

from affectlens.errors import ConfigError, Unavailable

Shipped = Literal["configs", "experiments"]
NAMES: tuple[Shipped, ...] = ("configs", "experiments")


def folder(name: Shipped) -> Path:
    """Where the shipped files of one sort lie: inside an installed package, or at the top of a checkout."""
    here = Path(__file__).parent
    inside = here / "shipped" / name
    return inside if inside.is_dir() else here.parents[1] / name


def study_file(path: Path) -> Path:
    """The study file that ``path`` means: the file itself, or the shipped one of that name where there is no such file.

    ``quickstart``, ``quickstart.yaml`` and ``configs/quickstart.yaml`` name the shipped quickstart in any folder.

    Raises:
        ConfigError: there is none, but a shipped one of nearly that name.
    """
    if path.exists() or path.parent not in (Path(), Path("configs")):
        return path
    shipped = folder("configs") / path.with_suffix(".yaml").name
    if shipped.is_file():
        return shipped
    theirs, ours = ([file.stem for file in place.glob("*.yaml")] for place in (path.parent, shipped.parent))
    near = difflib.get_close_matches(path.stem, [*theirs, *ours], n=1, cutoff=0.7)
    if near and near[0] not in theirs:
        raise ConfigError(f"{path}: no such file; did you mean `{near[0]}`, which comes along?")
    return path


def experiments_folder(path: Path) -> Path:
    """The folder of experiments that ``path`` means: where the default ``experiments`` is missing, the shipped one."""
    return folder("experiments") if path == Path("experiments") and not path.is_dir() else path


def copy_out(target: Path) -> list[Path]:
    """Copy the shipped studies and experiments into a folder, to be read and changed there.

    Args:
        target: the folder; made if missing. Files that are there already are kept.

    Returns:
        The files that were written.

    Raises:
        UserError: the folder cannot be written.
    """
    written: list[Path] = []
    try:
        for name in NAMES:
            source = folder(name)
            for file in sorted(
                path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts
            ):
                copy = target / name / file.relative_to(source)
                if not copy.exists():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)
                    written.append(copy)
    except OSError as error:
        raise Unavailable(f"{target}: cannot be written ({error.strerror}); choose another folder") from None
    return written
