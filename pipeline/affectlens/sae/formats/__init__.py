"""The SAE folders of other libraries: one module a format.

A format says by which files it is known, what the SAE in a folder was made for, by its settings alone, and how its
weights become those of a sae-lens SAE with the same feature activations.
"""

from __future__ import annotations

from pathlib import Path

from affectlens.sae.formats import dictionary_learning, gemma_scope, sae_lens, sparsify
from affectlens.sae.formats.base import PER_TOKEN, RESIDUAL, Format, Origin

FORMATS: tuple[Format, ...] = (sae_lens.FORMAT, sparsify.FORMAT, dictionary_learning.FORMAT, gemma_scope.FORMAT)
"""The first whose files are all there is taken."""

__all__ = ["FORMATS", "PER_TOKEN", "RESIDUAL", "Format", "Origin", "content", "describe", "recognise"]


def recognise(folder: Path) -> Format:
    """The format of a folder.

    Raises:
        ValueError: no such folder, or none of the known formats.
    """
    if not folder.is_dir():
        raise ValueError("no such folder; give one that holds an SAE")
    for form in FORMATS:
        if all((folder / file).is_file() for file in form.files):
            return form
    known = "; ".join(f"{form.name}: {' and '.join(form.files)}" for form in FORMATS)
    raise ValueError(f"holds no SAE of a known format ({known}); give the folder of one SAE")


def content(folder: Path) -> list[Path]:
    """The files that decide what the SAE in a folder computes; a README beside them does not.

    Raises:
        ValueError: see :func:`recognise`.
    """
    form = recognise(folder)
    return [folder / name for name in (*form.files, *form.optional) if (folder / name).is_file()]


def describe(folder: Path) -> Origin:
    """What the SAE in a folder was made for.

    Raises:
        ValueError: see :func:`recognise`; or the settings cannot be read.
    """
    form = recognise(folder)
    try:
        return form.describe(folder)
    except Exception as error:  # a foreign file may be wrong in any way: not JSON, too deep, no zip, ...
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{form.files[0]} cannot be read ({reason[:200]}); repair the folder") from None
