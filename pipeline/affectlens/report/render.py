"""Puts the page together: one HTML file that holds its style, its script, its data and plotly, and asks for nothing."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from affectlens.report import behaviour, cards, charts, makeup, meaning, palette, sentences, shape, tables
from affectlens.report.evidence import Evidence
from affectlens.report.marks import Chart
from affectlens.report.numbers import count, names, number, percent, plural

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
    environment.filters |= {"number": number, "count": count, "percent": percent, "names": names}
    environment.globals |= {"plural": plural, "len": len, "gates": tables.GATES}
    figures = _figures(evidence)
    experiments = behaviour.sections(evidence)
    listed = cards.cards(evidence, concepts=concepts_shown, contexts=contexts_per_feature, words=words_per_concept)
    return environment.get_template("page.html.j2").render(
        evidence=evidence,
        title=title,
        theme=theme,
        sections=[each for each in SECTIONS if experiments or each[0] != "experiments"],
        experiments=experiments,
        style=palette.stylesheet(colours) + (HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        plotly=_plotly(),
        figures=figures,
        specifications=_json({chart.name: chart.spec for chart in [*_flat(figures.values()), *_drawn(experiments)]}),
        tiles=cards.tiles(evidence),
        findings=[*sentences.findings(evidence), *behaviour.findings(evidence)],
        controls=sentences.controls(evidence),
        not_shown=sentences.not_shown(evidence),
        tables=_tables(evidence, listed, words_per_concept),
        cards=listed,
        example=next((document for document in evidence.documents if document.emotion), None),
        settings=_yaml(evidence.provenance.config),
    )


def _figures(evidence: Evidence) -> dict[str, Any]:
    """Every figure by the name the template uses; causal ones in pairs for directions and features."""
    return {
        "directions": charts.direction_dots(evidence),
        "layers": charts.layer_sweep(evidence),
        "density": charts.density_bars(evidence),
        "features": charts.feature_dots(evidence),
        "methods": charts.method_dots(evidence),
        "duel": charts.duel(evidence),
        "cosines": charts.cosine_dots(evidence),
        "pursuit": makeup.pursuit_lines(evidence),
        "angles": makeup.angle_dots(evidence),
        "pairs": meaning.pair_dots(evidence),
        "layer_agreement": shape.layer_heat(evidence),
        "map": charts.concept_map(evidence),
        "correlations": charts.correlation_dots(evidence),
        "similarity": charts.cosine_heat(evidence),
        **charts.causal_charts(evidence),
    }


def _drawn(experiments: Sequence[behaviour.Section]) -> Iterator[Chart]:
    for section in experiments:
        for answer in section.answers:
            yield from (chart for chart, _ in answer.charts)


def _flat(figures: Any) -> Iterator[Chart]:
    for item in figures:
        if isinstance(item, Chart):
            yield item
        else:
            yield from item


def _tables(evidence: Evidence, listed: Sequence[cards.Card], words: int) -> dict[str, tables.Table]:
    found: Sequence[tables.Table] = (
        tables.overview(evidence, {card.concept: card.anchor for card in listed}),
        tables.quality(evidence),
        tables.directions(evidence, words),
        tables.health(evidence),
        tables.features(evidence, words),
        tables.methods(evidence),
        tables.agreement(evidence),
        meaning.pairs(evidence),
        meaning.confounds(evidence),
        shape.clusters(evidence),
        tables.correlations(evidence),
        tables.effects(evidence),
        tables.verdicts(evidence),
        tables.stages(evidence),
        behaviour.overview(evidence),
    )
    return {table.name: table for table in found}


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
