"""Writes ``docs/study_file.md``, the reference of every key of a study file, from the config classes.

``make docs`` runs it; a test fails while the page and the classes differ.
"""

from __future__ import annotations

from pathlib import Path

from affectlens.everyday.keys import sections
from affectlens.study import StudyConfig

PAGE = Path(__file__).parent / "study_file.md"
HEAD = """# The study file

Every key of a study file, generated from the config classes. A study names what differs from the defaults; only `name`
must be there. On the command line any key can be changed: every command takes `--set section.key=value`, and those
that take no texts the same without `--set`. A wrong key, a wrong value or a contradiction is answered before any model
loads.
"""


def page() -> str:
    """The whole page."""
    blocks = [HEAD]
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


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
