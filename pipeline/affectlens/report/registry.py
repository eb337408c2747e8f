"""What the page shows besides prose: figures and tables, each a function of a table, and findings.

A module that registers a figure, table or finding is all that it takes to add one to the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from affectlens.report.draw import Chart
from affectlens.report.evidence import Evidence
from affectlens.report.sentences import Finding
from affectlens.report.tables import Table

Content = Chart | Table | Sequence[Chart] | None


@dataclass(frozen=True)
class Item:
    """A figure or table of the page.

    Attributes:
        section: where it stands.
        needs: tables (``stage/table``) without whose rows it is left out.
        build: draws it; charts that belong together come as a sequence and stand side by side.
        caption: a jinja template that may name ``evidence``.
        heading: above it.
        narrow: whether a chart takes half the width.
    """

    section: str
    needs: Sequence[str]
    build: Callable[[Evidence], Content]
    caption: str = ""
    heading: str = ""
    narrow: bool = False


PLACES = ("texts", "directions", "layers", "features", "health", "methods", "agreement", "makeup", "meaning")
PLACES += ("geometry", "causal", "experiments")
"""The sections and parts of sections, in the order of the page."""
ITEMS: list[Item] = []
FINDINGS: list[Callable[[Evidence], Iterable[Finding]]] = []


def figure(
    section: str, *needs: str, caption: str = "", heading: str = "", narrow: bool = False
) -> Callable[[Callable[[Evidence], Content]], Callable[[Evidence], Content]]:
    """Register a function of the evidence as a figure or table of a section; the arguments are those of Item.

    Raises:
        ValueError: there is no such section.
    """
    if section not in PLACES:
        raise ValueError(f"the page has no section `{section}`; it has {', '.join(PLACES)}")

    def register(build: Callable[[Evidence], Content]) -> Callable[[Evidence], Content]:
        ITEMS.append(Item(section, needs, build, caption, heading, narrow))
        return build

    return register


def findings(function: Callable[[Evidence], Iterable[Finding]]) -> Callable[[Evidence], Iterable[Finding]]:
    """Register a function that concludes something."""
    FINDINGS.append(function)
    return function
