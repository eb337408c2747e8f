"""The runs of a group as a Weights & Biases server keeps them, asked for in a process of its own.

W&B's client reads process-wide variables, starts a helper process and retries as long as it likes; in a process of its
own none of this reaches the caller, and the time is bounded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from affectlens.tracking.process import bound_memory, environment, one_line

LIMIT_S = 120.0
"""How long a server may take to answer for all runs of a group, with their tables."""
NO_KEY = "no API key"


def runs(name: str, project: str, timeout_s: float) -> tuple[list[dict[str, Any]], str]:
    """All runs of a group, oldest first, and what to call the server.

    Args:
        name: ``group``, ``project/group`` or ``entity/project/group``.
        project: where the name does not say.
        timeout_s: of one request.

    Returns:
        Of each run ``stage``, ``config``, ``summary`` (numbers only) and ``tables`` (name to columns and data); and
        the server's address with entity and project.

    Raises:
        PermissionError: there is no API key.
        OSError: the server cannot be asked; the message is one line.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "affectlens.compare.remote", name, project, str(timeout_s)]
        variables = environment("online", Path(scratch))
        try:
            done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"no answer within {LIMIT_S:g} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise OSError(" ".join(done.stderr.split())[-160:] or f"status {done.returncode}") from None
    if answer.get("problem") == NO_KEY:
        raise PermissionError(NO_KEY)
    if "problem" in answer:
        raise OSError(answer["problem"])
    return answer["runs"], answer["where"]


def _ask(name: str, project: str, timeout_s: float) -> dict[str, Any]:
    import wandb

    if not wandb.login(prompt=False, verify=False):
        return {"problem": NO_KEY}
    api = wandb.Api(timeout=max(1, round(timeout_s)))
    *path, group = name.split("/")
    entity = path[0] if len(path) == 2 else api.default_entity
    project = path[-1] if path else project
    answers = []
    for run in api.runs(f"{entity}/{project}", filters={"group": group}, order="+created_at", lazy=False):
        answer: dict[str, Any] = {"stage": run.job_type or "", "config": dict(run.config), "summary": {}, "tables": {}}
        for key, value in run.summary.items():
            if isinstance(value, int | float | None):
                answer["summary"][key] = value
            elif hasattr(value, "items") and dict(value.items()).get("_type") == "table-file":
                with tempfile.TemporaryDirectory() as scratch, run.file(value["path"]).download(root=scratch) as stream:
                    answer["tables"][key] = json.load(stream)
        answers.append(answer)
    return {"runs": answers, "where": f"{api.settings['base_url']} ({entity}/{project})"}


def main(name: str, project: str, timeout_s: str) -> None:
    """Print the answer as JSON, and nothing else."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever W&B prints
    bound_memory()
    try:
        answer = _ask(name, project, float(timeout_s))
    except Exception as error:
        answer = {"problem": one_line(error) or type(error).__name__}
    json.dump(answer, answers)
    answers.close()
    os._exit(0)  # the answer is complete; W&B's helper process ends with this one


if __name__ == "__main__":
    main(*sys.argv[1:])
