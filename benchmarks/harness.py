"""What the benchmarks share: timing side by side, a description of the machine, a table and a JSON file."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

MIB = 2**20


class Row(NamedTuple):
    """One line of a benchmark: how much this project takes, and a peer where there is one.

    Attributes:
        more: whether more is better, as of tokens a second; else the figures are costs.
    """

    name: str
    ours: float
    peer: float | None
    unit: str
    more: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times as much the peer takes, or how many times as much is done here."""
        if self.peer is None:
            return None
        return self.ours / self.peer if self.more else self.peer / self.ours


def options(
    description: str | None, more: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> argparse.Namespace:
    """The command line every benchmark has: ``--quick`` and ``--json PATH``; ``more`` adds what one alone has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows there as well")
    more(parser)
    return parser.parse_args()


def machine(*packages: str) -> dict[str, Any]:
    """The processor, its usable cores, memory, accelerator, and the versions of Python, numpy and ``packages``."""
    described: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")  # described by the benchmarks that use it; an import would cost seconds
    if torch is not None and torch.cuda.is_available():
        described["accelerator"] = torch.cuda.get_device_name()
    return described | {name: version(name) for name in ("numpy", *packages)}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each contender in each repeat, taken in turns, so that a slow spell of the machine hits all.

    Args:
        contenders: what to time, by name.
        repeats: timed rounds.
        warmup: rounds before them that are not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, run in contenders.items():
            gc.collect()
            start = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(contenders: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1) -> dict[str, float]:
    """The median of each contender's ``interleaved`` seconds."""
    return {name: median(taken) for name, taken in interleaved(contenders, repeats, warmup=warmup).items()}


def peak_memory() -> float:
    """The most memory this process has held so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a module-level function in a process of its own, where ``peak_memory`` is its alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write_json(path: Path, rows: Sequence[Row], described: dict[str, Any]) -> None:
    """Write ``{"machine", "date", "rows"}``, each row with its name, figures, unit and ratio."""
    document = {
        "machine": described,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": [row._asdict() | {"ratio": row.ratio} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def print_table(rows: Sequence[Row]) -> None:
    """Rows as aligned columns, three significant digits; a ratio above 1 is in this project's favour."""
    cells = [("", "ours", "peer", "unit", "ratio")]
    cells += [(row.name, _short(row.ours), _short(row.peer), row.unit, _short(row.ratio)) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    for name, *figures, unit, ratio in cells:
        middle = "  ".join(figure.rjust(width) for figure, width in zip(figures, widths[1:3], strict=True))
        print(f"{name.ljust(widths[0])}  {middle}  {unit.ljust(widths[3])}  {ratio.rjust(widths[4])}")


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
