"""The browser of sampled texts: what is packed, and what a reader finds in it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from affectlens.report import sampled
from affectlens.report.render import render

from tests.browser import browser, visit
from tests.test_report import EVIL, study


def rows(per_cell: int = 6, text: str = "The lamp is on, and nobody came") -> list[dict[str, Any]]:
    """Two sources, three vectors; the strongest mentions an owl; one text is hostile."""
    found = []
    for source, concept, family, strength in (
        ("causal", "", "none", 0.0), ("causal", "calm", "direction", 0.1), ("causal", "sad", "direction", 0.1),
        ("blackmail", "calm", "concept", 0.05),
    ):  # fmt: skip
        for number in range(per_cell):
            said = f"{text} {number}" + (" owl" if source == "blackmail" else "")
            row = {"source": source, "family": family, "concept": concept, "strength": strength, "prompt": "At night"}
            more = {"grade": number % 2, "nats": float("nan") if number else 2.5} if source == "blackmail" else {}
            found.append({**row, "text": said if number else said + EVIL, **more})
    return found


def test_few_of_each_cell_are_packed_in_bounded_bytes():
    packed = sampled.packed(rows(), 4)
    assert packed is not None and (len(packed["rows"]), packed["total"], packed["per_cell"]) == (16, 24, 4)
    assert json.dumps(packed["rows"], allow_nan=False)
    large = sampled.packed(rows(700, "word " * 1000), 512)
    assert large is not None and len(json.dumps(large["rows"])) <= sampled.LARGEST and large["per_cell"] < 512
    assert all(len(row["text"]) <= sampled.LETTERS for row in large["rows"])
    assert sampled.packed([], 4) is None and sampled.packed(rows(), 0) is None


def test_a_page_without_samples_has_no_such_section():
    assert 'id="samples"' not in render(study())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "report.html"
    path.write_text(render(dataclasses.replace(study(), samples=rows())), encoding="utf-8")
    return path


@pytest.mark.parametrize("view", [{}, {"dark": True}, {"phone": True, "width": 390, "height": 844}])
def test_readers_choose_texts_by_vector_strength_verdict_and_words(page: Path, view: dict[str, Any]):
    with browser() as running, visit(running, page, **view) as seen:
        assert seen.errors == [] and seen.overflow() <= 0
        texts, count = seen.page.locator("#sought-texts blockquote"), seen.page.locator("#sought-count")
        assert texts.count() == 16 and count.inner_text() == "16 of 16 texts"
        assert seen.page.locator("#sought-texts img").count() == 0 and EVIL in texts.first.text_content()
        seen.page.select_option("#sought select[name=concept]", "calm")
        assert texts.count() == 8
        seen.page.select_option("#sought select[name=strength]", "0.05")
        assert texts.count() == 4 and "verdict 1" in "".join(texts.all_text_contents())
        seen.page.select_option("#sought select[name=grade]", "0")
        assert texts.count() == 2
        seen.page.select_option("#sought select[name=source]", "causal")
        assert count.inner_text() == "0 of 16 texts"
        for name in ("source", "concept", "strength", "grade"):
            seen.page.select_option(f"#sought select[name={name}]", "")
        seen.page.fill("#sought input[name=words]", "OWL")
        assert texts.count() == 4
