"""What the page shows besides prose: figures and tables, each a function of the evidence, and findings.

A module that registers a figure, table or finding is all that it takes to add one to the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from affectlens.report import tables
from affectlens.report.draw import Chart
from affectlens.report.evidence import SIGNIFICANT, Evidence, Row, Tally
from affectlens.report.tables import Heading, Table

Said = tuple["Standing", Mapping[str, Any]]
"""What became of a claim, and what the words of a finding name."""
Content = Chart | Table | Mapping[str, Chart] | None
Standing = Literal["shown", "partly shown", "not shown"]
PLACES = ("texts", "directions", "writers", "layers", "features", "health", "methods", "agreement", "makeup", "meaning")
PLACES += ("geometry", "causal", "circuits", "modulation", "experiments", "monitor", "shape")
"""The sections and parts of sections, in the order of the page."""


@dataclass(frozen=True)
class Item:
    """A figure or table of the page.

    Attributes:
        name: id of its element.
        section: where it stands.
        needs: tables (``stage/table``) without whose rows it is left out.
        build: draws it; charts that stand side by side come by the kind of vector.
        block: of its caption.
        words: what a chart draws, for those who cannot see it.
        caption: jinja that may name ``evidence`` and ``kind``; empty: the block with the function's name in
            ``sections/sentences.j2``, where there is one.
        heading: above it.
        narrow: whether a chart takes half the width.
    """

    name: str
    section: str
    needs: Sequence[str]
    build: Callable[[Evidence], Content]
    block: str
    words: str = ""
    caption: str = ""
    heading: str = ""
    narrow: bool = False


@dataclass(frozen=True)
class Conclusion:
    """A function that concludes something, and its words: a template, or the name of a block of templates."""

    name: str
    section: str
    conclude: Callable[[Evidence], Said | None]
    block: str
    text: str = ""


ITEMS: list[Item] = []
FINDINGS: list[Conclusion] = []


def _placed(section: str) -> str:
    if section not in PLACES:
        raise ValueError(f"the page has no section `{section}`; it has {', '.join(PLACES)}")
    return section


def figure(section: str, *needs: str, **more: Any) -> Callable[[Callable[[Evidence], Content]], Any]:
    """Register a function of the evidence as a figure or table. Its name is the id of the element, the first line of
    its docstring says what is drawn; ``more`` are fields of :class:`Item`.

    Raises:
        ValueError: there is no such section.
    """
    _placed(section)

    def register(build: Callable[[Evidence], Content]) -> Callable[[Evidence], Content]:
        words = (build.__doc__ or "").partition("\n")[0]
        ITEMS.append(Item(build.__name__.replace("_", "-"), section, needs, build, build.__name__, words, **more))
        return build

    return register


def table(
    section: str,
    need: str,
    caption: str,
    columns: Mapping[str, Heading],
    *,
    rows: Callable[[Evidence], Sequence[Row]] | None = None,
) -> None:
    """Register a declared table (``stage/table``) under the headings of :func:`affectlens.report.tables.table`;
    ``rows`` prepares them."""

    def build(evidence: Evidence) -> Table:
        return tables.table(caption, rows(evidence) if rows else evidence.rows(need), columns)

    ITEMS.append(Item(need.replace("/", "-"), _placed(section), (need,), build, ""))


def finding(section: str, text: str = "") -> Callable[..., Any]:
    """Register a function that concludes something: its standing, and what its words name; None where it says nothing.

    Args:
        section: that holds the figures.
        text: jinja in up to three paragraphs: the claim, one to three sentences, and what only the section adds.
            Empty: the block with the function's name in ``sections/sentences.j2``.

    Raises:
        ValueError: there is no such section.
    """
    _placed(section)

    def register(conclude: Callable[[Evidence], Said | None]) -> Any:
        FINDINGS.append(Conclusion(conclude.__name__, section, conclude, conclude.__name__, text))
        return conclude

    return register


def standing(tally: Tally, *, level: float | None = None, p: float | None = None) -> Standing:
    """What a count of concepts shows, beside the count to be expected where nothing is there.

    Args:
        tally: of the concepts.
        level: of each concept's test, where the tests are not corrected: the count is held against a binomial one.
            Corrected tests (Benjamini-Hochberg) need none: that a single one passes has at most the corrected level.
        p: of all concepts together, where the stage tests them so; it then decides instead.
    """
    if p is None and level is not None and tally.total:
        from scipy.stats import binom

        p = float(binom.sf(len(tally.shown) - 1, tally.total, level))
    if (p is not None and p > SIGNIFICANT) or (p is None and not tally.shown):
        return "not shown"
    return "partly shown" if tally.missing or tally.unknown or not tally.shown else "shown"


def graded(shown: int, total: int) -> Standing:
    """What so many of several tests that hold show together."""
    return "shown" if shown and shown == total else "partly shown" if shown else "not shown"
