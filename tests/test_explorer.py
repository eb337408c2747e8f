"""The explorer: its numbers against the study's own, and the page as it is used."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from pathlib import Path
from typing import Any, cast

import affectlens
import numpy as np
import pytest
from affectlens import stats
from affectlens.cli import app
from affectlens.errors import MissingResult, UserError
from affectlens.explorer import contents, exchange, packing, page
from affectlens.probing.match import Match
from affectlens.use.opened import Opened
from affectlens.use.readings import Readings
from browser import browser, visit
from judge_server import Server
from scipy.sparse import csc_array
from typer.testing import CliRunner

WIDTH = 64


@pytest.fixture(scope="module")
def study(tmp_path_factory, model_folder):
    """A finished tiny study up to ``match``, with a story of hostile letters."""
    import yaml
    from affectlens.corpus.texts import EMBEDDED, read_jsonl

    folder = tmp_path_factory.mktemp("explorer")
    rows = read_jsonl(EMBEDDED / "stories.jsonl")
    stories = [row for row in rows if row["emotion"] in ("afraid", "calm", "proud")]
    others = [row for row in rows if row["emotion"] == "alert"]
    stories[0]["text"] = "<script>document.title='taken'</script> & \"quoted\" " + stories[0]["text"]
    write = lambda name, rows: (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")  # noqa: E731
    write("stories.jsonl", stories)
    write("neutral.jsonl", [{"kind": "prose", "text": row["text"]} for row in others[:10]])
    values = {
        "name": "tiny", "cache": str(folder / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {
            "stories": str(folder / "stories.jsonl"), "neutral": str(folder / "neutral.jsonl"),
            "ablation_topics": ["exam", "kitchen"],
        },
        "activations": {"texts_per_part": 8, "pooled_layers": [0], "window": 64},
        "sae": {"width": WIDTH, "k": 8, "steps": 20, "train_batch_size_tokens": 64, "health_texts": 0},
        "match": {"texts_per_part": 16, "permutations": 19},
        "tracking": {"mode": "disabled"}, "compute": {"threads": 1, "device": "cpu"},
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return affectlens.run_study(path, stages=["match", "directions"])


@pytest.fixture(scope="module")
def found(study) -> contents.Contents:
    return contents.gather(study)


@pytest.fixture(scope="module")
def explorer(found) -> page.Explorer:
    return page.build(found)


@pytest.fixture(scope="module")
def written(explorer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    assert explorer.write(path) == [path]
    return path


def test_a_block_comes_back_as_it_was():
    arrays = {
        "bytes": np.arange(7, dtype=np.uint8),
        "few": np.array([[1, -2], [3, 4]], np.int8),
        "real": np.array([0.5, -1e6], np.float32),
    }
    data, found = packing.unpacked(packing.packed({"name": "ä<&"}, arrays))
    assert data == {"name": "ä<&"}
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values.ravel())
    with pytest.raises(KeyError):
        packing.packed({}, {"wide": np.zeros(2, np.float64)})


def test_token_codes_are_what_the_sae_gives(study):
    rows, first = study.activations.tokens(study.layer), study.activations.index["first_token"]
    count = len(study.documents)
    codes = contents.token_codes(study, study.result("match"), count)
    expected = np.concatenate([study.sae.encode(rows.of(each)[first:]) for each in range(count)])
    np.testing.assert_allclose(codes.toarray(), expected, atol=1e-6)


def test_the_page_holds_every_activation(study, explorer):
    codes = contents.token_codes(study, study.result("match"), len(study.documents)).toarray()
    data, arrays = packing.unpacked(explorer.base)
    assert data["concepts"] == list(study.concepts) and data["features"] == WIDTH
    assert data["circuits"] is None and "circuits" not in explorer.blocks, "the study looked for none"
    _, block = packing.unpacked(explorer.blocks["features-0"])
    for feature in range(WIDTH):
        span = slice(block["starts"][feature], block["starts"][feature + 1])
        tokens = np.cumsum(block["steps"][span])
        np.testing.assert_array_equal(tokens, np.flatnonzero(codes[:, feature]))
        values = block["values"][span] / 255 * arrays["largest"][feature]
        np.testing.assert_allclose(values, codes[tokens, feature], atol=codes.max() / 255)


def test_detection_is_that_of_the_stage_and_held_out_topics_choose_nothing(study):
    match, corpus = study.result("match"), study.result("corpus")
    found = contents.detection(match, corpus, np.random.default_rng(0))
    np.testing.assert_allclose(found.selection, match.auroc(), atol=1e-12)
    test = corpus.indices("test")
    expected = stats.auroc(match.codes[test], corpus.labels(test), corpus.topics(test))
    np.testing.assert_allclose(found.held_out, expected, atol=1e-12)
    assert (found.low <= 0.5).all() and (found.high >= 0.5).all()


def test_a_planted_feature_leaves_its_null_and_noise_does_not(study):
    """Codes that follow one concept, and codes of nothing: the band holds the second, not the first."""
    corpus, rng = study.result("corpus"), np.random.default_rng(1)
    rows = range(len(corpus.documents))
    codes = rng.random((len(rows), 400))
    codes[:, 0] += 3 * corpus.labels(rows)[:, 1]

    class Planted:
        random_saes = ()

        def scores(self, name, rows):
            return codes[list(rows)]

    found = contents.detection(cast("Any", Planted()), corpus, rng)
    assert found.selection[0, 1] == 1 > found.high[0]
    outside = (found.selection[1:] > found.high[1:, None]) | (found.selection[1:] < found.low[1:, None])
    assert 0.02 < outside.mean() < 0.09


def test_neighbours_of_planted_rows():
    """Features 0 and 1 share a row and never a token; features 2 and 3 the reverse."""
    rng = np.random.default_rng(0)
    decoder = rng.standard_normal((12, 40)).astype(np.float32)
    decoder[1] = decoder[0] * 3
    codes = (rng.random((500, 12)) < 0.1) * rng.random((500, 12))
    codes[:, 1] *= codes[:, 0] == 0
    codes[:, 3] = codes[:, 2] * 2
    found = contents.neighbours(decoder, csc_array(codes), rng)
    assert found.nearest[0, 0] == 1 and found.cosine[0, 0] == pytest.approx(1)
    assert found.together[2, 0] == 3 and found.jaccard[2, 0] == pytest.approx(1)
    assert found.lift[2, 0] == pytest.approx(500 / np.count_nonzero(codes[:, 2]))
    assert 1 not in found.together[0][found.jaccard[0] > 0]
    assert found.chance_cosine < 0.6


def test_words_are_the_extremes_of_the_unembedding(study):
    import torch
    from affectlens.model.compat import final_gain

    decoder = np.asarray(study.sae.decoder)[:5]
    found = contents.written(study, decoder, np.random.default_rng(0))
    unit = torch.nn.functional.normalize(torch.tensor(decoder), dim=1)
    logits = (unit * final_gain(study.subject.bridge)) @ study.subject.bridge.unembed.W_U.detach()
    np.testing.assert_allclose(found.logits[:, 0], logits.max(dim=1).values.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.logits[:, contents.WORDS], logits.min(dim=1).values.numpy(), atol=1e-5)
    assert found.chance > 0


def test_readings_are_those_of_read(study, explorer):
    readings = Readings.of(study)
    data, _ = packing.unpacked(explorer.base)
    values = contents.read_tokens(study, readings, len(data["documents"]))
    _, block = packing.unpacked(explorer.blocks["readings-0"])
    kept = block["values"].reshape(-1, len(values)) / page.TWENTIETHS
    np.testing.assert_allclose(kept[0], values[:, 0].clip(-6.35, 6.35), atol=0.026)


def test_the_same_study_gives_the_same_bytes(study, explorer):
    assert page.build(contents.gather(study)).html() == explorer.html()


FEATURE = {
    "neg_str": list, "neg_values": list, "pos_str": list, "pos_values": list, "frac_nonzero": float,
    "freq_hist_data_bar_heights": list, "freq_hist_data_bar_values": list, "logits_hist_data_bar_heights": list,
    "logits_hist_data_bar_values": list, "decoder_weights_dist": list, "neuron_alignment_indices": list,
    "neuron_alignment_values": list, "neuron_alignment_l1": list, "correlated_neurons_indices": list,
    "correlated_neurons_pearson": list, "correlated_neurons_l1": list, "correlated_features_indices": list,
    "correlated_features_pearson": list, "correlated_features_l1": list,
}  # fmt: skip
"""Fields that a feature has in both layouts."""
NEURONPEDIA = {
    "release.jsonl": {"name": str, "description": str, "creatorName": str, "creatorId": str},
    "model.jsonl": {"id": str, "instruct": bool, "creatorId": str},
    "sourceset.jsonl": {"modelId": str, "name": str, "creatorName": str, "creatorId": str, "description": str},
    "source.jsonl": {"id": str, "modelId": str, "setName": str, "creatorId": str},
    "features/batch-0.jsonl.gz": FEATURE
    | {"modelId": str, "layer": str, "index": str, "sourceSetName": str, "creatorId": str, "maxActApprox": float}
    | {"hasVector": bool, "vector": list, "hookName": str, "topkCosSimIndices": list, "topkCosSimValues": list},
    "activations/batch-0.jsonl.gz": {
        "id": str, "tokens": list, "index": str, "layer": str, "modelId": str, "maxValue": float,
        "maxValueTokenIndex": int, "minValue": float, "values": list, "creatorId": str, "binMin": float,
        "binMax": float, "binContains": float, "qualifyingTokenIndex": int,
    },
}  # fmt: skip


def read_lines(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    return [json.loads(line) for line in text.decode().splitlines()]


def test_neuronpedia_files_hold_their_fields_and_the_activations(found, tmp_path):
    out = exchange.neuronpedia(found, tmp_path, "me")
    for name, fields in NEURONPEDIA.items():
        for row in read_lines(out / name):
            for field, kind in fields.items():
                assert isinstance(row[field], kind), (name, field)
    dense = found.codes.toarray()
    features = read_lines(out / "features/batch-0.jsonl.gz")
    assert [row["index"] for row in features] == [str(number) for number in range(WIDTH)]
    for row in features:
        mine = dense[:, int(row["index"])]
        assert row["frac_nonzero"] == pytest.approx((mine > 0).mean())
        assert sum(row["freq_hist_data_bar_heights"]) == np.count_nonzero(mine)
    activations = read_lines(out / "activations/batch-0.jsonl.gz")
    identifiers = [row["id"] for row in activations]
    assert len(set(identifiers)) == len(identifiers) and {len(each) for each in identifiers} == {25}
    for row in activations:
        text = int(row["dataIndex"])
        mine = dense[found.starts[text] :, int(row["index"])]
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"])
        assert row["maxValue"] == pytest.approx(mine[: found.texts.lengths[text] - found.texts.first].max(), abs=1e-3)
        assert len(row["tokens"]) == len(row["values"])
        assert row["binMin"] == -1 or row["binMin"] - 1e-3 < row["maxValue"] < row["binMax"] + 1e-3
    with pytest.raises(UserError, match="--creator"):
        exchange.neuronpedia(found, tmp_path, "")


def test_saedashboard_batches_hold_their_fields(found, tmp_path):
    folder = exchange.saedashboard(found, tmp_path / "batches")
    (batch,) = (json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir())
    assert {"model_id", "layer", "sae_set", "sae_id_suffix", "features"} == set(batch)
    for number, row in enumerate(batch["features"]):
        assert row["feature_index"] == number
        assert all(isinstance(row[field], kind) for field, kind in FEATURE.items())
        for each in row["activations"]:
            assert each["values"][each["qualifying_token_index"]] == max(each["values"])
            assert each["bin_contains"] == -1 or 0 < each["bin_contains"] <= 1


def test_parts_that_are_gone_are_said(study, tmp_path):
    folder = tmp_path / "match"
    folder.mkdir()
    match = study.result("match")
    moved = object.__new__(Match)
    moved.__dict__.update(match.__dict__, folder=folder)
    with pytest.raises(MissingResult, match="--stage match --mode force"):
        contents.token_codes(study, moved, len(study.documents))
    bare = Opened(study.study, {name: path for name, path in study.folders.items() if name != "match"})
    with pytest.raises(MissingResult, match="stage `match` is not finished"):
        contents.gather(bare)


def test_without_text_no_word_of_a_story_is_in_the_file(found):
    data, arrays = packing.unpacked(page.build(found, text=False).base)
    assert data["vocabulary"] == [] and data["samples"] == {} and not len(arrays["pieces"])


def judged(prompt: str, count: int) -> str:
    """Writes one sentence; of a word in quotes, says whether the passage, or its marks, hold it."""
    if "What are the marked tokens" in prompt:
        return "<b>somebody</b> waits at the word zebra"
    passage = re.search(r"<passage (\w{16})>\n(.*)\n</passage \1>", prompt, re.DOTALL)
    if passage is None:
        return "first"
    marked = " ".join(re.findall(r"\[\[(.*?)\]\]", passage[2]))
    described = re.search(r'the word "(.*?)"', prompt)
    return "yes" if described and described[1] in (marked if "[[" in passage[2] else passage[2]).lower() else "no"


@pytest.fixture(scope="module")
def explained(study, tmp_path_factory) -> tuple[list[str], Server, int]:
    """What `affectlens explain` printed, run to its end with a judge at an address, and how often that was asked."""
    server, runner = Server(judged), CliRunner()
    arguments = ["explain", study.study.source, "--judge", "m", "--address", server.address, "--items", "4"]
    try:
        for more in (["--dry-run"], ["--budget", "100"], []):
            done = runner.invoke(app, [*arguments, *more])
            if more == ["--dry-run"]:
                assert not server.bodies and "up to" in done.stderr and "requests" in done.stderr
            if "--budget" in more:
                assert "100 requests of --budget" in str(done.exception) and len(server.bodies) == 100
        assert done.exit_code == 0, done.output
        asked = len(server.bodies)
        assert runner.invoke(app, arguments).stdout == done.stdout and len(server.bodies) == asked
    finally:
        server.close()
    return done.stdout.splitlines(), server, asked


def test_explaining_asks_once_keeps_tables_and_is_a_result(study, explained):
    from affectlens import results
    from affectlens.explanations import keeping, tables
    from affectlens.run import manifest

    lines, server, _ = explained
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert len(set(prompts)) == len(prompts) and {body["temperature"] for body in server.bodies} == {0}
    ((folder, found),) = keeping.of(study)
    assert lines[-1] == str(folder) and set(found) == {each.name for each in tables.ALL}
    record = manifest.read(folder)
    assert record["needs"] == {"match": manifest.read(study.folder("match"))["fingerprint"]}
    assert set(record["files"]) >= {"metrics.json", "items.json", "tables/scores.parquet"}
    assert set(found["explanations"]["feature"]) == set(study.result("match").best.tolist())
    assert results.read(folder, "planted")["able"].tolist() == [True] * len(found["planted"])
    opened = affectlens.open_study(folder)
    assert opened.table("explain/scores").shape == found["scores"].shape


def test_twins_are_those_of_the_random_sae_that_chose_them(found, study):
    """Their codes, pooled as the stage pools, are the stage's own."""
    from affectlens.explanations import units

    match, lengths = study.result("match"), found.texts.lengths - found.texts.first
    pooled = match.scores(match.random_saes[0], range(len(study.documents)))[:, :]
    owners = np.repeat(np.arange(len(lengths)), lengths)
    for number, unit in units.twins(found, [0, 5]).items():
        means = np.bincount(owners, weights=unit.values) / lengths
        largest = np.array([unit.values[owners == each].max() for each in range(len(lengths))])
        own = means if match.pooling == "mean" else largest
        np.testing.assert_allclose(own, pooled[:, found.detected.twin[number]], atol=1e-6)


def test_explanations_are_shown_and_searched(running, study, found, explained, tmp_path):
    from affectlens.explanations import keeping

    tables = [each for _, each in keeping.of(study)]
    path = tmp_path / "explained.html"
    page.build(found, explained=tables).write(path)
    feature = int(tables[0]["scores"]["feature"].tolist()[0])
    with open_page(running, path, f"#/feature/{feature}") as seen:
        look = seen.page
        assert look.inner_text("blockquote") == "<b>somebody</b> waits at the word zebra"
        assert "on planted features: detection" in look.inner_text("main")
        look.fill("#query", "zebra")
        look.press("#query", "Enter")
        look.wait_for_selector("caption:has-text('Features whose explanation has it')")
        assert f"feature {feature}" in look.inner_text("main")
        look.goto(path.resolve().as_uri() + "#/")
        look.wait_for_selector("th:has-text('In words')")
        assert not seen.errors
    with open_page(running, path, f"#/feature/{feature}", width=390, height=800, phone=True) as seen:
        assert seen.overflow() <= 0 and not seen.errors
    rows = tables[0]["explanations"].to_dict("records")
    out = exchange.neuronpedia(found, tmp_path / "np", "me", rows)
    fields = {"id": str, "modelId": str, "layer": str, "index": str, "description": str, "authorId": str}
    read = read_lines(out / "explanations/batch-0.jsonl.gz")
    assert [row["index"] for row in read] == [str(row["feature"]) for row in rows if row["text"]]
    assert all(isinstance(row[name], kind) for row in read for name, kind in fields.items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name who scores"),
        (["--judge", "m", "--address", "ftp://x"], "must begin with http"),
        (
            ["--judge", "m", "--address", "http://x/v1", "--key-variable", "NOBODY_SET_THIS"],
            "NOBODY_SET_THIS is not set",
        ),
        (["--judge", "m", "--address", "http://x/v1", "--features", "9999"], "the SAE has features 0 to"),
        (["--judge", "m", "--address", "http://x/v1", "--features", "x"], "give numbers separated by commas"),
        (["--judge", "m", "--address", "http://x/v1", "--given", "given.jsonl"], "each line must be like"),
    ],
)
def test_mistakes_in_explain_are_one_line(study, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("given.jsonl").write_text('{"feature": "1", "text": "x", "author": "y"}\n', encoding="utf-8")
    done = CliRunner().invoke(app, ["explain", study.study.source, *arguments])
    assert isinstance(done.exception, UserError) and said in str(done.exception)


@pytest.fixture(scope="module")
def running():
    with browser() as opened:
        yield opened


def open_page(running, path: Path, where: str = "#/", **more):
    return visit(running, path.resolve().as_uri() + where, **more)


def test_a_reader_goes_from_the_start_to_a_feature_a_concept_and_a_text(running, written, explorer):
    data, arrays = packing.unpacked(explorer.base)
    index = int(arrays["ranked"][0])
    with open_page(running, written) as seen:
        look = seen.page
        assert look.title() == f"{look.inner_text('h1')} · AffectLens"
        look.fill("#query", str(index))
        look.press("#query", "Enter")
        look.wait_for_selector(f"h1:text-is('Feature {index}')")
        look.wait_for_selector(".passage .token")
        assert look.evaluate("document.documentElement.dataset.drawn")
        assert "held-out topic" in look.inner_text("main")
        look.select_option("#coloured", label=f"direction of {data['concepts'][0]}")
        look.wait_for_timeout(200)
        look.hover(".passage .token.peak >> nth=0")
        assert " sd" in look.inner_text("#detail") and f"feature {index}" in look.inner_text("#detail")
        look.focus(".passage .token.peak >> nth=0")
        look.keyboard.press("ArrowRight")
        assert look.evaluate("document.activeElement.previousElementSibling.classList.contains('peak')")
        look.click(f"main a:text-is('{data['concepts'][0]}') >> nth=0")
        look.wait_for_selector(f"h1:text-is('{data['concepts'][0]}')")
        look.click("text=Its direction on stories")
        look.wait_for_selector("h1:has-text('Direction of')")
        look.wait_for_selector(".passage .token")
        look.click(".where a >> nth=0")
        look.wait_for_selector("h1:has-text('Text ')")
        look.fill("#number", str(index))
        look.wait_for_timeout(200)
        look.go_back()
        look.wait_for_selector("h1:has-text('Direction of')")
        assert not seen.errors
        assert [each for each in seen.requests if not each.startswith(("file:", "blob:", "data:"))] == []


def test_words_and_texts_are_found_and_tables_saved(running, written, explorer, tmp_path):
    data, arrays = packing.unpacked(explorer.base)
    word = data["words"][int(arrays["raised"][0])].strip()
    with open_page(running, written) as seen:
        look = seen.page
        look.fill("#query", word)
        look.press("#query", "Enter")
        look.wait_for_selector("caption:has-text('Features that raise it')")
        assert "feature 0" in look.inner_text("main")
        look.fill("#query", "document.title")
        look.press("#query", "Enter")
        look.wait_for_selector("caption:has-text('Texts with it')")
        assert look.title() != "taken"
        look.goto(written.resolve().as_uri() + "#/concept/calm")
        look.wait_for_selector("h1:text-is('calm')")
        with look.expect_download() as waiting:
            look.click("text=Save as CSV >> nth=0")
        lines = Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith('"Feature"') and len(lines) > page.LISTED // 2
        assert not seen.errors


@pytest.mark.parametrize(
    "hash",
    ["#/feature/9999", "#/feature/x", "#/concept/nobody", "#/text/-1", "#/%E0%A4%A", "#/constructor/1", "#/feature/"],
)
def test_an_address_of_nothing_says_so(running, written, hash):
    with open_page(running, written, hash) as seen:
        assert seen.page.inner_text("h1") == "Nothing there"
        assert not seen.errors


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(running, written, explorer, dark):
    _, arrays = packing.unpacked(explorer.base)
    for hash in ("#/", f"#/feature/{int(arrays['ranked'][0])}", "#/concept/calm", "#/direction/calm", "#/text/0"):
        with open_page(running, written, hash, width=390, height=800, dark=dark, phone=True) as seen:
            assert seen.overflow() <= 0, hash
            assert not seen.errors


def test_injected_markup_does_not_run(running, written):
    """The policy lets this page's script run alone."""
    html = written.read_text(encoding="utf-8").replace(
        "</main>", "</main><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    )
    path = written.with_name("injected.html")
    path.write_text(html, encoding="utf-8")
    with open_page(running, path) as seen:
        assert seen.page.title() != "taken" and seen.page.inner_text("h1")


def test_blocks_beside_the_page_are_read_when_they_are_needed(running, explorer, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "INLINE", 0)
    large = dataclasses.replace(explorer)
    path = tmp_path / "large.html"
    written = large.write(path)
    assert written[1:] and all(each.parent == tmp_path / "large-data" for each in written[1:])
    with open_page(running, path, "#/feature/1") as seen:
        assert seen.page.inner_text("h1") == "Feature 1"
        assert not seen.errors
    for each in written[1:]:
        each.unlink()
    with open_page(running, path, "#/feature/1") as seen:
        assert "keep the folder beside this page" in seen.page.inner_text("main")
