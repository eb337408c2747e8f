"""Texts read and models steered: against the caches, against planted values, and however they are computed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import affectlens
import numpy as np
import pytest
from affectlens.errors import UserError
from affectlens.use import texts
from affectlens.use.readings import Readings
from affectlens.use.steering import Answers, Draws, Push, Recipe, Vectors

PROMPT = "The letter came this morning, and"


@pytest.fixture(scope="module")
def study(tmp_path_factory, model_folder):
    """A finished tiny study, SAE included."""
    import yaml
    from affectlens.corpus.texts import EMBEDDED, read_jsonl

    folder = tmp_path_factory.mktemp("use")
    rows = [row for row in read_jsonl(EMBEDDED / "stories.jsonl") if row["emotion"] in ("alert", "docile")]
    neutral = "\n".join(json.dumps({"kind": "prose", "text": row["text"]}) for row in rows[:12])
    (folder / "neutral.jsonl").write_text(neutral, encoding="utf-8")
    values = {
        "name": "tiny", "cache": str(folder / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": ["afraid", "calm", "proud", "sad"], "neutral": str(folder / "neutral.jsonl")},
        "activations": {"texts_per_part": 8, "pooled_layers": [0], "window": 64},
        "sae": {"width": 64, "k": 8, "steps": 20, "train_batch_size_tokens": 64, "health_texts": 0},
        "tracking": {"mode": "disabled"}, "compute": {"threads": 1, "device": "cpu"},
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return affectlens.run_study(path, stages=["directions", "sae"])


@pytest.fixture(scope="module")
def readings(study) -> Readings:
    return Readings.of(study, [3, 5])


def test_a_reading_is_what_the_cache_holds_of_a_text_of_several_windows(study, readings):
    document = study.documents.iloc[0]
    rows = study.activations.tokens(study.layer).of(0)
    assert len(rows) > 2 * 64
    (reading,) = texts.read_texts(study, readings, [("story", document["text"])])
    shares = study.built.readout(study.layer, rows) / study.mean_norm(study.layer)
    np.testing.assert_allclose(reading.values[:, : len(study.concepts)], shares, atol=1e-5)
    np.testing.assert_allclose(reading.values[:, -2:], study.sae.encode(rows)[:, [3, 5]], atol=1e-4)
    assert "".join(reading.tokens) == document["text"]


def test_neutral_tokens_are_the_zero_and_the_unit(study, readings):
    standard = readings.standard(readings.values(study.neutral_rows(10**9)))
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-4)
    assert np.allclose(standard.std(axis=0), 1, atol=1e-3) or {3, 5} & set(np.flatnonzero(standard.std(axis=0) == 0))


def test_a_chat_is_read_message_by_message(study, readings):
    chat = [{"role": "user", "content": "Is anybody there?"}, {"role": "assistant", "content": "Nobody came."}]
    (reading,) = texts.read_texts(study, readings, [("chat", chat)])
    assert [each.role for each in reading.messages] == ["user", "assistant"]
    said = ["".join(reading.tokens[each.start : each.end]) for each in reading.messages]
    assert [text.strip() for text in said] == [message["content"] for message in chat]
    assert reading.means().shape == (2, len(readings.rows))
    assert list(reading.frame()["role"].unique()) == ["user", "assistant"]


def test_letters_of_several_tokens_are_spelled_once(study):
    text = "na\u00efve \u2014 \u65e5\u672c \U0001f642 end"
    assert "".join(texts.spell(study.tokenizer, texts.tokenised(study, text).ids)) == text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a plain text", ["a plain text"]),
        ('{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        ('[{"role": "user", "content": "hi"}]', [[{"role": "user", "content": "hi"}]]),
        ('{"conversations": [{"from": "human", "value": "hi"}]}', [[{"role": "user", "content": "hi"}]]),
        ("[sic] a text that begins like a list", ["[sic] a text that begins like a list"]),
    ],
)
def test_what_is_given_is_recognised(content, expected):
    assert [text for _, text in texts.from_source("-", io.StringIO(content))] == expected


def test_a_long_text_is_no_file_name_and_a_file_that_is_not_there_is_no_text():
    long = "word " * 500
    assert [text for _, text in texts.from_source(long, None)] == [long]
    with pytest.raises(UserError, match="no such file"):
        list(texts.from_source("letter.txt", None))


def test_a_line_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "good"}\n{"txt": "bad"}\n', encoding="utf-8")
    found = texts.from_source(str(path), None)
    assert next(found)[1] == "good"
    with pytest.raises(UserError, match="line 2"):
        next(found)


def states(study, recipe: Recipe, *, cached: bool = True) -> np.ndarray:
    """Centred projections, as shares of the mean norm, at every position from which a token was predicted."""
    from affectlens.model.sampling import stream

    text = texts.tokenised(study, PROMPT)
    ids = [*text.lead, *text.ids.tolist()]
    steps = stream(
        study.subject, [ids], np.full((1, 1, 12), 0.4), Vectors(study).edits([recipe]), read=study.layer,
        special="never", cached=cached,
    )  # fmt: skip
    rows = np.concatenate([step.states for step in steps if step.states is not None])
    return study.built.readout(study.layer, rows)[:, study.concepts.index("calm")] / study.mean_norm(study.layer)


@pytest.mark.parametrize("cached", [True, False])
def test_steering_acts_at_every_decoded_token(study, cached):
    """What is clamped has its value wherever a token is predicted; were the prompt alone steered, only at the first."""
    np.testing.assert_allclose(states(study, Recipe((Push("calm", 0.3, "clamp"),)), cached=cached), 0.3, atol=1e-4)
    np.testing.assert_allclose(states(study, Recipe((Push("calm", 1.0, "out"),)), cached=cached), 0.0, atol=1e-4)
    assert states(study, Recipe((Push("calm", -0.2, "cap"),)), cached=cached).max() <= -0.2 + 1e-4
    assert states(study, Recipe(), cached=cached).std() > 1e-3


def test_an_addition_is_as_large_as_it_says_and_random_is_as_large(study):
    recipes = [Recipe(), Recipe((Push("calm", 0.2), Push("sad", -0.1))), Recipe((Push("calm", 0.2),), random=1)]
    (edit,) = Vectors(study).edits(recipes)
    import torch

    zeros = torch.zeros(3, 4, study.subject.width)
    delta = edit.delta(zeros).numpy() / study.mean_norm(study.layer)
    calm, sad = study.directions()["calm"], study.directions()["sad"]
    assert not delta[0].any()
    np.testing.assert_allclose(delta[1, 0], 0.2 * calm - 0.1 * sad, atol=1e-5)
    assert np.linalg.norm(delta[2, 0]) == pytest.approx(0.2, abs=1e-5)
    assert abs(delta[2, 0] @ calm) < 0.15


@pytest.fixture
def with_circuits(study, tmp_path):
    """The study with the result of a stage that found circuits beside its own."""
    from affectlens.circuits.units import UNITS, Unit, Units, write_units
    from affectlens.use.opened import Opened

    draw = np.random.default_rng(0).normal
    circuits = {"sad": (Unit("head", 1, 2), Unit("neuron", 3, 5)), "calm": (Unit("neuron", 0, 7),)}
    shapes = {"heads": (4, 4, 4, 8), "neurons": (4, 4, 64), "residual": (4, 4, 32)}
    arrays = {name: draw(size=shape).astype(np.float32) for name, shape in shapes.items()}
    units = Units(tuple(study.concepts), **arrays, norms=np.full(4, 2.0), circuits=circuits)
    write_units(tmp_path / UNITS, units)
    return Opened(study.study, {**study.folders, "circuits": tmp_path})


def test_a_circuit_is_added_by_name_as_large_as_it_says_and_random_units_are_as_large(with_circuits):
    from affectlens.circuits.units import total_norm

    vectors = Vectors(with_circuits)
    assert vectors.names[-2:] == ["circuit:calm", "circuit:sad"]
    recipes = [
        Recipe((Push("circuit:sad", 0.3),)),
        Recipe((Push("circuit:sad", -0.3), Push("calm", 0.1))),
        Recipe((Push("circuit:sad", 0.3),), random=4),
    ]
    edits = vectors.edits(recipes)
    places = {(edit.layer, edit.place): edit.delta.keywords["direction"].numpy() for edit in edits}
    assert set(places) == {(2, "residual"), (1, "heads"), (3, "neurons")}
    for row in (0, 2):
        push: Any = {where: values[row] for where, values in places.items() if where[1] != "residual"}
        assert total_norm(push, with_circuits.subject, np.full(4, 2.0)) == pytest.approx(0.3, rel=1e-4)
    np.testing.assert_allclose(places[1, "heads"][1], -places[1, "heads"][0], rtol=1e-5)
    own, random = (set(np.flatnonzero(places[1, "heads"][row]) // 8) for row in (0, 2))
    assert own == {2}
    assert len(random) == 1
    assert not own & random


@pytest.mark.parametrize("cached", [True, False])
def test_answers_under_a_circuit_differ_from_plain_ones_whatever_is_kept(with_circuits, cached):
    recipes = [Recipe(), Recipe((Push("circuit:calm", 3.0),)), Recipe((Push("circuit:calm", 3.0), Push("sad", 0.1)))]
    answers = Answers(with_circuits, PROMPT, recipes, Draws(tokens=12, seed=3, cached=cached)).run().ids
    again = Answers(with_circuits, PROMPT, recipes, Draws(tokens=12, seed=3)).run().ids
    assert answers == again
    assert answers[1] != answers[0]


def test_a_served_circuit_says_what_a_steered_one_says(with_circuits):
    """transformers' own model, whose rows join and leave, against the bridge."""
    from affectlens.model.decoding import Opening, Rows
    from affectlens.use.opened import Opened

    served = Opened(with_circuits.study, with_circuits.folders)
    _ = served.decoder
    recipe = Recipe((Push("circuit:sad", 2.0),))
    ids = with_circuits.subject.led(with_circuits.subject.encode(PROMPT))
    rows = Rows(served.decoder, served.layer)
    ((logits, _),) = rows.join([Opening(ids, Vectors(served).edits([recipe]))])
    said = [int(logits[-1].argmax())]
    for _ in range(7):
        said.append(int(rows.step([said[-1]])[0][0].argmax()))
    expected = Answers(with_circuits, PROMPT, [recipe], Draws(tokens=8, temperature=0)).run().ids[0][0]
    assert said[: len(expected)] == expected


def test_what_no_circuit_can_do_is_said_in_one_sentence(study, with_circuits):
    for opened, push, words in (
        (study, Push("circuit:sad", 0.1), "this study has no circuits; set `circuits.run: true`"),
        (with_circuits, Push("circuit:proud", 0.1), "no circuit called `circuit:proud`"),
        (with_circuits, Push("circuit:sad", 0.1, "clamp"), "a circuit is added, or taken away by a negative amount"),
    ):
        with pytest.raises(UserError, match=words):
            Vectors(opened).edits([Recipe((push,))])


def test_features_are_clamped_to_their_code(study):
    from affectlens.model.reading import Site, read

    site = Site(study.layer)
    feature = int(study.sae.encode(study.activations.tokens(study.layer).of(0)).mean(axis=0).argmax())
    ids = study.subject.led(study.subject.encode(PROMPT))
    ((_, plain),) = read(study.subject, [ids], [site])
    for push, wanted in (
        (Push(f"feature:{feature}", 1.0, "out"), 0.0),
        (Push(f"feature:{feature}", 2.0, "clamp"), 2.0),
    ):
        (edit,) = Vectors(study).edits([Recipe((push,))])
        delta = edit.delta(plain[site][None])[0].numpy()
        codes = study.sae.encode(plain[site].numpy())[:, feature]
        np.testing.assert_allclose(delta, (wanted - codes)[:, None] * study.sae.decoder[feature], atol=1e-4)


def test_streamed_batched_and_cached_answers_and_their_readings_are_the_same(study, readings):
    recipes = [Recipe(), Recipe((Push("calm", 1.5),)), Recipe((Push("calm", 1.5),), random=0)]
    draws = Draws(tokens=10, samples=2, seed=3)
    together = Answers(study, PROMPT, recipes, draws)
    streamed: dict[tuple[int, int], str] = {}
    for step in together.stream():
        for row, sample, piece in step:
            streamed[row, sample] = streamed.get((row, sample), "") + piece
    assert [[streamed.get((row, sample), "") for sample in range(2)] for row in range(3)] == together.texts
    uncached = Answers(study, PROMPT, recipes, Draws(tokens=10, samples=2, seed=3, cached=False)).run()
    assert uncached.ids == together.ids
    values = together.readings(readings)
    for row, recipe in enumerate(recipes):
        alone = Answers(study, PROMPT, [recipe], draws).run()
        assert alone.texts == [together.texts[row]]
        for mine, theirs in zip(alone.readings(readings)[0], values[row], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4)
        assert alone.perplexities()[0] == pytest.approx(together.perplexities()[row], rel=1e-3)
    assert together.texts[0] != together.texts[1]


def test_what_a_study_cannot_steer_by_is_said_before_sampling(study):
    for push, words in (
        (Push("clam", 0.1), "calm"),
        (Push("calm", 0.1, layers=(1,)), "pooled_layers"),
        (Push("feature:64", 0.1), "0 to 63"),
        (Push("feature:3", 0.1, layers=(0,)), "layer 2"),
    ):
        with pytest.raises(UserError, match=words):
            Answers(study, PROMPT, [Recipe((push,))], Draws())


def chats(folder):
    path = folder / "chats.jsonl"
    rows = [
        {"id": "one", "messages": [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "I."}]},
        {"id": "<img src=x onerror=alert(1)>", "text": "</script><script>alert(1)</script> Nobody came."},
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def run(*arguments: object) -> str:
    """What the command prints."""
    from affectlens.cli import app
    from typer.testing import CliRunner

    outcome = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False, standalone_mode=False)
    assert not outcome.exception
    return outcome.output


@pytest.fixture(scope="module")
def file(study):
    """Its study file."""
    return study.folders["corpus"].parents[2] / "study.yaml"


def test_read_writes_what_it_read(study, readings, file, tmp_path):
    import pandas as pd

    paths = {name: tmp_path / f"out.{name}" for name in ("json", "parquet", "html")}
    run("read", file, chats(tmp_path), "--features", "3,5", "--json", paths["json"], "--parquet", paths["parquet"],
        "--page", paths["html"])  # fmt: skip
    said = json.loads(paths["json"].read_text(encoding="utf-8"))
    expected = list(texts.read_texts(study, readings, texts.from_source(str(tmp_path / "chats.jsonl"), None)))
    assert [row["name"] for row in said["rows"]] == readings.names
    assert [text["name"] for text in said["texts"]] == [each.name for each in expected]
    for text, reading in zip(said["texts"], expected, strict=True):
        np.testing.assert_allclose(text["values"], reading.values, rtol=1e-4, atol=1e-5)
        assert text["tokens"] == reading.tokens
    table = pd.read_parquet(paths["parquet"])
    assert len(table) == sum(len(each.tokens) for each in expected)
    np.testing.assert_allclose(table[readings.names].to_numpy(), np.concatenate([e.standard for e in expected]), 1e-4)
    assert "afraid" in run("read", file, "Nobody came.", "--show", "afraid")


def test_the_page_colours_by_what_is_chosen_and_asks_for_nothing(study, readings, file, tmp_path):
    from browser import browser, visit

    page = tmp_path / "page.html"
    run("read", file, chats(tmp_path), "--features", "3", "--page", page, "--show", "calm")
    (first, second) = texts.read_texts(study, readings, texts.from_source(str(tmp_path / "chats.jsonl"), None))
    with browser() as running:
        for width, dark in ((1280, False), (390, True)):
            with visit(running, page, width=width, dark=dark) as seen:
                shown = seen.page.eval_on_selector_all(".token", "all => all.map(each => Number(each.dataset.value))")
                np.testing.assert_allclose(shown, first.standard[:, readings.index("calm")], atol=0.006)
                seen.page.select_option("#row", label="sad")
                seen.page.select_option("#second", label=second.name)
                shown = seen.page.eval_on_selector_all(".token", "all => all.map(each => Number(each.dataset.value))")
                sad = readings.index("sad")
                both = np.concatenate([first.standard[:, sad], second.standard[:, sad]])
                np.testing.assert_allclose(shown, both, atol=0.006)
                seen.page.locator(".token").first.focus()
                seen.page.keyboard.press("ArrowRight")
                assert first.tokens[1].strip() in seen.page.inner_text("#detail")
                assert seen.page.inner_text(".role >> nth=0") == "user"
                assert seen.overflow() <= 0
                assert not seen.errors
                assert len(seen.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--show", "clam"), "calm"),
        (("--features", "64"), "0 to 63"),
        (("--features", "x"), "numbers"),
        (("--page", "nowhere/page.html"), "folder"),
        (("model.dtype=float32",), "--set model.dtype=float32"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(file, arguments, words):
    with pytest.raises(UserError, match=words):
        run("read", file, "a text", *arguments)


def corpus_file(study, folder):
    path = folder / "corpus.jsonl"
    rows = [{"id": f"t{index}", "text": text} for index, text in enumerate(study.documents["text"])]
    path.write_text("\n".join(map(json.dumps, [*rows, *rows, *rows])), encoding="utf-8")
    return path


def test_a_scan_counts_every_token_and_finds_the_top_passages(study, readings, tmp_path):
    from affectlens.use.scanning import Scan

    path = corpus_file(study, tmp_path)
    job = Scan(study, readings, tmp_path / "scan", "c", first=4, top=3)
    job.run(1, texts.from_source(str(path), None))
    tables = job.merge()
    every = list(texts.read_texts(study, readings, texts.from_source(str(path), None)))
    values = np.concatenate([each.standard[4:] for each in every])
    found = tables["distribution"].set_index("row")
    np.testing.assert_allclose(found["mean"], values.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(found["sd"], values.std(axis=0), atol=1e-3)
    np.testing.assert_allclose(found["highest"], values.max(axis=0), atol=1e-4)
    inside = np.abs(values).max(axis=0) < 20
    np.testing.assert_allclose(found["q95"][inside], np.quantile(values, 0.95, axis=0)[inside], atol=0.06)
    calm = readings.index("calm")
    peaks = sorted((each.standard[4:, calm].max() for each in every), reverse=True)[:3]
    top = tables["contexts"].query("row == 'calm'")
    np.testing.assert_allclose(top["value"], peaks, atol=1e-4)
    row = top.iloc[0]
    texts_by_name = dict(zip((f"t{index}" for index in range(10**6)), study.documents["text"], strict=False))
    assert row["before"] + row["token"] + row["after"] in texts_by_name[row["name"]]


def test_a_scan_that_was_stopped_goes_on_and_its_parts_add_up(study, readings, tmp_path):
    from affectlens.use.scanning import Scan

    path = corpus_file(study, tmp_path)
    source = lambda: texts.from_source(str(path), None)  # noqa: E731
    whole = Scan(study, readings, tmp_path / "whole", "c")
    whole.run(1, source())
    stopped = Scan(study, readings, tmp_path / "stopped", "c")

    def stop(state):
        if state.done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.run(1, source(), stop, write_every_s=0)
    assert stopped.merge() is None
    kept, complete = stopped.state(1)
    assert 0 < kept.done < whole.state(1)[0].done and not complete
    stopped.run(1, source())
    assert stopped.path(1).read_bytes() == whole.path(1).read_bytes()
    parts = Scan(study, readings, tmp_path / "parts", "c", parts=3)
    for part in (3, 1, 2):
        parts.run(part, source())
    ours, theirs = parts.merge(), whole.merge()
    for column in ("tokens", "texts", "q50", "q99"):
        assert ours["distribution"][column].tolist() == theirs["distribution"][column].tolist()
    np.testing.assert_allclose(ours["contexts"]["value"], theirs["contexts"]["value"], atol=1e-4)
    with pytest.raises(UserError, match="--out"):
        Scan(study, readings, tmp_path / "parts", "c", parts=2).run(1, source())
    with pytest.raises(UserError, match="corpus"):
        Scan(study, readings, tmp_path / "whole", "other").run(1, source())


def test_scan_and_steer_from_the_command_line(study, file, tmp_path):
    path = corpus_file(study, tmp_path)
    out = tmp_path / "scan"
    assert "1/2" in run("scan", file, path, "--out", out, "--part", "1/2")
    assert (out / "tables").is_dir() is False
    assert "calm" in run("scan", file, path, "--out", out, "--part", "2/2", "--show", "calm")
    assert (out / "tables" / "contexts.parquet").is_file()
    found = json.loads(run("steer", file, PROMPT, "calm=0:1:3", "--out", "sad", "--tokens", "5", "--samples", "2",
                           "--continue", "--json", "-"))["answers"]  # fmt: skip
    assert len(found) == 2 * (1 + 2 * 3)
    assert {row["random"] for row in found} == {False, True}
    assert all(row["perplexity"] is None or row["perplexity"] >= 1 for row in found)
    assert "perplexity" in run("steer", file, PROMPT, "feature:3=0.5", "--cap", "calm=0", "--tokens", "5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("steer", PROMPT), "desperate=0.1"),
        (("steer", PROMPT, "calm"), "calm"),
        (("steer", PROMPT, "calm=0:1:900"), "range"),
        (("steer", PROMPT, "calm=0.1", "--layers", "x"), "layers"),
        (("scan", "nowhere.jsonl", "--out", "x"), "no such file"),
    ],
)
def test_a_command_that_cannot_be_done_is_answered_in_one_sentence(file, arguments, words):
    with pytest.raises(UserError, match=words):
        run(arguments[0], file, *arguments[1:])


def exported(study, file, form, folder, *more):
    """The files of an export of two concepts, and what 0.1 is in the residual stream along calm."""
    paths = run("export", file, "--format", form, "calm", "sad", "--out", folder, *more).split("\n")
    push = 0.1 * study.mean_norm(study.layer) * study.directions()["calm"]
    return [folder / path.rpartition("/")[2] for path in paths if str(folder) in path], push


def test_gguf_holds_a_push_of_the_strength_at_scale_1(study, file, tmp_path):
    """As repeng reads it: the architecture, a hint of the model, and ``direction.<layer>`` tensors."""
    from gguf import GGUFReader

    (path, _), push = exported(study, file, "gguf", tmp_path)
    reader = GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 1
    assert reader.get_field(f"affectlens.direction.{study.layer}.residual_norm").contents() == pytest.approx(
        study.mean_norm(study.layer), rel=1e-5
    )
    (tensor,) = reader.tensors
    kind, layer = tensor.name.split(".")
    assert (kind, int(layer)) == ("direction", study.layer)
    np.testing.assert_allclose(tensor.data, push, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="layer 0"):
        run("export", file, "--format", "gguf", "calm", "--layer", "0", "--out", tmp_path)


def test_repengs_own_reader_takes_the_gguf(study, file, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng 0.4 names it; numpy 2 has it no more
    repeng = pytest.importorskip("repeng")
    (path, _), push = exported(study, file, "gguf", tmp_path)
    read = repeng.ControlVector.import_gguf(path)
    assert read.model_type == "llama" and list(read.directions) == [study.layer]
    np.testing.assert_allclose(read.directions[study.layer], push, rtol=1e-4, atol=1e-6)


def test_neuronpedias_own_client_takes_the_json(study, file, tmp_path, monkeypatch):
    """What it would send to the site holds the push; nothing is sent here."""
    request = pytest.importorskip("neuronpedia.requests.vector_request")
    from neuronpedia.np_vector import NPVector  # pyright: ignore[reportMissingImports]

    sent = {}

    def send(self, method, json, uri):
        sent.update(json)
        answer = {"modelId": json["modelId"], "source": "s", "index": "1", "label": json["vectorLabel"],
                  "hookName": json["hookType"], "values": json["vector"],
                  "defaultSteerStrength": json["vectorDefaultSteerStrength"]}  # fmt: skip
        return {"vector": answer, "url": "https://example.org"}

    monkeypatch.setenv("NEURONPEDIA_API_KEY", "none")
    monkeypatch.setattr(request.VectorRequest, "send_request", send)
    files, push = exported(study, file, "neuronpedia", tmp_path)
    vector = NPVector.new(**json.loads(files[0].read_text(encoding="utf-8")))
    assert (sent["layerNumber"], sent["hookType"], sent["vectorLabel"]) == (study.layer + 1, "hook_resid_pre", "calm")
    np.testing.assert_allclose(vector.default_steer_strength * np.array(vector.values), push, rtol=1e-4)


def test_the_other_formats_hold_the_same_push(study, file, tmp_path):
    import torch
    from safetensors import safe_open

    (path,), push = exported(study, file, "safetensors", tmp_path / "s")
    with safe_open(path, "numpy") as opened:
        said = opened.metadata()
        assert int(said["layer"]) == study.layer and "norm 1" in said["unit"]
        np.testing.assert_allclose(0.1 * float(said["mean_residual_norm"]) * opened.get_tensor("calm"), push, rtol=1e-4)
    files, push = exported(study, file, "vllm-lens", tmp_path / "v")
    fields = json.loads(files[1].read_text(encoding="utf-8"))
    with safe_open(tmp_path / "v" / fields["activations"], "numpy") as opened:
        tensor = opened.get_tensor("activations")
    assert tensor.shape == (1, len(push)) and fields["layer_indices"] == [study.layer] and not fields["norm_match"]
    np.testing.assert_allclose(fields["scale"] * tensor[0], push, rtol=1e-4)
    files, push = exported(study, file, "lm-eval", tmp_path / "l")
    step = torch.load(files[0], weights_only=True)[f"layers.{study.layer}"]
    np.testing.assert_allclose(step["steering_coefficient"] * step["steering_vector"].numpy(), push, rtol=1e-4)
    assert step["action"] == "add"
    files, push = exported(study, file, "neuronpedia", tmp_path / "n", "--strength", "0.2")
    vector = json.loads(files[0].read_text(encoding="utf-8"))
    assert vector["default_steer_strength"] == pytest.approx(20)
    np.testing.assert_allclose(10 * np.array(vector["vector"]), push, rtol=1e-4)
    assert (vector["layer_num"], vector["hook_type"]) == (study.layer + 1, "hook_resid_pre")
    with pytest.raises(UserError, match="gguf"):
        run("export", file, "--format", "ggf", "--out", tmp_path)


def test_lm_evals_own_steered_model_adds_what_is_added_here(study, file, tmp_path, model_folder):
    steered = pytest.importorskip("lm_eval.models.hf_steered")
    import torch

    (path, _), push = exported(study, file, "lm-eval", tmp_path)
    model = steered.SteeredModel(pretrained=str(model_folder("llama")), steer_path=str(path), device="cpu",
                                 dtype="float32", backend="causal")  # fmt: skip
    ids = torch.tensor([study.subject.led(study.subject.encode(PROMPT))])
    seen = {}
    block = model.model.base_model.layers[study.layer]
    with torch.no_grad(), steered.steer(model.model, model.hook_to_steer):
        block.register_forward_hook(lambda *args: seen.update(out=args[2]))
        model.model(ids)
    out = seen["out"][0] if isinstance(seen["out"], tuple) else seen["out"]
    from affectlens.model.reading import Site

    plain = study.subject.activations(ids, [Site(study.layer)])[Site(study.layer)]
    np.testing.assert_allclose(
        (out - plain).reshape(-1, len(push)).numpy(), np.tile(push, (ids.shape[1], 1)), atol=1e-3
    )


def test_samples_are_found_by_what_they_were_sampled_under(tmp_path):
    from affectlens.use.samples import Wanted, choose, sampled

    class Finished:
        study = None
        folders = {"causal": tmp_path}  # noqa: RUF012

        def config_of(self, stage):
            return {"reference": 0.1}

    rows = [
        ("none", "It was late."),
        ("direction calm", "We sat down."),
        ("isotropic", "Blue."),
        ("feature sad", "Oh."),
    ]
    lines = [{"vector": vector, "words_banned": False, "opening": "Then", "text": text} for vector, text in rows]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    finished: Any = Finished()
    found = sampled(finished)
    assert [(row["family"], row["concept"], row["strength"]) for row in found] == [
        ("none", "", 0.0), ("direction", "calm", 0.1), ("isotropic", "", 0.1), ("feature", "sad", 0.1)]  # fmt: skip
    assert [row["text"] for row in choose(found, Wanted(concept="calm", strength=0.1))] == ["We sat down."]
    assert [row["text"] for row in choose(found, Wanted(contains="SAT"))] == ["We sat down."]
    assert len(choose(found, Wanted())) == 4
    with pytest.raises(UserError, match="calm"):
        choose(found, Wanted(concept="clam"))


def test_answers_of_experiments_are_samples_too(tmp_path):
    from types import SimpleNamespace

    from affectlens.experiments.validation import read_chosen
    from affectlens.stages.measure import Measurements
    from affectlens.use.samples import Wanted, choose, sampled
    from safetensors.numpy import save_file

    config = SimpleNamespace(folder=Path("experiments"), run=("blackmail",), limit=None)
    (experiment,) = read_chosen(**vars(config))
    folder = tmp_path / "measure" / "blackmail"
    folder.mkdir(parents=True)
    one = np.zeros((1, 1), np.float32)
    save_file({"words": one, "directions": one}, folder / "measured.safetensors")
    grid = [
        {"vector": "", "family": "none", "strength": 0.0},
        {"vector": "calm", "family": "concept", "strength": 0.05},
    ]
    card = {"concepts": ["calm"], "grid": grid, "compared": [], "tuned": []}
    (folder / "measured.json").write_text(json.dumps(card), encoding="utf-8")
    row = {"scenario": 0, "sample": 0, "loss": None, "repetition": 0.0}
    answers = [row | {"condition": 0, "text": "I will wait."}, row | {"condition": 1, "text": "I will breathe."}]
    (folder / "completions.jsonl").write_text("\n".join(map(json.dumps, answers)) + "\n", encoding="utf-8")
    (tmp_path / "grade" / "blackmail").mkdir(parents=True)
    (tmp_path / "grade" / "blackmail" / "grades.jsonl").write_text('{"label": 0}\n{"label": 1}\n', encoding="utf-8")
    study: Any = SimpleNamespace(
        folders={"measure": folder.parent, "grade": tmp_path / "grade"},
        study=SimpleNamespace(config=SimpleNamespace(experiments=config)),
        result=lambda stage: Measurements(folder.parent),
    )
    (found,) = choose(sampled(study), Wanted(concept="calm"))
    assert (found["source"], found["strength"], found["text"], found["grade"]) == (
        "blackmail",
        0.05,
        "I will breathe.",
        1,
    )
    assert found["prompt"] == experiment.scenarios[0].id


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"[" * 200_000, "not JSON"),
        (b'{"text": "a\\ud83d b"}', "half an emoji"),
        (b'{"messages": ["x"]}', "a list of objects"),
        (b'{"conversations": ["x", 5]}', "a list of objects"),
        (b'{"conversations": 5}', "neither"),
        (b'{"messages": [{"role": 5, "content": "x"}]}', "role"),
        (b'{"text": "\xff"}', "not UTF-8 text"),
    ],
)
def test_lines_that_mean_harm_are_refused_by_their_number(line: bytes, said: str, tmp_path):
    from affectlens.use.texts import from_source

    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"text": "Nobody came."}\n' + line + b"\n")
    with pytest.raises(UserError, match=said) as refused:
        list(from_source(str(path), None))
    assert str(refused.value).startswith(f"{path} line 2")
