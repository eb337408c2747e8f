"""Findings in plain words: what is shown, what loses, and what is not shown. The words: ``sections/sentences.j2``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.report.evidence import SIGNIFICANT, Evidence, Tally
from affectlens.report.registry import FINDINGS, PLACES, Standing
from affectlens.results import format

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Finding:
    """A claim, what became of it, one to three sentences, and what only its section adds."""

    name: str
    section: str
    standing: Standing
    title: str
    text: str
    more: str = ""


@cache
def environment(*, escape: bool) -> Environment:
    """The templates of the page (``escape``) and of the sentences, with the project's number formats as filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([HERE / "templates", HERE / "sections"])
    made = Environment(
        loader=loader, autoescape=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    formats = ("number", "count", "percent", "general", "names")
    made.filters |= {name: getattr(format, name) for name in formats}
    made.filters |= {"p": format.p_value, "interval": lambda ends: format.interval(*ends)}
    made.filters |= {"figure": lambda figure, **how: format.estimate(*figure, **how)}
    made.globals |= {"plural": format.plural, "len": len, "counted": counted, "level": f"{SIGNIFICANT:.0%}"}
    return made


def counted(tally: Tally, what: str) -> str:
    """Of how many concepts something is shown, and of which it is not."""
    has = "has" if len(tally.shown) == 1 else "have"
    text = f"{len(tally.shown)} of {format.plural(tally.total, 'concept')} {has} {what}."
    return text + f" Not shown for: {format.names(tally.missing)}." * bool(tally.missing)


def say(block: str, values: Mapping[str, Any], text: str = "") -> list[str]:
    """The paragraphs of a template: of ``text``, or of a block of the sentences."""
    shared = environment(escape=False)
    template = shared.from_string(text) if text else shared.get_template("sentences.j2")
    part = template.root_render_func if text else template.blocks.get(block, lambda _: "")
    written = "".join(part(template.new_context(dict(values))))
    tidy = (" ".join(each.split()).replace(" .", ".").replace(" ,", ",") for each in written.strip().split("\n\n"))
    return [each for each in tidy if each]


def conclusions(evidence: Evidence) -> list[Finding]:
    """What was found, in the order of the page."""
    found = []
    for each in sorted(FINDINGS, key=lambda each: PLACES.index(each.section)):
        concluded = each.conclude(evidence)
        if concluded:
            badge, values = concluded
            words = say(each.block, {"evidence": evidence, **values}, each.text)
            found.append(Finding(each.name, each.section, badge, *words))
    return found
