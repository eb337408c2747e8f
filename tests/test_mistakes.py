"""What a newcomer gets wrong is answered in one plain line, with the right status, by the first step that can know.

The rows lie in ``mistakes.yaml``; ``docs/mistakes.md`` shows them. ``python tests/test_mistakes.py`` writes the answers
down anew. Signals and kills are in ``test_cli.py`` and ``test_verify.py``, a wrong Python in ``test_makefile.py``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from affectlens import cli
from affectlens.errors import Unavailable, UserError
from affectlens.model import embedded
from affectlens.model.config import ModelConfig
from affectlens.model.loading import loading
from affectlens.study import Study

FILE = Path(__file__).parent / "mistakes.yaml"
SECTIONS: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
ROWS: dict[str, dict[str, Any]] = {row["mistake"]: row for section in SECTIONS for row in section["rows"]}
STUDY: dict[str, Any] = {
    "name": "my-study",
    "cache": "cache",
    "model": {"name": "embedded", "layer": 15},
    "corpus": {"emotions": ["afraid", "calm", "desperate", "happy"]},
    "tracking": {"mode": "disabled"},
    "compute": {"threads": 1, "device": "cpu"},
}
THEIRS = ("Input should", "validation error", "Traceback", "pydantic", "^[", "\\d", "NoneType", "Errno")
"""Words of libraries and programs that no answer may hold."""
LONGEST = 420


def story(**changes: Any) -> dict[str, Any]:
    return {"emotion": "calm", "topic": "a", "text": "word " * 60} | changes


def stories(emotions: Sequence[str] = ("calm", "sad"), topics: str = "abcd", text: str = "word " * 60) -> list[Any]:
    return [story(emotion=e, topic=t, text=f"{text} {e} {t}") for e in emotions for t in topics]


def lines(rows: Iterable[dict[str, Any] | str]) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


STORIES: dict[str, str | bytes] = {
    "one_emotion": lines(stories(("calm",))),
    "one_topic": lines(stories(topics="a")),
    "broken_line": lines([story(), '{"emotion": "calm", ']),
    "no_text": lines([{"emotion": "calm", "topic": "a"}]),
    "no_emotion": lines([{"topic": "a", "text": "word " * 60}]),
    "no_stories": "",
    "latin_stories": lines([story(), story(text="caf\u00e9")]).encode("latin-1"),
    "csv_stories": "emotion,topic,text\ncalm,a,hello\n",
    "no_roles": lines([{"emotion": "calm", "topic": "a", "messages": [{"content": "hello"}]}]),
    "short_stories": lines(stories(text="Nobody came.")),
    "chats": lines(
        {"emotion": each["emotion"], "topic": each["topic"], "messages": [{"role": "user", "content": each["text"]}]}
        for each in stories()
    ),
}
"""Files of stories that something is wrong with, by the row's ``setup``."""
TINY = ("short_stories", "chats", "no_weights", "no_tokenizer")
"""Setups whose study is of a small model in the folder ``model``."""


def prepare(row: dict[str, Any], folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put into the folder what the row says is there."""
    setup = row.get("setup", "")
    values = STUDY | ({"model": {"name": "model", "layer": 2}} if setup in TINY else {})
    (folder / "my.yaml").write_text(row.get("study", yaml.safe_dump(values)), encoding="utf-8")
    if setup in TINY:
        shutil.copytree(model, folder / "model")
    if setup in STORIES:
        content = STORIES[setup]
        name = "stories.csv" if setup == "csv_stories" else "stories.jsonl"
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if setup == "chats":
        (folder / "model" / "chat_template.jinja").unlink(missing_ok=True)
        path = folder / "model" / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({name: settings[name] for name in settings if name != "chat_template"}))
    elif setup == "latin_study":
        (folder / "my.yaml").write_bytes("name: my-study # caf\u00e9\n".encode("latin-1"))
    elif setup == "folder":
        (folder / "folder.yaml").mkdir()
    elif setup == "no_weights":
        (folder / "model" / "model.safetensors").unlink()
    elif setup == "no_tokenizer":
        for path in (folder / "model").glob("tokenizer*.json"):
            path.unlink()
    elif setup == "narrow_sae":
        import record_codes

        shutil.copytree(record_codes.write(folder / "made", "sae-lens topk none"), folder / "sae")
    elif setup == "no_package":
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == embedded.PACKAGE else real(name))


def arguments(row: dict[str, Any]) -> list[str]:
    """Of the command that the row stands for."""
    if "command" in row:
        return shlex.split(row["command"])[1:]
    return ["run", "my.yaml", *([row["change"]] if "change" in row else []), "--dry-run"]


def answer(given: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit status and standard error of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["affectlens", *given])
    out, said = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.getvalue()


def matches(recorded: str, said: str) -> bool:
    """Whether an answer is the recorded one; ``...`` stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, recorded.split("..."))), said) is not None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mistake", ROWS)
def test_a_mistake_is_answered_in_one_plain_line(mistake, here, model_folder, monkeypatch):
    row = ROWS[mistake]
    prepare(row, here, model_folder("llama"), monkeypatch)
    status, said = answer(arguments(row), monkeypatch)
    assert status == row["status"]
    assert said.startswith("affectlens: ") and said.count("\n") == 1
    line = said.removeprefix("affectlens: ").rstrip("\n")
    assert matches(row["answer"], line), line
    assert len(line) <= LONGEST
    assert [words for words in THEIRS if words in line] == []
    assert not list(here.glob("cache/*/*/manifest.json")), "it was told after something had been computed"


STUDIES = [name for name, row in ROWS.items() if "command" not in row]


@pytest.mark.parametrize("mistake", STUDIES)
def test_it_is_told_by_the_step_that_the_table_names(mistake, here, model_folder, monkeypatch):
    """What reading the study tells is told by every command; the dry run tells what else can be known before a run."""
    row = ROWS[mistake]
    prepare(row, here, model_folder("llama"), monkeypatch)
    changes = [row["change"]] if "change" in row else []
    if row["told"] == "study":
        with pytest.raises(UserError) as told:
            Study.load(Path("my.yaml"), changes)
        assert matches(row["answer"].split("; for one study a value, add --sweep")[0], str(told.value))
    else:
        assert row["told"] == "dry run"
        Study.load(Path("my.yaml"), changes)


def test_the_table_is_large_and_nothing_is_told_later_than_by_a_dry_run():
    assert len(ROWS) == sum(len(section["rows"]) for section in SECTIONS) >= 86
    assert {row["told"] for row in ROWS.values()} == {"study", "dry run", "command"}


def test_a_gated_model_is_answered_with_the_way_in():
    with pytest.raises(Unavailable, match=r"could not be loaded .*accept its terms on the hub.*HF_TOKEN"):  # noqa: SIM117
        with loading(ModelConfig(name="google/gemma-2-2b")):
            raise OSError("You are trying to access a gated repo. Make sure to have access to it.")


def record() -> None:
    """Write the answers of today into the table."""
    import os
    import tempfile

    from tiny import build_model

    head = "".join(line for line in FILE.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    root = Path(tempfile.mkdtemp())
    model = build_model(root / "llama", "llama")
    for name, row in ROWS.items():
        folder = Path(tempfile.mkdtemp(dir=root))
        os.chdir(folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            prepare(row, folder, model, monkeypatch)
            status, said = answer(arguments(row), monkeypatch)
            line = said.strip().removeprefix("affectlens: ")
            if "answer" not in row or not matches(row["answer"], line) or status != row["status"]:
                print(f"{name}: {status} {line}")
                row |= {"status": status, "answer": line}
            if "told" not in row:
                try:
                    Study.load(Path("my.yaml"), [row["change"]] if "change" in row else [])
                    row["told"] = "command" if "command" in row else "dry run"
                except UserError:
                    row["told"] = "study"
    shutil.rmtree(root)
    body = yaml.safe_dump(SECTIONS, sort_keys=False, allow_unicode=True, width=118)
    FILE.write_text(f"{head}\n{body}", encoding="utf-8")


if __name__ == "__main__":
    record()
