"""Writes the generated pages: ``study_file.md``, every key of a study file; ``mistakes.md``, what mistakes are told.

``make docs`` runs it; a test fails while a page and what it is made from differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from affectlens.everyday.keys import sections
from affectlens.study import StudyConfig

HERE = Path(__file__).parent
STUDY_FILE = """# The study file

Every key of a study file, generated from the config classes. A study names what differs from the defaults; only `name`
must be there. On the command line any key can be changed: every command takes `--set section.key=value`, and those
that take no texts the same without `--set`. A wrong key, a wrong value or a contradiction is answered before any model
loads ([mistakes.md](mistakes.md)).
"""
MISTAKES = """# Mistakes and their answers

A mistake is answered with one line: what is wrong, where, and what to do. `--debug` prints the traceback, too. This
table is generated from the rows that `tests/test_mistakes.py` runs, so each answer is the one that is given.

| exit status | when |
|---|---|
| 0 | it is done |
| 2 | something that was given is wrong: the study file, an argument, a text, a model folder |
| 1 | what was given may be right, and the world is in the way: a disk, the network, a missing result |
| 128 and its number | a signal ended it (130: Ctrl-C); finished parts are kept |

*Told by* is the first step that can know. What reading the study tells is told by every command, in about a second and
before anything is loaded. What the dry run tells (`affectlens run my.yaml --dry-run`: the tokenizer, the network, the
disk) a run tells before its first stage. Nothing of the table is told later. `...` stands for what differs from machine
to machine.
"""


def study_file() -> str:
    """The reference of every key."""
    blocks = [STUDY_FILE]
    for section in sections("", StudyConfig):
        rows = [
            f"| `{key.name}` | {key.kind} | {_default(key.default)} | {key.meaning} |".replace("\n", " ")
            for key in section.keys
        ]
        blocks.append(f"## {f'`{section.name}`' if section.name else 'Top level'}\n\n{section.about}\n")
        blocks.append("| key | type | default | meaning |\n|---|---|---|---|")
        blocks.append("\n".join(rows) + "\n")
    return "\n".join(blocks)


def _default(value: str) -> str:
    return value if value in ("required", "") else f"`{value}`"


def mistakes() -> str:
    """The table of mistakes and answers."""
    blocks = [MISTAKES]
    found = yaml.safe_load((HERE.parent / "tests" / "mistakes.yaml").read_text(encoding="utf-8"))
    for section in found:
        blocks.append(
            f"## {section['heading']}\n\n| mistake | given | answer | status | told by |\n|---|---|---|---|---|"
        )
        blocks.append("\n".join(map(_row, section["rows"])) + "\n")
    return "\n".join(blocks)


def _row(row: dict[str, Any]) -> str:
    given = row.get("command", row.get("change"))
    if given is None:  # the text of a study file, or a file that no text shows
        shown = row.get("study", "").rstrip("\n").replace("\t", "\u2192")
        lines = [f"`{line}`" for line in shown.split("\n") if line]
    else:
        lines = [f"`{given}`"]
    told = "every command" if row["told"] == "study" else "the command" if row["told"] == "command" else row["told"]
    cells = (row["mistake"], "<br>".join(lines), row["answer"].replace("<", "&lt;"), str(row["status"]), told)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


PAGES: dict[str, Callable[[], str]] = {"study_file.md": study_file, "mistakes.md": mistakes}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
