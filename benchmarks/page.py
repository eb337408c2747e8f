"""How long the page of a large study takes to write, and to open in Chromium.

The study has 171 concepts of the embedded stories (24 with ``--quick``). Its tables are those that the stages declare,
a row for every combination of their keys, with random figures: as many rows, cells and marks as a finished study of
that size has. HTML files that are named (a finished study's page, an explorer) are opened as well.

Opening is timed inside the browser from the start of the navigation: first paint, end of the load event, and all
figures drawn (of an explorer: its start page). Figures are medians over five visits, at 1200 and at 390 pixels.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from affectlens.corpus.documents import CorpusConfig, select
from affectlens.interventions.frames import read_lexicon
from affectlens.report.evidence import BASELINE, OPERATIONS, VECTORS, Evidence, Provenance, Rows
from affectlens.report.render import render
from affectlens.results import Table
from affectlens.study import STAGES
from harness import Row, machine, options, print_table, write_json

STUDIED = ("corpus", "sae", "directions", "match", "compare", "geometry", "causal")
"""Stages whose sections stand on the page."""
METHODS = (
    BASELINE, "LDA (shrunk)", "logistic", "best SAE feature", "best random-SAE feature", "all SAE features", "TF-IDF",
    "difference of means, layer 0", "5 SAE features",
)  # fmt: skip
VISITS, WIDTHS = 5, (1200, 390)
CONTEXTS = 5
"""Passages of a concept."""
NAMES = ("chromium", "chromium-browser", "google-chrome")


def values(concepts: Sequence[str]) -> dict[str, Sequence[Any]]:
    """What each key column ranges over."""
    found: dict[str, Sequence[Any]] = dict.fromkeys(("concept", "other", "injected", "measured"), concepts)
    return found | {
        "method": METHODS, "layer": (0, 5, 10, 15, 20), "vector": tuple(VECTORS), "operation": tuple(OPERATIONS),
        "strength": (0.05, 0.1, 0.2, 0.4), "family": ("isotropic", "covariance", "permuted", "wrong emotion"),
        "features": (1, 2, 3, 5, 10, 20), "tokens": tuple(range(50, 4001, 50)), "component": (1, 2, 3, 4, 5),
        "rating": ("valence", "arousal"), "source": ("directions", "vocabulary"), "dictionary": ("SAE", "random SAE"),
        "rows": (1, 2, 4, 8, 16), "angle": tuple(range(1, 21)), "set": ("pairs", "templates"),
        "scope": ("all", "order"), "read": ("mean", "last"), "kind": ("steered",),
        "score": ("words", "perplexity"), "dimension": (3, 88),
    }  # fmt: skip


def keys(table: Table, concepts: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The keys of a table's rows; of one without a key, some passages of every concept."""
    ranges = values(concepts)
    if not table.key:
        return ((concept,) for concept in concepts for _ in range(CONTEXTS))
    domains = [ranges[name] for name in table.key]
    if table.key == ("layer", "other"):
        domains = [ranges["layer"]] * 2
    return itertools.product(*domains)


def filled(table: Table, concepts: Sequence[str], generator: np.random.Generator) -> Rows:
    """A table with random figures and words."""
    words = sorted({word for each in read_lexicon().values() for word in each})
    names = table.key or ("concept",)

    def cell(name: str, kind: str) -> Any:
        if kind == "number":
            return float(generator.random())
        if kind == "integer":
            return int(generator.integers(4608))
        if kind == "flag":
            return bool(generator.random() < 0.5)
        return " ".join(generator.choice(words, size=8))

    rows = []
    for key in keys(table, concepts):
        known = dict(zip(names, key, strict=True))
        rows.append({each.name: known.get(each.name, cell(each.name, each.kind)) for each in table.columns})
    made = Rows(rows)
    made.declared = table
    return made


def study(count: int) -> Evidence:
    """A study of so many concepts."""
    generator = np.random.default_rng(0)
    documents = tuple(select(CorpusConfig(emotions="all", ablation_topics=("exam", "kitchen", "phone"))))
    concepts = tuple(dict.fromkeys(each.emotion for each in documents if each.emotion))[:count]
    documents = tuple(each for each in documents if not each.emotion or each.emotion in concepts)
    tables = {
        f"{stage.name}/{table.name}": filled(table, concepts, generator)
        for stage in STAGES
        if stage.name in STUDIED
        for table in stage.tables
    }
    ends = {"": 0.8, "_low": 0.7, "_high": 0.9}
    metrics: Mapping[str, Mapping[str, float]] = {
        "directions": {f"auroc_test{end}": value for end, value in ends.items()},
        "match": {f"best_feature_auroc{end}": value for end, value in ends.items()},
        "geometry": {f"r_component_1_valence{end}": value for end, value in ends.items()} | {"rated_words": 24.0},
        "sae": {"features": 4608.0}, "activations": {"rows": 308_000.0}, "causal": {"reference_strength": 0.1},
    }  # fmt: skip
    return Evidence(
        "a study of that size", 15, 576, concepts, documents, tables, metrics, {}, Provenance({}, [], {}, {}),
        fixed_split=True,
    )  # fmt: skip


def opened(page: Path, width: int) -> dict[str, float]:
    """Seconds until the first paint, the load event and everything drawn; elements of the page; median over visits."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or next(found for name in NAMES if (found := shutil.which(name)))
    seen: list[dict[str, float]] = []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(VISITS):
            context = running.new_context(viewport={"width": width, "height": 900}, is_mobile=width < 500)
            shown = context.new_page()
            shown.goto(page.resolve().as_uri(), wait_until="load")
            shown.wait_for_selector("html[data-drawn]", state="attached", timeout=120_000)
            seen.append(
                shown.evaluate(
                    """() => ({
                         "first paint": performance.getEntriesByName("first-contentful-paint")[0]?.startTime / 1000,
                         "load event": performance.getEntriesByType("navigation")[0].loadEventEnd / 1000,
                         "all drawn": performance.now() / 1000,
                         elements: document.getElementsByTagName("*").length,
                       })"""
                )
            )
            context.close()
        running.close()
    return {name: median(each[name] for each in seen) for name in seen[0]}


def main() -> None:
    import argparse

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pages", nargs="*", type=Path, help="HTML files that are opened as well")

    arguments = options(__doc__, more)
    count = 24 if arguments.quick else 171
    evidence, rows = study(count), []
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "report.html"
        for turn in range(2):  # the first one loads what writes
            start = time.perf_counter()
            path.write_text(render(evidence), encoding="utf-8")
            if turn:
                rows.append(Row(f"page of {count} concepts: written", time.perf_counter() - start, None, "s"))
        rows.append(Row(f"page of {count} concepts: size", path.stat().st_size / 1e6, None, "MB"))
        for page in (path, *arguments.pages):
            for width in WIDTHS:
                for name, value in opened(page, width).items():
                    unit = "" if name == "elements" else "s"
                    rows.append(Row(f"{page.name} at {width} px: {name}", value, None, unit))
    print_table(rows)
    if arguments.json:
        write_json(arguments.json, rows, machine("playwright"))


if __name__ == "__main__":
    main()
