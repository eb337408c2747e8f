"""The monitor on the page: a section where it was run, and none where it was not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from affectlens import results
from affectlens.monitor import figures, tables, trials
from affectlens.report.evidence import Evidence, Provenance, Rows
from affectlens.report.sections import monitor
from monitor_worlds import SETTINGS, rows, world


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Of a small world in which the state warns."""
    risk, benign = world("state", scenarios=12)
    generator = np.random.default_rng(0)
    trial = trials.run(risk, benign, rows(generator), SETTINGS, generator)
    found: dict[str, list[dict[str, Any]]] = figures.evaluate(
        "world", trial, risk.drawn, SETTINGS, lambda name: np.random.default_rng(1)
    )
    found["acts"] = figures.acts("world", risk.episodes)
    folder = tmp_path_factory.mktemp("page")
    for table in tables.ALL:
        results.write(folder, table, found.get(table.name, []))
    read: dict[str, pd.DataFrame] = results.read_all(folder)
    return Evidence(
        model="tiny", layer=1, width=16, concepts=("desperate",), documents=(), fixed_split=False,
        tables={f"monitor/{name}": Rows.of(frame) for name, frame in read.items()}, metrics={}, cards={},
        experiments=[], provenance=Provenance({}, [], {}, {}),
    )  # fmt: skip


def test_the_whole_page_has_the_section_with_its_tables(evidence: Evidence):
    from affectlens.report.render import render
    from test_report import study

    whole = study()
    page = render(dataclasses.replace(whole, tables={**whole.tables, **evidence.tables}))
    assert '<section id="monitor">' in page
    for caption in ("What each row shows", "Acts caught", "False alarms", "add to the text", "re-sampled truth"):
        assert caption in page
    assert "monitor-within-world" in page and "monitor-before-world" in page


def test_figures_and_tables_are_drawn(evidence: Evidence):
    assert set(monitor.monitor_within(evidence)) == {"world"}
    assert set(monitor.monitor_before(evidence)) == {"world"}


def test_the_finding_says_the_verdict_in_words(evidence: Evidence):
    from affectlens.report.sentences import say

    said = monitor.warning(evidence)
    assert said is not None
    standing, values = said
    text = " ".join(say("warning", {"evidence": evidence, **values}))
    assert standing in ("shown", "partly shown")
    assert "warns before the act" in text and "per 1,000 tokens" in text
