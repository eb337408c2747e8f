"""How the activations and match stages get faster with more workers, and what part of them does not.

Each stage of the quickstart is computed anew by 1, 2, ... workers of one thread each, in turns, so that a slow spell of
the machine hits all. Two spans are serial: the start (processes, imports, opening results, loading the model, until the
first units are done) and the end (merging the parts, hashing, renaming). The law of Amdahl, fitted to the medians,
gives the serial part once more, independently: time = serial + parallel / workers.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from harness import Row, machine, options, write_json

from pipeline import runner
from pipeline.study import Study

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
STAGES = ("activations", "match")
QUICK = ("corpus.emotions=[afraid,calm,happy,proud,sad,tired]", "match.random_saes=1", "match.permutations=99")
SMALL_PARTS = ("activations.texts_per_part=24", "match.texts_per_part=24")
"""Enough parts for every number of workers that is tried."""


class Stopwatch(runner.Reporter):
    """When a stage began, made its first and its last progress, and ended."""

    def __init__(self) -> None:
        self.marks: dict[str, list[float]] = {}
        self._began = time.perf_counter()

    def stage_started(self, stage: str, total: float, done: float, unit: str) -> None:
        self._stage = stage
        self.marks[stage] = [self._began]

    def advanced(self, units: float) -> None:
        self.marks[self._stage].append(time.perf_counter())

    def stage_ended(self, outcome: runner.Outcome) -> None:
        if outcome.state == "computed":
            self.marks[outcome.stage].append(time.perf_counter())
        self._began = time.perf_counter()

    def spans(self, stage: str) -> tuple[float, float, float]:
        """Seconds of the whole stage, of its start and of its end."""
        marks = self.marks[stage]
        return marks[-1] - marks[0], marks[1] - marks[0], marks[-1] - marks[-2]


def serial_part(seconds: dict[int, float]) -> float:
    """Of ``time = serial + parallel / workers`` in the least-squares sense; at least 0."""
    workers = np.array(list(seconds))
    design = np.stack([np.ones(len(workers)), 1 / workers], axis=1)
    return max(0.0, float(np.linalg.lstsq(design, np.array(list(seconds.values())), rcond=None)[0][0]))


def spans(overrides: Sequence[str], stage: str, count: int) -> tuple[float, float, float]:
    """One measurement: what a stage that is computed anew takes."""
    watch = Stopwatch()
    study = Study.load(CONFIG, overrides)
    runner.run(study, mode="force", only=[stage], workers=count, reporter=watch)
    return watch.spans(stage)


def measure(
    overrides: Sequence[str], counts: list[int], repeats: int
) -> dict[str, dict[int, list[tuple[float, float, float]]]]:
    """The spans of each stage, by number of workers."""
    found: dict[str, dict[int, list[tuple[float, float, float]]]] = {
        stage: {count: [] for count in counts} for stage in STAGES
    }
    for stage in STAGES:
        runner.run(Study.load(CONFIG, overrides), only=[stage])
        for _ in range(repeats):
            for count in counts:
                # In a process of its own, so that one worker pays for imports as each of many does.
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    found[stage][count].append(process.submit(spans, overrides, stage, count).result())
    return found


def main() -> None:
    """Print the table, and write it where ``--json`` says."""
    chosen = options(__doc__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({1, *(2**power for power in range(1, 7) if 2**power <= cores), cores})
    with tempfile.TemporaryDirectory() as folder:
        common = ("tracking.mode=disabled", "compute.threads=1", "sae.health_texts=0", *SMALL_PARTS)
        overrides = [f"cache={folder}", *common]
        overrides += QUICK if chosen.quick else ()
        found = measure(overrides, counts, repeats=1 if chosen.quick else 3)
    rows = []
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{cores} cores, load of the last minute {load:.1f}\n")
    print(f"{'stage':<12} {'workers':>7} {'seconds':>8} {'speed-up':>8} {'start':>6} {'end':>6}")
    for stage in STAGES:
        whole, start, end = (
            {count: median(spans[index] for spans in found[stage][count]) for count in counts} for index in range(3)
        )
        for count in counts:
            speed_up = whole[1] / whole[count]
            print(
                f"{stage:<12} {count:>7} {whole[count]:>8.1f} {speed_up:>8.2f} {start[count]:>6.1f} {end[count]:>6.1f}"
            )
            rows += [
                Row(f"{stage}, {count} workers", whole[count], None, "s"),
                Row(f"{stage}, {count} workers: start", start[count], None, "s"),
                Row(f"{stage}, {count} workers: end", end[count], None, "s"),
            ]
        serial = serial_part(whole)
        print(
            f"{stage:<12} serial by the law of Amdahl: {serial:.1f} s, {serial / whole[1]:.0%} of one worker's time\n"
        )
        rows.append(Row(f"{stage}: serial part, fitted", serial, None, "s"))
    if chosen.json:
        write_json(chosen.json, rows, machine("torch") | {"load": load})


if __name__ == "__main__":
    main()
