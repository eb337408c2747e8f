"""Names of files that are none, and files without end: told in a sentence, and nothing waits or fills the memory."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import stat
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from affectlens.cli import app
from affectlens.corpus import texts as corpus_texts
from affectlens.corpus.texts import read_json, read_jsonl, read_table
from affectlens.errors import ConfigError, UserError
from affectlens.experiments.conclude.preference_table import read_scores
from affectlens.files import open_file, write_text
from affectlens.monitor.episodes import read_episodes
from affectlens.study import Study
from affectlens.use.scanning import identity
from affectlens.use.texts import from_source
from affectlens.use.transcripts import watch_file
from typer.testing import CliRunner

READERS: dict[str, Callable[[Path], Any]] = {
    "a line of texts": lambda path: list(from_source(str(path.with_suffix(".jsonl")), None)),
    "a chat": lambda path: list(from_source(str(path.with_suffix(".json")), None)),
    "a text": lambda path: list(from_source(str(path), None)),
    "a corpus to scan": identity,
    "stories": read_jsonl,
    "a card": read_json,
    "ratings": read_table,
    "episodes": read_episodes,
    "a transcript": lambda path: list(watch_file(None, path)),  # pyright: ignore[reportArgumentType]
    "preferences": read_scores,
    "any file": open_file,
}
unix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and sockets have no paths there")


@pytest.fixture
def unlike_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A pipe, a socket and a device under every ending."""
    found = []
    for ending in ("", ".jsonl", ".json"):
        os.mkfifo(tmp_path / f"pipe{ending}")
        with socket.socket(socket.AF_UNIX) as place:
            monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
            place.bind(f"socket{ending}")
        (tmp_path / f"device{ending}").symlink_to("/dev/zero")
        found += [tmp_path / f"{name}{ending}" for name in ("pipe", "socket", "device")]
    return found


@unix
@pytest.mark.parametrize("what", READERS)
def test_what_is_no_file_is_told_and_never_waited_for(what: str, unlike_files: list[Path]):
    for path in unlike_files[:3]:
        with pytest.raises(UserError, match=r"is a (pipe|socket|device), not a file|no such file|there is no file"):
            READERS[what](path)


@unix
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_a_model_folder_with_what_is_no_file_is_refused_before_it_is_read(
    kind: str, model_folder: Any, unlike_files: list[Path], study_values: dict, write_study: Any, tmp_path: Path
):
    folder = shutil.copytree(model_folder("llama"), tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(tmp_path / kind)
    study_values["model"] = {"name": str(folder), "layer": 2, "dtype": "float32"}
    with pytest.raises(ConfigError, match=rf"`model.name: .*tokenizer.json: is a {kind}, not a file"):
        Study.load(write_study(study_values))


LONG = {
    "lines of texts": ("x.jsonl", lambda path: list(from_source(str(path), None))),
    "a text": ("x.txt", lambda path: list(from_source(str(path), None))),
    "stories": ("x.jsonl", read_jsonl),
    "episodes": ("x.jsonl", read_episodes),
    "a transcript": ("x.jsonl", lambda path: list(watch_file(None, path))),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("what", LONG)
def test_a_text_that_no_model_would_get_through_is_refused_by_its_line(what: str, tmp_path: Path, monkeypatch: Any):
    """One of 100 MB would be refused after 16 MB; here the limits are a thousandth."""
    name, read = LONG[what]
    for module in ("affectlens.corpus.texts", "affectlens.use.texts"):
        monkeypatch.setattr(f"{module}.LARGEST_TEXT", 16_000)
    path = tmp_path / name
    path.write_bytes(b'{"text": "' + b"word " * 20_000 + b'"}\n')
    with pytest.raises(UserError, match=r"longer than .* MB; split it into several texts") as refused:
        read(path)
    assert str(path) in str(refused.value)


def test_a_line_without_end_is_not_taken_into_memory(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    with path.open("wb") as stream:
        stream.truncate(2 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="line 1: longer than 16 MB"):
            list(corpus_texts.raw_lines(path))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_json_file_without_end_is_refused(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(corpus_texts, "LARGEST_JSON", 1000)
    (tmp_path / "card.json").write_text("[" + "1, " * 1000 + "1]")
    with pytest.raises(UserError, match=r"card.json: larger than"):
        read_json(tmp_path / "card.json")


def test_standard_input_without_end_or_in_another_encoding_is_refused(monkeypatch: Any):
    monkeypatch.setattr("affectlens.use.texts.LARGEST_TEXT", 1000)
    monkeypatch.setattr(corpus_texts, "LARGEST_TEXT", 1000)
    with pytest.raises(UserError, match="standard input: longer than"):
        list(from_source("-", io.StringIO("word " * 1000)))
    with pytest.raises(UserError, match="standard input: not UTF-8"):
        list(from_source("-", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8")))


def test_half_an_emoji_in_a_json_file_is_no_text(tmp_path: Path):
    (tmp_path / "card.json").write_text('{"name": "\\ud83d"}')
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_json(tmp_path / "card.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("item,category,elo,calm\na,b,nan,1\nb,c,1,2\n", "column `elo` is not a number"),
        ("item,category,elo,calm\na,b,1,inf\nb,c,1,2\n", "column `calm` is not a number"),
        ("item,category,elo,calm\na, or b,c,1,1\n", "row 1: has more cells than columns"),
        ("item,category,elo,calm\n", "lacks any row"),
        ("item,category,elo\na,b,1\n", "a column with a reading"),
        ("item,elo,calm\na,1,1\n", "column `category`"),
        ("item,category,elo,elo\na,b,1,1\n", "column `elo` stands twice"),
        ("", "lacks any row"),
    ],
)
def test_a_table_of_preferences_that_cannot_be_meant_is_named(content: str, said: str, tmp_path: Path):
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        read_scores(tmp_path / "table.csv")


def test_a_row_of_a_table_may_end_in_empty_cells(tmp_path: Path):
    (tmp_path / "table.csv").write_text("item,category,elo,calm\na,b,1,1,,\nc,d,2,2,,\n")
    assert read_scores(tmp_path / "table.csv")[0] == ["a", "c"]


@pytest.mark.parametrize("content", ["", "\n\n", '{"role": "user", "content": "x"}\n'])
def test_a_transcript_without_an_answer_is_told(content: str, tmp_path: Path):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match="holds nothing that the assistant says"):
        list(watch_file(None, tmp_path / "x.jsonl"))  # pyright: ignore[reportArgumentType]


def test_a_transcript_that_ends_within_a_letter_is_no_text(tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(b'{"role": "user", "content": "x"}\n\xc3')
    with pytest.raises(UserError, match="not UTF-8"):
        list(watch_file(None, tmp_path / "x.jsonl"))  # pyright: ignore[reportArgumentType]


@unix
def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path: Path):
    """As root a rename would take the place of /dev/null itself."""
    os.mkfifo(tmp_path / "out.html")
    (tmp_path / "link.html").symlink_to("/dev/null")
    for name, kind in (("out.html", "pipe"), ("link.html", "device")):
        with pytest.raises(UserError, match=f"{name}: is a {kind}, not a file"):
            write_text(tmp_path / name, "x")
    assert stat.S_ISFIFO((tmp_path / "out.html").stat().st_mode) and (tmp_path / "link.html").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "out.html"]


COMMANDS = {
    "read": ["read", "nothing.yaml", "text", "--json"],
    "read, a table": ["read", "nothing.yaml", "text", "--parquet"],
    "read, a page": ["read", "nothing.yaml", "text", "--page"],
    "steer": ["steer", "nothing.yaml", "text", "calm=0.1", "--json"],
    "samples": ["samples", "nothing.yaml", "--json"],
    "compare": ["compare", "nothing.yaml", "other.yaml", "--json"],
    "compare, a table": ["compare", "nothing.yaml", "other.yaml", "--csv"],
    "compare, models": ["compare", "nothing.yaml", "other.yaml", "--models", "--json"],
    "watch": ["monitor", "watch", "nothing.yaml", "card.json", "--prompt", "x", "--json"],
    "watch, a page": ["monitor", "watch", "nothing.yaml", "card.json", "--prompt", "x", "--page"],
    "calibrate": ["monitor", "calibrate", "nothing.yaml"],
    "evaluate": ["monitor", "evaluate", "nothing.yaml", "card.json", "episodes.jsonl", "--json"],
    "explore": ["explore", "nothing.yaml", "--out"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_where_nothing_can_be_written_is_told_before_anything_is_opened(name: str, tmp_path: Path):
    """There is no such study: whatever opens it first would say that."""
    (tmp_path / "a folder").mkdir()
    for path, said in (("nowhere/x", "its folder is not there|in a folder that is there"), ("a folder", "folder")):
        found = CliRunner().invoke(app, [*COMMANDS[name], str(tmp_path / path)])
        assert isinstance(found.exception, UserError) and re.search(said, str(found.exception)), found.exception


def test_formats_of_the_explorer_are_refused_before_it_is_gathered(tmp_path: Path):
    (tmp_path / "a file").write_text("x")
    out = ["explore", "nothing.yaml", "--out", str(tmp_path / "x.html")]
    for more, said in (
        (["--neuronpedia", str(tmp_path / "np")], "--creator"),
        (["--neuronpedia", str(tmp_path / "a file"), "--creator", "me"], "is a file; give a folder"),
        (["--saedashboard", str(tmp_path / "a file")], "is a file; give a folder"),
    ):
        found = CliRunner().invoke(app, [*out, *more])
        assert isinstance(found.exception, UserError) and said in str(found.exception), found.exception


def test_a_sentence_that_repeats_a_value_of_any_length_stays_short(capsys: Any):
    from affectlens import entry

    with pytest.raises(SystemExit) as left:
        entry._explain(ConfigError("x" * 100_000 + "; correct it"))
    said = capsys.readouterr().err
    assert left.value.code == 2 and len(said) < 1600 and said.endswith("; correct it\n")


def test_names_that_steer_a_terminal_or_turn_a_line_round_are_listed_in_plain_letters(tmp_path: Path):
    names = ("\u202eevil", "\u0085b", "[/red]")
    rows = [{"emotion": name, "topic": topic, "text": "x"} for name in names for topic in "ab"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = CliRunner().invoke(app, ["concepts", "--stories", str(tmp_path / "x.jsonl")])
    assert found.exit_code == 0 and "\\u202eevil" in found.stdout and "[/red]" in found.stdout
    assert "\u202e" not in found.stdout and "\u0085" not in found.stdout


@pytest.mark.parametrize("stories", ["nowhere.jsonl", "", "~nobody/x", "http://x/y", "writer_z"])
def test_stories_that_are_not_there_are_told_by_their_option(stories: str):
    found = CliRunner().invoke(app, ["concepts", "--stories", stories])
    assert isinstance(found.exception, ConfigError) and str(found.exception).startswith(f"--stories {stories}: no such")


@pytest.mark.parametrize("key", ["model.name", "corpus.stories", "sae.load.path", "geometry.ratings", "monitor.folder"])
def test_a_path_that_no_disk_takes_is_told_in_a_line(key: str, study_values: dict, write_study: Any, tmp_path: Path):
    path = write_study(study_values)
    with pytest.raises(ConfigError, match="file name too long") as refused:
        Study.load(path, [f"{key}=/{'x' * 5000}", *(["monitor.run=[a]"] if key == "monitor.folder" else [])])
    assert len(str(refused.value)) < 400


def test_a_modulation_of_no_emotion_is_refused(study_values: dict, write_study: Any):
    with pytest.raises(ConfigError, match=r"`modulation.emotions: \[\]`: names none"):
        Study.load(write_study(study_values), ["modulation.run=true", "modulation.emotions=[]"])


@pytest.mark.parametrize("where", ["pre_tokenizer", "normalizer"])
def test_a_pattern_of_a_tokenizer_that_never_ends_is_given_up_in_a_sentence(where: str, capfd: Any):
    """Oniguruma stops after ten million ways; what it then raises is no Exception and would end in a traceback."""
    from affectlens.model.tokens import Chat, encode, tokenise
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"a": 0, "[U]": 1}, unk_token="[U]"))
    endless = Regex("(a+)+b")
    if where == "normalizer":
        raw.normalizer = normalizers.Replace(endless, "x")  # pyright: ignore[reportAttributeAccessIssue]
    else:
        raw.pre_tokenizer = pre_tokenizers.Split(endless, "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[U]")
    for attempt in (encode, lambda known, text: tokenise(known, Chat((), text=text, name="the text"))):
        with pytest.raises(UserError, match=r"tokenizer gave it up .*patterns in its tokenizer\.json"):
            attempt(tokenizer, "a" * 2000 + "!")
    assert "panicked" in capfd.readouterr().err  # the library's own line


def test_a_library_that_panics_ends_a_command_in_a_sentence(monkeypatch: Any, capsys: Any):
    from affectlens import entry

    class PanicException(BaseException):
        """What a library in Rust raises."""

    def panics(**_: Any) -> None:
        raise PanicException("index out of\nbounds")

    monkeypatch.setattr(entry.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        entry.start(panics)  # pyright: ignore[reportArgumentType]
    assert left.value.code == 1
    assert capsys.readouterr().err == "affectlens: a library gave up (index out of bounds); finished parts are kept\n"
