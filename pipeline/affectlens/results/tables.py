"""Tables with a schema.

A stage declares each of its tables once, as a :class:`Table`: columns, units, and which metric is the mean of which
column. :func:`write` checks the rows against the declaration and writes ``tables/<name>.parquet`` beside
``metrics.json``; the declaration travels in the file. The page, Weights & Biases, ``compare``, exports and the Python
API read those files and nothing else of a stage's figures.

Tables are long: a figure that exists for every method is one row a method, not one column a method.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from affectlens.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "tables"
"""Inside a result's folder."""
DECLARATION = b"affectlens.table"
"""Key of the declaration in the metadata of a Parquet file."""

Kind = Literal["text", "number", "integer", "flag"]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: as in the file.
        kind: ``text``, ``number`` (float64, NaN becomes empty), ``integer`` or ``flag`` (true, false, empty).
        description: what it is, in a clause.
        unit: of the values (``AUROC``, ``nats``, ``share``, ...); empty for names and counts.
    """

    name: str
    kind: Kind
    description: str
    unit: str = ""


def text(name: str, description: str) -> Column:
    """A column of names or sentences."""
    return Column(name, "text", description)


def number(name: str, description: str, unit: str = "") -> Column:
    """A column of floats; a value that could not be measured is empty."""
    return Column(name, "number", description, unit)


def integer(name: str, description: str, unit: str = "") -> Column:
    """A column of whole numbers, with gaps."""
    return Column(name, "integer", description, unit)


def flag(name: str, description: str) -> Column:
    """A column of truth values; empty where the question could not be asked."""
    return Column(name, "flag", description)


def bounded(
    name: str, description: str, unit: str, interval: str = "", ends: str | None = None
) -> tuple[Column, Column, Column]:
    """A figure and the two ends of its interval.

    Args:
        name: of the figure's column.
        description: what the figure is, in a clause.
        unit: of all three.
        interval: what it is called, ``its 95% interval over topics``; empty where a column before says it.
        ends: before ``low`` and ``high`` in the names of the ends; the figure's name and ``_`` by default.
    """
    before = f"{name}_" if ends is None else ends
    lower = f"lower end of {interval}" if interval else "lower end"
    return (
        number(name, description, unit),
        number(f"{before}low", lower, unit),
        number(f"{before}high", "upper end", unit),
    )


@dataclass(frozen=True)
class Average:
    """A metric that is the mean of a column.

    Attributes:
        metric: its name in ``metrics.json``. ``{column}`` stands for each value of that column: the metric
            ``effect_{vector}`` is one mean for every vector.
        column: what is averaged, empty cells left out.
    """

    metric: str
    column: str


@dataclass(frozen=True)
class Line:
    """A line chart over a table: one line a value of ``series``; one chart a value of ``split``."""

    name: str
    x: str
    y: str
    series: str = ""
    split: str = ""


@dataclass(frozen=True)
class Heatmap:
    """A heat map over a long table: ``value`` at every (``row``, ``column``); one map a value of ``split``."""

    name: str
    row: str
    column: str
    value: str
    split: str = ""


@dataclass(frozen=True)
class Table:
    """The declaration of a table.

    Attributes:
        name: of the file; letters, digits and ``_``.
        description: what one row is, in a sentence.
        columns: in order.
        key: columns that together tell one row from another.
        averages: the metrics that are means of columns.
        charts: how the table is drawn in Weights & Biases.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    averages: tuple[Average, ...] = ()
    charts: tuple[Line | Heatmap, ...] = ()

    def column(self, name: str) -> Column:
        """The declaration of a column.

        Raises:
            ValueError: there is no such column.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise ValueError(f"table `{self.name}` has no column `{name}`")


def write(folder: Path, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``tables/<name>.parquet`` into a result's folder.

    Args:
        folder: of the result.
        table: its declaration.
        rows: mappings with exactly the declared columns; NaN and None are empty cells.

    Raises:
        ValueError: a row with other columns, a value of another kind, or two rows with one key. The stage is wrong.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(rows)
    expected = [column.name for column in table.columns]
    for row in rows:
        if set(row) != set(expected):
            raise ValueError(f"table `{table.name}`: columns {sorted(set(row) ^ set(expected))} are not as declared")
    keys = [tuple(row[name] for name in table.key) for row in rows]
    if table.key and len(set(keys)) < len(keys):
        raise ValueError(f"table `{table.name}`: two rows have the same {', '.join(table.key)}")
    types = {"text": pa.string(), "number": pa.float64(), "integer": pa.int64(), "flag": pa.bool_()}
    fields, arrays = [], []
    for column in table.columns:
        values = [_cell(table, column, row[column.name]) for row in rows]
        arrays.append(pa.array(values, types[column.kind]))
        fields.append(pa.field(column.name, types[column.kind], metadata={"description": column.description}))
    schema = pa.schema(fields, metadata={DECLARATION: json.dumps(dataclasses.asdict(table)).encode()})
    target = folder / FOLDER / f"{table.name}.parquet"
    target.parent.mkdir(exist_ok=True)
    whole = pa.BufferOutputStream()
    # Fixed settings: the same rows give the same bytes.
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), whole, compression="zstd", version="2.6")
    write_bytes(target, memoryview(whole.getvalue()))


def _cell(table: Table, column: Column, value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()  # a numpy or torch scalar
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    allowed: dict[Kind, tuple[type, ...]] = {"text": (str,), "number": (int, float), "integer": (int,), "flag": (bool,)}
    wrong = not isinstance(value, allowed[column.kind]) or (column.kind != "flag" and isinstance(value, bool))
    if wrong:
        raise ValueError(f"table `{table.name}`: column `{column.name}` is {column.kind}, but holds {value!r}")
    return float(value) if column.kind == "number" else value


def names(folder: Path) -> list[str]:
    """The tables of a result, sorted."""
    return sorted(path.stem for path in (folder / FOLDER).glob("*.parquet"))


def read(folder: Path, name: str) -> pd.DataFrame:
    """A table of a result.

    Args:
        folder: of the result.
        name: of the table.

    Returns:
        The rows; ``attrs["table"]`` holds the declaration.

    Raises:
        FileNotFoundError: the result has no such table.
    """
    import pyarrow.parquet as pq

    loaded = pq.read_table(folder / FOLDER / f"{name}.parquet")
    frame = loaded.to_pandas()
    frame.attrs["table"] = declaration(json.loads((loaded.schema.metadata or {})[DECLARATION]))
    return frame


def read_all(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table of a result by name."""
    return {name: read(folder, name) for name in names(folder)}


def declaration(values: Mapping[str, Any]) -> Table:
    """A declaration from its JSON form."""
    charts = [Heatmap(**chart) if "value" in chart else Line(**chart) for chart in values["charts"]]
    return Table(
        name=values["name"],
        description=values["description"],
        columns=tuple(Column(**column) for column in values["columns"]),
        key=tuple(values["key"]),
        averages=tuple(Average(**average) for average in values["averages"]),
        charts=tuple(charts),
    )


def averaged(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """The metrics that are means of a column of this table, as (metric, the rows averaged, column).

    Args:
        frame: as :func:`read` gives it.
    """
    table: Table = frame.attrs["table"]
    for average in table.averages:
        names = [column.name for column in table.columns if f"{{{column.name}}}" in average.metric]
        if not names:
            yield average.metric, frame, average.column
            continue
        for values, rows in frame.groupby(names, sort=False):
            given: Sequence[Any] = values if isinstance(values, tuple) else (values,)
            yield average.metric.format(**dict(zip(names, given, strict=True))), rows, average.column
