"""Heads and circuits in the explorer: its numbers against the study's tables, and the pages as they are used."""

from __future__ import annotations

from pathlib import Path

import affectlens
import numpy as np
import pytest
import yaml
from affectlens.circuits.tables import ALL
from affectlens.explorer import circuits, contents, packing, page
from browser import browser, visit
from test_circuit_stages import CIRCUITS
from tiny import EMOTIONS

HEADS = 4


@pytest.fixture(scope="module")
def study(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explored")
    few = {"neuron_contexts": 0, "feature_contexts": 0, "as_published": False, "edge_contexts": 1, "edge_nodes": 4}
    few |= {"select_contexts": 4, "sizes": [0.3, 0.5], "minimal_contexts": 1, "ig_steps": 1, "transfer_stories": ""}
    values = {
        "name": "tiny",
        "cache": str(folder / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": list(EMOTIONS), "ablation_topics": ["exam", "kitchen"]},
        "activations": {"texts_per_part": 64, "pooled_layers": [], "window": 64},
        "sae": {"width": 32, "k": 8, "steps": 10, "train_batch_size_tokens": 64, "health_texts": 0},
        "match": {"texts_per_part": 64, "permutations": 19},
        "circuits": CIRCUITS | few,
        "tracking": {"mode": "disabled"},
        "compute": {"threads": 1, "device": "cpu"},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return affectlens.run_study(path, stages=["match", "circuits"])


@pytest.fixture(scope="module")
def explorer(study) -> page.Explorer:
    return page.build(contents.gather(study))


@pytest.fixture(scope="module")
def written(explorer, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    explorer.write(path)
    return path.resolve().as_uri()


@pytest.fixture(scope="module")
def running():
    with browser() as opened:
        yield opened


def test_every_head_has_the_figures_of_the_tables(study, explorer):
    data, arrays = packing.unpacked(explorer.blocks[circuits.BLOCK])
    table = study.table("circuit_units/heads").set_index(["layer", "head"])
    for layer, head in table.index:
        for name in circuits.HEAD:
            np.testing.assert_allclose(arrays[name][layer * HEADS + head], table.loc[(layer, head), name], rtol=1e-6)
    units = len(table)
    for row in study.table("circuit_units/concept_heads").to_dict("records"):
        at = data["concepts"].index(row["concept"]) * units + row["layer"] * HEADS + row["head"]
        for name in circuits.OF_CONCEPT:
            np.testing.assert_allclose(arrays[f"concept_{name}"][at], row[name], rtol=1e-6)
    writers = study.table("circuit_units/writers")
    width = data["written_layers"] * HEADS
    assert data["written_layers"] == 3, "up to the study's layer"
    heads = writers[writers["kind"] == "head"]
    assert len(heads)
    for row in heads.to_dict("records"):
        layer, head = map(int, row["unit"][1:].split("H"))
        at = data["concepts"].index(row["concept"]) * width + layer * HEADS + head
        kept = [arrays[name][at] for name in ("direct", "direct_low", "direct_high", "total")]
        np.testing.assert_allclose(kept, [row[name] for name in ("direct", "low", "high", "total")], rtol=1e-5)


def test_every_circuit_has_its_heads_its_verdict_and_its_losses(study, explorer):
    data, arrays = packing.unpacked(explorer.blocks[circuits.BLOCK])
    verdicts = study.table("circuits/verdicts").set_index("concept")
    assert [each["row"]["concept"] for each in data["circuits"]] == list(verdicts.index) == [ALL, *EMOTIONS]
    for each in data["circuits"]:
        assert each["row"]["verdict"] == verdicts.loc[each["row"]["concept"], "verdict"]
        assert len(each["members"]) == len(set(each["members"])) > 0
    members = study.table("circuits/members")
    assert set(data["circuits"][0]["members"]) == set((members["layer"] * HEADS + members["head"]).tolist())
    matrix = arrays["specificity"].reshape(len(EMOTIONS), -1)
    for row in study.table("circuits/specificity").to_dict("records"):
        at = data["concepts"].index(row["measured"]), data["concepts"].index(row["removed"])
        np.testing.assert_allclose(matrix[at], row["loss"], rtol=1e-6)


def test_a_reader_goes_from_the_search_to_a_head_and_its_circuits(running, written, explorer):
    data, _ = packing.unpacked(explorer.blocks[circuits.BLOCK])
    flat = data["circuits"][0]["members"][0]
    name = f"L{flat // HEADS}H{flat % HEADS}"
    with visit(running, written) as seen:
        look = seen.page
        assert look.locator("a:has-text('Heads and circuits')").count() == 1
        look.fill("#query", name.lower())
        look.press("#query", "Enter")
        look.wait_for_selector(f"h1:text-is('Head {name}')")
        assert look.locator("tbody tr:has-text('calm') td").count()
        look.click(f"main a:text-is('{ALL}')")
        look.wait_for_selector(f"h1:text-is('Circuit of {ALL}')")
        text = look.inner_text("main")
        assert "the interval has to lie above 0" in text and "not asked" in text, "noise has no contrast to explain"
        assert look.inner_text(f".map a[data-flat='{flat}']") == "●", "membership is a sign, not a colour"
        assert look.locator(".map a").count() == 16
        look.focus(".map a[data-flat='0']")
        look.keyboard.press("ArrowUp")
        look.keyboard.press("ArrowRight")
        assert look.evaluate("document.activeElement.dataset.flat") == str(HEADS + 1)
        assert look.get_attribute(f".map a[data-flat='{HEADS + 1}']", "aria-label").startswith("L1H1: effect ")
        assert look.inner_text("#detail").startswith("L1H1")
        look.keyboard.press("Enter")
        look.wait_for_selector("h1:text-is('Head L1H1')")
        look.fill("#query", "circuit of calm")
        look.press("#query", "Enter")
        look.wait_for_selector("h1:text-is('Circuit of calm')")
        look.click("main a:text-is('calm') >> nth=0")
        look.wait_for_selector("h1:text-is('calm')")
        look.click("a:text-is('Its circuit of heads')")
        look.wait_for_selector("h1:text-is('Circuit of calm')")
        assert not seen.errors
        assert [each for each in seen.requests if not each.startswith(("file:", "blob:", "data:"))] == []


def test_tables_of_heads_are_saved(running, written, study):
    with visit(running, f"{written}#/circuits") as seen:
        with seen.page.expect_download() as waiting:
            seen.page.click("div:has(> .scroll caption:text-is('All heads')) > button:has-text('Save as CSV')")
        lines = Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(study.table("circuit_units/heads"))


@pytest.mark.parametrize("hash", ["#/head/L99H0", "#/head/x", "#/circuit/nobody", "#/circuit/"])
def test_an_address_of_no_head_says_so(running, written, hash):
    with visit(running, written + hash) as seen:
        assert seen.page.inner_text("h1") == "Nothing there"
        assert not seen.errors


@pytest.mark.parametrize("dark", [False, True])
def test_heads_and_circuits_fit_a_phone(running, written, dark):
    for hash in ("#/circuits", "#/head/L3H0", "#/head/L0H1", "#/circuit/all%20concepts", "#/circuit/calm"):
        with visit(running, written + hash, width=390, height=800, dark=dark, phone=True) as seen:
            assert seen.overflow() <= 0, hash
            assert not seen.errors
