"""Puts the page of a study together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from affectlens.circuits.tables import CAVEATS
from affectlens.report import cards, frame, palette, sampled, tables
from affectlens.report.draw import Chart
from affectlens.report.evidence import OPERATIONS, VECTORS, Evidence
from affectlens.report.registry import ITEMS, Item
from affectlens.report.sections import behaviour, causal
from affectlens.report.sections.detection import GATES
from affectlens.report.sentences import conclusions, environment, say
from affectlens.report.tables import Table

SECTIONS = {
    "headline": "What was found",
    "texts": "The texts",
    "directions": "Directions",
    "features": "SAE features",
    "methods": "Features against directions",
    "meaning": "Words or meaning",
    "writers": "Beyond the writer",
    "geometry": "The shape of the concept space",
    "causal": "What they cause",
    "circuits": "Circuits",
    "modulation": "Speaking by a circuit",
    "experiments": "Behavioural experiments",
    "monitor": "Warning before the act",
    "shape": "Calmer, or only a calmer text?",
    "samples": "Sampled texts",
    "limits": "Methods and limits",
    "provenance": "Provenance",
}


def render(
    evidence: Evidence,
    *,
    title: str = "",
    concepts_shown: int = 60,
    contexts_per_feature: int = 3,
    words_per_concept: int = 8,
    samples_per_cell: int = 4,
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
        samples_per_cell: sampled texts of each experiment, vector and strength.
        theme: ``auto`` follows the reader's system.
        colours: name of the palette.

    Returns:
        The HTML. The same evidence and settings give the same bytes.
    """
    evidence = evidence.with_words(words_per_concept)
    listed = cards.cards(evidence, concepts=concepts_shown, contexts=contexts_per_feature)
    blocks = [(item, content) for item in ITEMS if (content := _shown(item, evidence))]
    absent = {"experiments"} if not evidence.experiments else set()
    absent |= {"circuits"} if not evidence.rows("circuits/verdicts") else set()
    absent |= {"modulation"} if not evidence.rows("modulation/rates") else set()
    texts = sampled.packed(evidence.samples, samples_per_cell)
    absent |= {"samples"} if texts is None else set()
    absent |= {"writers"} if not evidence.rows("writers/methods") else set()
    absent |= {"monitor"} if not evidence.rows("monitor/acts") else set()
    absent |= {"shape"} if not evidence.rows("shape/verdicts") else set()
    experiments = {row["name"]: behaviour.answers(row) for row in evidence.experiments}
    drawn = [content for _, contents in blocks for content in contents]
    drawn += [each for answers in experiments.values() for answer in answers for each in answer["figures"]]
    return frame.whole(
        environment(escape=True).get_template("page.html.j2"),
        [each for each in drawn if isinstance(each, Chart)],
        colours=colours,
        evidence=evidence,
        title=title,
        theme=theme,
        sections={name: SECTIONS[name] for name in SECTIONS if name not in absent},
        experiments=experiments,
        blocks=blocks,
        samples=texts,
        sample_rows=frame.as_json(texts and texts["rows"]),
        findings=conclusions(evidence),
        controls=causal.controls(evidence),
        overview=cards.overview(evidence, {card["concept"]: card["anchor"] for card in listed}),
        stages=_stages(evidence),
        cards=listed,
        example=next((document for document in evidence.documents if document.emotion), None),
        settings=_yaml(evidence.provenance.config),
        gates=GATES,
        vectors=VECTORS,
        operations=OPERATIONS,
        scale=cards.scale,
        rate=cards.rate,
        published_caveats=CAVEATS,
    )


def _shown(item: Item, evidence: Evidence) -> list[Chart | Table]:
    """The charts or the table of an item; nothing where its tables have no rows."""
    content = item.build(evidence) if all(evidence.rows(name) for name in item.needs) else None
    if isinstance(content, Table):
        return [replace(content, name=item.name)]
    charts = {"": content} if isinstance(content, Chart) else content or {}
    made: list[Chart | Table] = []
    for vector, chart in charts.items():
        caption = say(item.block, {"evidence": evidence, "kind": VECTORS.get(vector, vector)}, item.caption)
        name, words = (f"{item.name}-{vector}", f"{item.words} ({vector})") if vector else (item.name, item.words)
        made.append(replace(chart, name=name, words=words, caption=" ".join(caption)))
    return made


def _stages(evidence: Evidence) -> Table:
    """What each figure was computed by."""
    columns = {"stage": "Stage", "version": "Version", "fingerprint": "Fingerprint"}
    return tables.table("Stages and fingerprints", evidence.provenance.stages, columns, open=True, name="stages")


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)
