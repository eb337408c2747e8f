"""Readings on disk: JSON, a table in Parquet, and a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from affectlens.files import require_place
from affectlens.use.opened import Opened
from affectlens.use.readings import Readings
from affectlens.use.texts import TextReading

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetWriter

DIGITS = 6
"""Significant digits of values in JSON."""


class Outputs:
    """Whatever a command was asked to write, filled text by text.

    Attributes:
        paths: of the files, once it is closed.
        any: whether anything is written.
        count: texts so far.
    """

    def __init__(
        self,
        study: Opened,
        readings: Readings,
        *,
        to_json: str | None,
        parquet: Path | None,
        page: Path | None,
        first: str | None = None,
    ) -> None:
        """Open the files.

        Args:
            study: what was read with.
            readings: what was read.
            to_json: a path, or - for standard output.
            parquet: a path.
            page: a path.
            first: the row that the page shows first.

        Raises:
            UserError: a path is a folder, or its folder is not there.
        """
        for path in (to_json, parquet, page):
            if path is not None and path != "-":
                require_place(Path(path).expanduser())
        self._study, self._readings, self._first = study, readings, first
        self._json, self._parquet, self._page = to_json, parquet, page
        self._stream: TextIO | None = None
        self._table: ParquetWriter | None = None
        self._kept: list[TextReading] = []
        self.count = 0
        self.any = any(path is not None for path in (to_json, parquet, page))
        self.paths = [str(path) for path in (to_json, parquet, page) if path not in (None, "-")]

    def __enter__(self) -> Outputs:
        if self._json is not None:
            stream = sys.stdout if self._json == "-" else Path(self._json).expanduser().open("w", encoding="utf-8")
            self._stream = stream
            stream.write(json.dumps(heading(self._readings))[:-1] + ', "texts": [')
        return self

    def add(self, reading: TextReading) -> None:
        """One text more."""
        if self._stream is not None:
            self._stream.write((",\n" if self.count else "\n") + json.dumps(as_json(reading), ensure_ascii=False))
        if self._parquet is not None:
            self._add_rows(reading, self._parquet)
        if self._page is not None:
            self._kept.append(reading)
        self.count += 1

    def _add_rows(self, reading: TextReading, path: Path) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        frame = reading.frame(standard=True)
        frame.insert(0, "text", reading.name)
        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        if self._table is None:
            unit = {"unit": "standard deviations of neutral tokens", "scale": json.dumps(heading(self._readings))}
            self._table = ParquetWriter(path.expanduser(), table.schema.with_metadata(unit))
        self._table.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.write("\n]}\n")
            if self._stream is not sys.stdout:
                self._stream.close()
        if self._table is not None:
            self._table.close()
        if self._page is not None and kind is None:
            from affectlens.use.page import render

            html = render(self._kept, self._readings, model=self._study.model_name, first=self._first)
            self._page.expanduser().write_text(html, encoding="utf-8")


def heading(readings: Readings) -> dict[str, Any]:
    """What a reader of the values has to know: layer, rows, units and scale."""
    return {
        "layer": readings.layer,
        "neutral_tokens": readings.neutral_tokens,
        "rows": [
            {
                "name": row.name,
                "kind": row.kind,
                "unit": row.unit,
                "neutral_mean": row.mean,
                "neutral_sd": row.deviation,
            }
            for row in readings.rows
        ],
    }


def as_json(reading: TextReading) -> dict[str, Any]:
    """One text: ``values`` in the rows' units; a message's ``means`` in standard deviations of neutral tokens."""
    means = reading.means()
    return {
        "name": reading.name,
        "messages": [
            {"role": each.role, "start": each.start, "end": each.end, "means": _short(means[index])}
            for index, each in enumerate(reading.messages)
        ],
        "tokens": reading.tokens,
        "values": [_short(row) for row in reading.values],
    }


def _short(row: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in row.tolist()]
