"""Everything known of each concept in one table, for spreadsheets and data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectlens.results import format

Row = Mapping[str, Any]


def build(concepts: Sequence[str], sections: Mapping[str, Sequence[Row]], detection: Sequence[Row]) -> list[dict]:
    """One flat row a concept.

    Args:
        concepts: in the order of the rows.
        sections: under a prefix each, rows with the key ``concept``.
        detection: rows with ``method`` and ``per_concept``.

    Returns:
        Columns ``<prefix>.<key>``; words joined by blanks, nested figures as ``<prefix>.<key>.<name>``, contexts left
        out; ``auroc.<method>`` per method.
    """
    table: list[dict] = []
    by_concept = {prefix: {row["concept"]: row for row in rows} for prefix, rows in sections.items()}
    for concept in concepts:
        flat: dict[str, Any] = {"concept": concept}
        for prefix, rows in by_concept.items():
            for key, value in rows.get(concept, {}).items():
                if key not in ("concept", "contexts"):
                    flat |= _flatten(f"{prefix}.{key}", value)
        flat |= {f"auroc.{row['method']}": row["per_concept"].get(concept) for row in detection}
        table.append(flat)
    return table


def _flatten(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {f"{name}.{key}": each for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return {name: " ".join(str(each) for each in value)}
    return {name: value}


def write(folder: Path, table: Sequence[Row]) -> None:
    """``concepts.csv`` and ``concepts.parquet``."""
    import pyarrow
    from pyarrow import csv, parquet

    columns = {key: [row.get(key) for row in table] for key in dict.fromkeys(key for row in table for key in row)}
    whole = pyarrow.table(columns)
    parquet.write_table(whole, folder / "concepts.parquet")
    for values in columns.values():
        values[:] = [format.cell(value) if isinstance(value, str) else value for value in values]
    csv.write_csv(pyarrow.table(columns), folder / "concepts.csv")
