"""How the activations and match stages get faster with more workers, and what part of them does not.

Each stage of the quickstart is computed anew by 1, 2, ... workers of one thread each, in turns, so that a slow spell of
the machine hits all. Two spans are serial: the start (processes, imports, opening results, loading the model, until the
first units are done) and the end (merging the parts, hashing, renaming). The law of Amdahl, fitted to the medians,
gives the serial part once more, independently: time = serial + parallel / workers. Processor seconds of one worker are
printed beside it: where other work keeps the machine busy, they are what can be relied on.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from affectlens.run import runner
from affectlens.study import Study
from harness import Row, machine, options, write_json
from jaxtyping import Float

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
STAGES = ("activations", "match")
QUICK = ("corpus.emotions=[afraid,calm,happy,proud,sad,tired]", "match.random_saes=1", "match.permutations=99")
COMMON = (
    "tracking.mode=disabled",
    "compute.threads=1",
    "sae.health_texts=0",
    "activations.texts_per_part=24",
    "match.texts_per_part=24",
)
"""With enough parts for every number of workers that is tried."""
Spans = Float[np.ndarray, "3 2"]
"""Seconds of a whole stage, of its start and of its end; on the wall and of this process."""


class Stopwatch(runner.Reporter):
    """When a stage began, made its first and its last progress, and ended, on two clocks: time, processor time."""

    def __init__(self) -> None:
        self.marks: dict[str, list[tuple[float, float]]] = {}
        self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def stage_started(self, stage: str, total: float, done: float, unit: str) -> None:
        self._stage = stage
        self.marks[stage] = [self._began]

    def advanced(self, units: float) -> None:
        self.marks[self._stage].append(self._now())

    def stage_ended(self, outcome: runner.Outcome) -> None:
        if outcome.state == "computed":
            self.marks[outcome.stage].append(self._now())
        self._began = self._now()

    def spans(self, stage: str) -> Spans:
        """Seconds of the whole stage, of its start and of its end."""
        marks = np.array(self.marks[stage])
        return np.stack([marks[-1] - marks[0], marks[1] - marks[0], marks[-1] - marks[-2]])


def serial_part(seconds: dict[int, float]) -> float:
    """Of ``time = serial + parallel / workers`` in the least-squares sense; at least 0."""
    workers = np.array(list(seconds))
    design = np.stack([np.ones(len(workers)), 1 / workers], axis=1)
    return max(0.0, float(np.linalg.lstsq(design, np.array(list(seconds.values())), rcond=None)[0][0]))


def one_run(overrides: Sequence[str], stage: str, count: int) -> Spans:
    """One measurement: what a stage that is computed anew takes."""
    watch = Stopwatch()
    study = Study.load(CONFIG, overrides)
    runner.run(study, mode="force", only=[stage], workers=count, reporter=watch)
    return watch.spans(stage)


def measure(overrides: Sequence[str], counts: list[int], repeats: int) -> dict[str, dict[int, Spans]]:
    """The medians of each stage's spans, by number of workers."""
    found: dict[str, dict[int, Spans]] = {}
    for stage in STAGES:
        runner.run(Study.load(CONFIG, overrides), only=[stage])
        runs: dict[int, list[Spans]] = {count: [] for count in counts}
        for _ in range(repeats):
            for count in counts:
                # In a process of its own, so that one worker pays for imports as each of many does.
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    runs[count].append(process.submit(one_run, overrides, stage, count).result())
        found[stage] = {count: np.median(each, axis=0) for count, each in runs.items()}
    return found


def report(stage: str, found: dict[int, Spans]) -> list[Row]:
    """Print one stage's lines; return them as rows."""
    rows = []
    for count, spans in found.items():
        (whole, start, end), speed_up = spans[:, 0], found[1][0, 0] / spans[0, 0]
        print(f"{stage:<12} {count:>7} {whole:>8.1f} {speed_up:>8.2f} {start:>6.1f} {end:>6.1f}")
        named = {"": whole, ": start": start, ": end": end}
        rows += [Row(f"{stage}, {count} workers{name}", float(value), None, "s") for name, value in named.items()]
    whole, start, end = found[1][:, 1]
    serial = serial_part({count: spans[0, 0] for count, spans in found.items()})
    print(
        f"{stage:<12} serial by the law of Amdahl: {serial:.1f} s, {serial / found[1][0, 0]:.0%} of one worker's time"
    )
    print(f"{stage:<12} processor seconds of one worker: {whole:.1f}, start {start:.1f}, end {end:.1f}\n")
    rows += [
        Row(f"{stage}, 1 worker{name}: processor time", float(value), None, "s")
        for name, value in {"": whole, ": start": start, ": end": end}.items()
    ]
    return [*rows, Row(f"{stage}: serial part, fitted", serial, None, "s")]


def main() -> None:
    """Print the table, and write it where ``--json`` says."""
    chosen = options(__doc__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({1, *(2**power for power in range(1, 7) if 2**power <= cores), cores})
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"cache={folder}", *COMMON, *(QUICK if chosen.quick else ())]
        found = measure(overrides, counts, repeats=1 if chosen.quick else 3)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{cores} cores, load of the last minute {load:.1f}\n")
    print(f"{'stage':<12} {'workers':>7} {'seconds':>8} {'speed-up':>8} {'start':>6} {'end':>6}")
    rows = [row for stage in STAGES for row in report(stage, found[stage])]
    if chosen.json:
        write_json(chosen.json, rows, machine("torch") | {"load": load})


if __name__ == "__main__":
    main()
