"""A comparison as JSON, and as a CSV with one row a study and metric, which a W&B report takes as a table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from affectlens.compare.differences import Comparison, Difference
from affectlens.compare.findings import Value
from affectlens.results import format


def as_json(comparison: Comparison) -> str:
    """All of it, with null for what is not known."""
    names = [each.name for each in comparison.studies]
    content = {
        "studies": [
            {"name": each.name, "group": each.group, "source": each.source, "missing": list(each.missing)}
            for each in comparison.studies
        ],
        "settings": {each.key: dict(zip(names, each.values, strict=True)) for each in comparison.settings},
        "circumstances": {each.key: dict(zip(names, each.values, strict=True)) for each in comparison.circumstances},
        "same_results": list(comparison.shared),
        "metrics": [
            {
                "metric": each.name,
                "values": {name: _value(value) for name, value in zip(names, each.values, strict=True)},
                "differences": {
                    name: _difference(difference)
                    for name, difference in zip(names[1:], each.differences[1:], strict=True)
                },
            }
            for each in comparison.metrics
        ],
        "concepts": {
            concept: dict(zip(names, rows, strict=True)) for concept, rows in comparison.concepts.items()
        },
        "notes": list(comparison.notes),
    }  # fmt: skip
    return json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One row for each study and metric; the settings that differ are columns at the end."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ["study", "group", "metric", "value", "low", "high"]
    compared = ["difference", "difference_low", "difference_high", "rule", "exceeds"]
    writer.writerow([_cell(name) for name in (*head, *compared, *(each.key for each in comparison.settings))])
    for metric in comparison.metrics:
        for index, study in enumerate(comparison.studies):
            value, difference = metric.values[index], metric.differences[index]
            if value is None:
                continue
            judged: list[Any] = [None] * len(compared)
            if difference is not None:
                ends = (difference.value, difference.low, difference.high)
                judged = [*ends, difference.rule, difference.exceeds]
            settings = [each.values[index] for each in comparison.settings]
            row = [study.name, study.group, metric.name, *value, *judged, *settings]
            writer.writerow([_cell(cell) for cell in row])
    return stream.getvalue()


def as_page(comparison: Comparison) -> str:
    """A self-contained HTML page."""
    from affectlens.compare.page import render

    return render(comparison)


def _value(value: Value | None) -> dict[str, float] | None:
    return None if value is None else value._asdict()


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    return None if difference is None else dict(vars(difference))


def _plain(value: Any) -> Any:
    """Without NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    return format.cell(value) if isinstance(value, str) else str(value)
