"""What a stage found, as tables with a schema: declared once, written as Parquet, read by everything that shows it."""

from affectlens.results.tables import (
    FOLDER,
    Average,
    Column,
    Heatmap,
    Line,
    Table,
    bounded,
    flag,
    integer,
    names,
    number,
    read,
    read_all,
    text,
    write,
)

__all__ = [
    "FOLDER",
    "Average",
    "Column",
    "Heatmap",
    "Line",
    "Table",
    "bounded",
    "flag",
    "integer",
    "names",
    "number",
    "read",
    "read_all",
    "text",
    "write",
]
