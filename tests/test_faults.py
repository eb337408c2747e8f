"""A disk that fails once, or a kill, at every request of every stage: the next run ends with the undisturbed bytes.

A small study is run once undisturbed. Then each stage is computed again and again, and each time another one of its
writes, renames, fsyncs or locks fails, or a file or folder cannot be made or removed. Whatever that run said, the same
command follows, without a fault.
``AFFECTLENS_FAULTS=all`` tries every request of every stage, which takes two hours on an idle core, and
``AFFECTLENS_FAULTS=40`` so many of each; by default some of each. ``AFFECTLENS_FAULTS_DONE=FILE`` keeps in a file what
was tried and cost nothing, and a later sweep goes on there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.files import WRITING
from affectlens.run import verify
from affectlens.run.workspace import Workspace
from affectlens.study import STAGES, Study, stage_named
from faulty import Ended, Faulty
from scripted import write_experiment

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the library is preloaded as Linux does it"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]
ASKED_FOR = os.environ.get("AFFECTLENS_FAULTS", "")
MOST = sys.maxsize if ASKED_FOR == "all" else int(ASKED_FOR or 9)
"""Requests that are tried of each stage."""
DONE = Path(os.environ.get("AFFECTLENS_FAULTS_DONE") or os.devnull)
FAULTS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ENOLCK, 0)
"""Errors by number; 0 is a kill."""
EMOTIONS = ("afraid", "calm")
SMALL = {
    "activations": {"texts_per_part": 16, "pooled_layers": [0, 3]},
    "sae": {"width": 32, "k": 4, "steps": 12, "train_batch_size_tokens": 64, "checkpoint_steps": 6, "health_rows": 100,
            "health_texts": 1},
    "match": {"permutations": 19, "random_saes": 1, "contexts": 1},
    "directions": {"permutations": 19, "stability_draws": 5},
    "geometry": {"permutations": 99},
    "causal": {"frames": 2, "stories": 1},
}  # fmt: skip
ROLLOUT = {"kind": "completions", "samples": 1, "tokens": 3, "temperature": 0,
           "grader": {"kind": "rules", "labels": {"yes": ["yes"], "no": ["no"]}}}  # fmt: skip
EXPERIMENT = {
    "outcomes": [{"kind": "choice"}, ROLLOUT],
    "steering": {"vectors": ["afraid", "calm"], "strengths": [-0.2, 0.2], "completion_controls": 2},
    "analyses": [{"kind": "dose", "raises": ["afraid"]}],
}
ASKED = [
    {"id": f"case-{number}", "condition": "main", "factors": {"emotion": "calm", "level": number},
     "messages": [{"role": "user", "content": f"Letter {number}. What do you do?"}],
     "options": {"target": [" yes"], "other": [" no"]}}
    for number in range(3)
]  # fmt: skip


@dataclass
class Bench:
    """A study, its undisturbed results, and the process that runs it.

    Attributes:
        path: of the study file.
        whole: the cache of the undisturbed results, as far as :meth:`need` was asked.
        broken: the cache in which things fail.
        faulty: what runs the study.
        studies: by their caches.
    """

    path: Path
    whole: Path
    broken: Path
    faulty: Faulty
    studies: dict[Path, Study] = field(default_factory=dict)

    def run(self, stage: str, cache: Path, nth: int = 0, fault: int = 0) -> Ended:
        return self.faulty.run(cache, "run", str(self.path), f"cache={cache}", "--stage", stage, nth=nth, fault=fault)

    def study(self, cache: Path) -> Study:
        if cache not in self.studies:
            self.studies[cache] = Study.load(self.path, [f"cache={cache}"])
        return self.studies[cache]

    def bytes(self, cache: Path, stage: str) -> dict[str, bytes]:
        """Every file of a result but the records of how it was made, which hold times."""
        folder = self.study(cache).folder(stage_named(stage))
        paths = (
            path for path in folder.rglob("*") if path.is_file() and path.name not in ("manifest.json", "part.json")
        )
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def need(self, stage: str) -> dict[str, bytes]:
        """The undisturbed bytes of a stage."""
        ended = self.run(stage, self.whole)
        assert ended.status == 0, ended.said
        return self.bytes(self.whole, stage)

    def before(self, stage: str) -> None:
        """A cache that holds what the stage reads, and nothing of it."""
        shutil.rmtree(self.broken, ignore_errors=True)
        for each in STAGES:
            if each.name == stage:
                return
            if (self.whole / each.name).is_dir():
                shutil.copytree(self.whole / each.name, self.broken / each.name, copy_function=os.link)

    def survives(self, stage: str, nth: int, fault: int, whole: dict[str, bytes]) -> str:
        """What is wrong after a fault and a run without one; empty if nothing is."""
        self.before(stage)
        failed = self.run(stage, self.broken, nth, fault)
        if failed.status not in ((0, 1) if fault else (0, -9)) or "Traceback" in failed.said:
            return f"ended with {failed.status}: {failed.said[-1000:]}"
        again = self.run(stage, self.broken)
        if again.status != 0 or "Traceback" in again.said:
            return f"the run after it ended with {again.status}: {again.said[-1000:]}"
        if self.bytes(self.broken, stage) != whole:
            return "other bytes"
        kind = stage_named(stage)
        space = Workspace(self.study(self.broken), kind)
        faults = verify.damages(space, kind, contents=True) + verify.strays(space)
        left = list(space.final.parent.rglob(f"*{WRITING}"))
        left += [path for path in (space.partial, space.locks) if path.exists()]
        return f"damaged {faults}, left behind {left}" if faults or left else ""


@pytest.fixture(scope="module")
def bench(model_folder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("faults")
    write_experiment(folder / "experiments", "letters", EXPERIMENT, ASKED)
    # Files of its own: whatever is read again in each of thousands of runs has to be short.
    texts = [row for row in read_jsonl(EMBEDDED / "stories.jsonl") if row["emotion"] in (*EMOTIONS, "alert")]
    rows = {
        "stories": [row for row in texts if row["emotion"] in EMOTIONS],
        "neutral": [{"kind": "prose", "text": row["text"]} for row in texts if row["emotion"] == "alert"][:8],
        "pairs": [row for row in read_jsonl(EMBEDDED / "pairs.jsonl") if row["emotion_a"] in EMOTIONS][:4],
    }
    files = {name: folder / f"{name}.jsonl" for name in rows}
    for name, path in files.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
    values = {
        **SMALL,
        "corpus": {"stories": str(files["stories"]), "neutral": str(files["neutral"])},
        "compare": {"null_directions": 99, "pairs": str(files["pairs"]), "pair_templates": "none"},
        "name": "faults",
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "experiments": {"folder": str(folder / "experiments"), "run": "all"},
        "tracking": {"mode": "disabled"},
        "compute": {"threads": 1, "device": "cpu"},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    faulty = Faulty(folder)
    yield Bench(folder / "study.yaml", folder / "whole", folder / "broken", faulty)
    faulty.close()


def sweep(bench: Bench, stage: str, most: int, faults: tuple[int, ...] = FAULTS) -> int:
    """Try so many of a stage's requests, evenly spread, and the last three, which publish it; how many were tried."""
    whole = bench.need(stage)
    bench.before(stage)
    undisturbed = bench.run(stage, bench.broken)
    assert undisturbed.status == 0 and undisturbed.requests > 20, undisturbed.said
    assert bench.bytes(bench.broken, stage) == whole
    requests = undisturbed.requests
    points = sorted({*range(1, requests + 1, max(1, requests // most)), *range(requests - 2, requests + 1)})
    wrong, done = {}, set(DONE.read_text(encoding="utf-8").splitlines()) if DONE.exists() else set()
    for index, nth in enumerate(points):
        fault = faults[index % len(faults)]
        line = f"{stage} {nth} of {requests}: {errno.errorcode.get(fault, 'KILL')}"
        if line in done:
            continue
        if said := bench.survives(stage, nth, fault, whole):
            wrong[line] = said
        else:
            with DONE.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
    print(f"{stage}: {len(points)} of {requests} requests tried, {len(wrong)} lost")
    assert wrong == {}
    return len(points)


def test_a_fault_at_some_requests_of_the_first_stages_costs_nothing_but_the_rerun(bench: Bench):
    assert sweep(bench, "corpus", most=6) >= 6


@pytest.mark.slow
@pytest.mark.timeout(0 if ASKED_FOR else 600)
@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_a_fault_at_any_request_costs_nothing_but_the_rerun(bench: Bench, stage: str):
    sweep(bench, stage, most=MOST)


@pytest.mark.slow
def test_a_kill_at_every_request_costs_nothing_but_the_rerun(bench: Bench):
    """Of a stage from its first part to its publication."""
    sweep(bench, "grade", most=sys.maxsize, faults=(0,))


def test_the_faults_are_real(bench: Bench):
    """A refused request ends the run with the system's words for it, a kill with the signal."""
    bench.need("corpus")
    bench.before("corpus")
    requests = bench.run("corpus", bench.broken).requests
    bench.before("corpus")
    said = bench.run("corpus", bench.broken, nth=requests // 2, fault=errno.EDQUOT)
    assert said.status == 1 and os.strerror(errno.EDQUOT) in said.said
    assert bench.run("corpus", bench.broken, nth=2).status == -9


def test_a_cache_that_moved_is_whole(bench: Bench, tmp_path: Path):
    """Half a study, moved and gone on with elsewhere: nothing is computed twice, and the bytes are the same."""
    whole = bench.need("activations")
    bench.before("activations")
    requests = bench.run("activations", bench.broken).requests
    bench.before("activations")
    bench.run("activations", bench.broken, nth=requests // 2)
    finished = {
        path.parent.name: path.stat().st_mtime_ns for path in bench.broken.glob("activations/*/parts/*/part.json")
    }
    moved = tmp_path / "a new place"
    shutil.move(bench.broken, moved)
    assert bench.run("activations", moved).status == 0
    assert bench.bytes(moved, "activations") == whole
    after = {path.parent.name: path.stat().st_mtime_ns for path in moved.glob("activations/*/parts/*/part.json")}
    kept = {name for name in finished if not name.endswith(".building")}
    assert kept and {name: after[name] for name in kept} == {name: finished[name] for name in kept}
