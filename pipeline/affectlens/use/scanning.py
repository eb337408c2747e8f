"""A corpus of any size, read: the distribution of every row, and the passages at which it is highest.

Text number t belongs to part t mod n. A part's state is sums, counts and the best passages so far; it is written
whole every few seconds, so that a part goes on where it stopped, and merging parts is adding them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens import results
from affectlens.corpus.texts import read_json
from affectlens.errors import UserError
from affectlens.files import require_file, write_json
from affectlens.results import Table, integer, number, text
from affectlens.use.opened import Opened
from affectlens.use.readings import Readings
from affectlens.use.texts import TEXTS_AT_ONCE, Messages, TextReading, read_texts

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

LIMIT, BIN = 20.0, 0.05
"""The distribution is counted between plus and minus ``LIMIT`` standard deviations, in steps of ``BIN``."""
BINS = round(2 * LIMIT / BIN)
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
AROUND = 24
"""Tokens before and after the peak of a passage."""
WRITE_EVERY_S = 20.0

DISTRIBUTION = Table(
    "distribution",
    "One row over all tokens of the corpus.",
    (
        text("row", "what is read"),
        text("kind", "concept, axis or feature"),
        integer("tokens", "that were counted"),
        integer("texts", "that were read"),
        number("mean", "over tokens", "sd of neutral tokens"),
        number("sd", "over tokens", "sd of neutral tokens"),
        *(number(f"q{100 * share:g}", f"{100 * share:g}% quantile over tokens", "sd") for share in QUANTILES),
        number("highest", "the highest token", "sd"),
    ),
    key=("row",),
)
CONTEXTS = Table(
    "contexts",
    "A passage at which a row is highest; one of a text.",
    (
        text("row", "what is read"),
        integer("rank", "1 is the highest"),
        number("value", "at the token", "sd of neutral tokens"),
        text("name", "of the text"),
        text("role", "who says it; empty in plain text"),
        text("before", "tokens before"),
        text("token", "the token"),
        text("after", "tokens after"),
    ),
    key=("row", "rank"),
)


@dataclass
class State:
    """What is known of the texts read so far.

    Attributes:
        done: texts of the part.
        tokens: that were counted.
        sums: of values and of their squares, by row.
        highest: by row.
        counts: tokens by row and bin.
        contexts: by row, the best passages as rows of ``CONTEXTS``, highest first.
    """

    done: int
    tokens: int
    sums: Float[np.ndarray, "2 rows"]
    highest: Float[np.ndarray, "rows"]
    counts: Int[np.ndarray, "rows bins"]
    contexts: list[list[dict[str, Any]]]

    @classmethod
    def empty(cls, rows: int) -> State:
        """Nothing read."""
        nothing = np.full(rows, -np.inf)
        return cls(0, 0, np.zeros((2, rows)), nothing, np.zeros((rows, BINS), np.int64), [[] for _ in range(rows)])

    def add(self, reading: TextReading, first: int, top: int) -> None:
        """One text more.

        Args:
            reading: of it.
            first: tokens before this one are not counted.
            top: passages that are kept of a row.
        """
        self.done += 1
        values = reading.standard[first:].astype(np.float64)
        if not len(values):
            return
        self.tokens += len(values)
        self.sums += np.stack([values.sum(axis=0), (values**2).sum(axis=0)])
        bins = np.clip(np.floor((values + LIMIT) / BIN), 0, BINS - 1).astype(np.int64)
        rows = np.arange(values.shape[1])
        self.counts += np.bincount((bins + rows * BINS).ravel(), minlength=self.counts.size).reshape(self.counts.shape)
        peaks = values.argmax(axis=0)
        highest = values[peaks, rows]
        self.highest = np.maximum(self.highest, highest)
        for row in rows:
            kept = self.contexts[row]
            if len(kept) < top or highest[row] > kept[-1]["value"]:
                kept.append({"value": float(highest[row])} | passage(reading, int(peaks[row]) + first))
                kept.sort(key=lambda each: -each["value"])  # stable: of equal passages the earlier stays first
                del kept[top:]

    def merged(self, other: State, top: int) -> State:
        """Both together."""
        contexts = [
            sorted([*mine, *theirs], key=lambda each: (-each["value"], each["name"]))[:top]
            for mine, theirs in zip(self.contexts, other.contexts, strict=True)
        ]
        return State(
            self.done + other.done, self.tokens + other.tokens, self.sums + other.sums,
            np.maximum(self.highest, other.highest), self.counts + other.counts, contexts,
        )  # fmt: skip

    def quantile(self, share: float) -> Float[np.ndarray, "rows"]:
        """Of the tokens, by row, to a bin's width."""
        reached = self.counts.cumsum(axis=1) >= share * self.tokens
        return reached.argmax(axis=1) * BIN - LIMIT + BIN / 2

    def as_json(self) -> dict[str, Any]:
        """To be written down; counts as (bin, count) pairs of what is not empty."""
        counts = [[[int(at), int(row[at])] for at in np.flatnonzero(row)] for row in self.counts]
        highest = self.highest.tolist() if self.tokens else []
        return {"done": self.done, "tokens": self.tokens, "sums": self.sums.tolist(), "highest": highest,
                "counts": counts, "contexts": self.contexts}  # fmt: skip

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], rows: int) -> State:
        """The inverse."""
        state = cls.empty(rows)
        state.done, state.tokens, state.contexts = saved["done"], saved["tokens"], saved["contexts"]
        state.sums = np.array(saved["sums"])
        state.highest = np.array(saved["highest"]) if saved["highest"] else state.highest
        for row, pairs in enumerate(saved["counts"]):
            for at, number_of in pairs:
                state.counts[row, at] = number_of
        return state


def identity(corpus: Path) -> str:
    """Tells corpora apart without reading them whole: by the size and the first MiB of every file."""
    require_file(corpus)
    digest = hashlib.sha256()
    files = [corpus] if corpus.is_file() else sorted(file for file in corpus.rglob("*") if file.is_file())
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.stat().st_size} ".encode() + stream.read(1 << 20))
    return digest.hexdigest()[:16]


def passage(reading: TextReading, at: int) -> dict[str, Any]:
    """The tokens around one, within its message, as columns of ``CONTEXTS``."""
    message = next(each for each in reading.messages if each.start <= at < each.end)
    start, end = max(message.start, at - AROUND), min(message.end, at + 1 + AROUND)
    spelled, middle = reading.spelled(start, end), at - start
    said = ("".join(spelled[:middle]), spelled[middle], "".join(spelled[middle + 1 :]))
    return {"name": reading.name, "role": message.role} | dict(zip(("before", "token", "after"), said, strict=True))


@dataclass(frozen=True)
class Scan:
    """One scan of one corpus, in a folder of its own.

    Attributes:
        study: whose model reads.
        readings: what is read.
        folder: gets a file a part, and ``tables`` when all parts are there.
        corpus: says which texts these are; another corpus does not go on in this folder.
        parts: how many.
        first: tokens before this one of every text are not counted: models park attention on them.
        top: passages that are kept of a row.
    """

    study: Opened
    readings: Readings
    folder: Path
    corpus: str
    parts: int = 1
    first: int = 4
    top: int = 20

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a part to go on."""
        return {
            "directions": self.study.folder("directions").name,
            "rows": self.readings.names,
            "corpus": self.corpus,
            "parts": self.parts,
            "first": self.first,
            "top": self.top,
        }

    def path(self, part: int) -> Path:
        """The file of a part; parts count from 1."""
        return self.folder / f"part-{part:04d}-of-{self.parts:04d}.json"

    def state(self, part: int) -> tuple[State, bool]:
        """What a part has so far, and whether it is complete.

        Raises:
            UserError: the folder holds another scan.
        """
        path, rows = self.path(part), len(self.readings.rows)
        expected = {self.path(number_of + 1).name for number_of in range(self.parts)}
        others = sorted({each.name for each in self.folder.glob("part-*.json")} - expected)
        if others:
            raise UserError(f"{self.folder}: holds {others[0]}, of a scan in other parts; give another --out")
        if not path.is_file():
            return State.empty(rows), False
        saved = read_json(path)
        damaged = UserError(f"{path}: is no part of a scan; remove it, or give another --out")
        if not isinstance(saved, dict) or not isinstance(saved.get("identity"), dict):
            raise damaged
        changed = [key for key, value in self.identity.items() if saved["identity"].get(key) != value]
        if changed:
            raise UserError(f"{path}: is of a scan with another `{changed[0]}`; give another --out")
        try:
            return State.from_json(saved["state"], rows), bool(saved["complete"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise damaged from None

    def run(
        self,
        part: int,
        texts: Iterator[tuple[str, str | Messages]],
        progress: Callable[[State], None] = lambda state: None,
        *,
        write_every_s: float = WRITE_EVERY_S,
    ) -> State:
        """Read what a part still lacks.

        Args:
            part: from 1 on.
            texts: all texts of the corpus, in order.
            progress: told after every batch.
            write_every_s: seconds between two writes of the state.
        """
        state, complete = self.state(part)
        if complete:
            return state
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = (each for number_of, each in zip(count(), texts, strict=False) if number_of % self.parts == part - 1)
        for _ in range(state.done):
            next(mine, None)
        written = time.monotonic()
        while batch := list(islice(mine, TEXTS_AT_ONCE)):
            for reading in read_texts(self.study, self.readings, batch):
                state.add(reading, self.first, self.top)
            progress(state)
            if time.monotonic() - written >= write_every_s:
                self._write(part, state, complete=False)
                written = time.monotonic()
        self._write(part, state, complete=True)
        return state

    def _write(self, part: int, state: State, *, complete: bool) -> None:
        write_json(self.path(part), {"identity": self.identity, "complete": complete, "state": state.as_json()})

    def merge(self) -> dict[str, pd.DataFrame] | None:
        """The tables of all parts, written and returned; None while a part is not complete."""
        found = [self.state(part + 1) for part in range(self.parts)]
        if not all(complete for _, complete in found):
            return None
        whole = found[0][0]
        for state, _ in found[1:]:
            whole = whole.merged(state, self.top)
        results.write(self.folder, DISTRIBUTION, self._distribution(whole))
        listed = [
            {"row": name, "rank": rank, **context}
            for name, contexts in zip(self.readings.names, whole.contexts, strict=True)
            for rank, context in enumerate(contexts, 1)
        ]
        results.write(self.folder, CONTEXTS, listed)
        return {name: results.read(self.folder, name) for name in (DISTRIBUTION.name, CONTEXTS.name)}

    def _distribution(self, state: State) -> Iterator[dict[str, Any]]:
        mean, square = state.sums / max(1, state.tokens)
        quantiles = {f"q{100 * share:g}": state.quantile(share) for share in QUANTILES}
        for index, row in enumerate(self.readings.rows):
            yield {
                "row": row.name,
                "kind": row.kind,
                "tokens": state.tokens,
                "texts": state.done,
                "mean": mean[index],
                "sd": float(np.sqrt(max(0.0, square[index] - mean[index] ** 2))),
                **{name: values[index] for name, values in quantiles.items()},
                "highest": state.highest[index] if state.tokens else np.nan,
            }
