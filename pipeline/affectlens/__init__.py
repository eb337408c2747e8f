"""AffectLens: measure how a language model represents emotion concepts, and what those representations cause.

What a notebook needs is here, and costs nothing until it is used::

    import affectlens

    study = affectlens.open_study("quickstart")
    study.table("match/concepts")
    study.read("Nobody came, and the lamp is still on.")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affectlens.api import OpenStudy, Steered, open_study, run_study
    from affectlens.config import Config
    from affectlens.sae.architectures import Architecture, architecture
    from affectlens.stage import Part, Stage
    from affectlens.study import Study
    from affectlens.use.monitor import Monitor

__version__ = "0.1.0"

HOMES = {
    "Monitor": "affectlens.use.monitor",
    "OpenStudy": "affectlens.api",
    "Steered": "affectlens.api",
    "open_study": "affectlens.api",
    "run_study": "affectlens.api",
    "Study": "affectlens.study",
    "Config": "affectlens.config",
    "Part": "affectlens.stage",
    "Stage": "affectlens.stage",
    "Architecture": "affectlens.sae.architectures",
    "architecture": "affectlens.sae.architectures",
}
"""Where each public name is defined; it is imported when it is first asked for (PEP 562)."""

__all__ = [
    "Architecture",
    "Config",
    "Monitor",
    "OpenStudy",
    "Part",
    "Stage",
    "Steered",
    "Study",
    "__version__",
    "architecture",
    "open_study",
    "run_study",
]


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module `affectlens` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
