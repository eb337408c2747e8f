"""Puts the page together: one HTML file that holds its style, its script, its data and plotly, and asks for nothing."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.report import cards, draw, palette, tables
from affectlens.report.draw import Chart
from affectlens.report.evidence import VECTORS, Evidence
from affectlens.report.registry import FINDINGS, ITEMS, PLACES, Content
from affectlens.report.sections import behaviour, causal
from affectlens.report.sections.detection import GATES
from affectlens.report.sentences import Finding, equip
from affectlens.report.tables import Table

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
SECTIONS = (
    ("headline", "What was found"),
    ("texts", "The texts"),
    ("directions", "Directions"),
    ("features", "SAE features"),
    ("methods", "Features against directions"),
    ("meaning", "Words or meaning"),
    ("geometry", "The shape of the concept space"),
    ("causal", "What they cause"),
    ("experiments", "Behavioural experiments"),
    ("limits", "Methods and limits"),
    ("provenance", "Provenance"),
)


def render(
    evidence: Evidence,
    *,
    title: str = "",
    concepts_shown: int = 60,
    contexts_per_feature: int = 3,
    words_per_concept: int = 8,
    theme: palette.Theme = "auto",
    colours: palette.Name = "paper",
) -> str:
    """The page of a study.

    Args:
        evidence: what is shown.
        title: of the page; made from model and layer when empty.
        concepts_shown: concepts with a card of their own, best features first; tables and figures hold all.
        contexts_per_feature: passages on each card.
        words_per_concept: logit-lens words of each direction and feature.
        theme: ``auto`` follows the reader's system.
        colours: name of the palette.

    Returns:
        The HTML. The same evidence and settings give the same bytes.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(HERE / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    equip(environment).globals |= {"gates": GATES}
    evidence = replace(evidence, words=words_per_concept)
    listed = cards.cards(evidence, concepts=concepts_shown, contexts=contexts_per_feature)
    blocks = _blocks(evidence, environment)
    experiments = {row["name"]: behaviour.answers(row) for row in evidence.experiments}
    charts = [each for block in blocks for each, _ in block.charts]
    charts += [chart for answers in experiments.values() for answer in answers for chart, _ in answer.charts]
    figures = {chart.name: chart.spec for chart in charts}
    return environment.get_template("page.html.j2").render(
        evidence=evidence,
        title=title,
        theme=theme,
        sections=[each for each in SECTIONS if experiments or each[0] != "experiments"],
        experiments=experiments,
        style=palette.stylesheet(colours) + (HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        plotly=_plotly(),
        blocks=blocks,
        specifications=_json({"template": {"layout": draw.TEMPLATE}, "figures": figures}),
        tiles=cards.tiles(evidence),
        findings=conclusions(evidence),
        controls=causal.controls(evidence),
        overview=cards.overview(evidence, {card.concept: card.anchor for card in listed}),
        stages=_stages(evidence),
        cards=listed,
        example=next((document for document in evidence.documents if document.emotion), None),
        settings=_yaml(evidence.provenance.config),
    )


def conclusions(evidence: Evidence) -> list[Finding]:
    """What was found, in the order of the page."""
    concluded = [finding for conclude in FINDINGS for finding in conclude(evidence)]
    return sorted(concluded, key=lambda finding: PLACES.index(finding.section))


@dataclass(frozen=True)
class Block:
    """A registered figure or table as the page shows it; charts come with their captions."""

    section: str
    heading: str
    narrow: bool
    charts: Sequence[tuple[Chart, str]]
    table: Table | None


def _blocks(evidence: Evidence, environment: Environment) -> list[Block]:
    """Every registered item whose tables have rows."""
    blocks = []
    for item in ITEMS:
        content: Content = item.build(evidence) if all(evidence.rows(name) for name in item.needs) else None
        if not content:
            continue
        table, charts = (content, []) if isinstance(content, Table) else (None, content)
        charts = [charts] if isinstance(charts, Chart) else charts
        kinds = list(VECTORS.values()) if len(charts) > 1 else [""]
        caption = environment.from_string(item.caption)
        captions = [caption.render(evidence=evidence, kind=kind) for kind in kinds]
        blocks.append(Block(item.section, item.heading, item.narrow, [*zip(charts, captions, strict=False)], table))
    return blocks


def _stages(evidence: Evidence) -> Table:
    """What each figure was computed by."""
    columns = [
        tables.text("Stage", "stage"),
        tables.whole("Version", "version"),
        tables.text("Fingerprint", "fingerprint"),
    ]
    return tables.table("stages", "Stages and fingerprints", evidence.provenance.stages, columns, open=True)


def _json(value: Any) -> str:
    """JSON that may stand inside a script element: it holds no ``<``."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)


def _plotly() -> str:
    """plotly's script, compressed to a third, as text; the page unpacks it without asking anybody."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), compresslevel=9, mtime=0)).decode()
