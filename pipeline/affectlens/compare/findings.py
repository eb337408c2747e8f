"""What one study found, in the same terms wherever it was read from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from affectlens.tracking.interface import Rows, Run

Row = dict[str, Any]

PAIRED = {
    "match/best_feature_auroc": ("match/concepts", "auroc_test"),
    "match/random_sae_auroc": ("match/concepts", "auroc_random_sae"),
    "match/assigned_feature_auroc": ("match/concepts", "assigned_auroc_test"),
    "match/max_pooled_auroc": ("match/concepts", "auroc_test_max"),
    "match/token_auroc": ("match/concepts", "auroc_tokens"),
    "match/average_precision": ("match/concepts", "ap_test"),
    "directions/auroc_test": ("directions/concepts", "auroc_test"),
    "directions/stability_halves": ("directions/concepts", "halves"),
    "compare/cosine_mean": ("compare/cosines", "cosine"),
    "compare/cosine_encoder_mean": ("compare/cosines", "cosine_encoder"),
}
"""Metrics that are the mean of a column with one row a concept."""
READOUTS = "compare/readouts"
"""One row a concept; its columns are called like the metrics that are their means."""
VERDICTS = "causal/verdicts"
"""One row a concept and kind of vector."""
CLAIMS = ("sufficient", "specific", "necessary")
PER_VECTOR = {"effect": "effect", "share_above_controls": "above_controls"} | {f"share_{it}": it for it in CLAIMS}
"""Of the causal metrics that end in the kind of vector, the column of :data:`VERDICTS` that they are the mean of."""


class Value(NamedTuple):
    """A metric with its interval, NaN where it has none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low) and not math.isnan(self.high)


@dataclass(frozen=True)
class Result:
    """One stage of a study.

    Attributes:
        stage: its name.
        record: what a manifest holds of how it came about: ``config``, ``seed``, ``model``, ``data``, ``versions`` ...
        metrics: flat, with None (or NaN) for what could not be measured; empty when the stage is not finished.
        tables: by name, rows as the stage sends them to Weights & Biases.
        note: what could not be read of it.
    """

    stage: str
    record: Mapping[str, Any]
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """One study, as far as it is known.

    Attributes:
        name: tells it from the others of a comparison.
        group: of its runs in Weights & Biases; empty where that is not known.
        source: where it was read.
        results: by stage.
        missing: what is not there, as ``stage (state)``.
        notes: sentences a reader of the comparison should know.
    """

    name: str
    group: str
    source: str
    results: Mapping[str, Result]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def metrics(self) -> dict[str, Value]:
        """Metrics by ``stage/name``; those that are only ends of an interval, or its n, belong to their metric."""
        found = {}
        for result in self.results.values():
            own = {name: math.nan if value is None else float(value) for name, value in result.metrics.items()}
            for name, value in own.items():
                stem, _, end = name.rpartition("_")
                if end in ("low", "high", "n") and f"{stem}_low" in own:
                    continue
                ends = (own.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
                found[f"{result.stage}/{name}"] = Value(value, *ends)
        return found

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What was asked for and can change a result, by dotted key: ``sae.k``."""
        found: dict[str, Any] = {}
        for result in self.results.values():
            record = result.record
            found |= {f"{result.stage}.{key}": value for key, value in flat(record.get("config") or {})}
            found |= {f"model.{key}": value for key, value in flat(record.get("model") or {})}
            if record.get("seed") is not None:
                found["seed"] = record["seed"]
        return found

    @cached_property
    def circumstances(self) -> dict[str, str]:
        """What can change a result without being a setting: contents of files, code, packages."""
        found: dict[str, list[str]] = {}
        for result in self.results.values():
            record = result.record
            named = {f"{result.stage}.data.{role}": digest for role, digest in (record.get("data") or {}).items()}
            named |= {f"{result.stage}.version": record.get("version")}
            named |= {"code": record.get("git"), "model.files": record.get("model_identity")}
            named |= {f"package {name}": version for name, version in (record.get("versions") or {}).items()}
            for key, value in named.items():
                if value is not None:
                    found.setdefault(key, []).append(str(value))
        return {key: ", ".join(dict.fromkeys(values)) for key, values in found.items()}

    @cached_property
    def per_concept(self) -> dict[str, dict[str, float]]:
        """Values by metric and concept, for metrics that are the mean of one value a concept."""
        found = {}
        for metric, values in self._candidates():
            numbers = {concept: float(value) for concept, value in values.items() if value is not None}
            mean = sum(numbers.values()) / len(numbers) if numbers else math.nan
            # A table of another code version may mean something else by the same name.
            if metric in self.metrics and math.isclose(mean, self.metrics[metric].value, abs_tol=1e-6):
                found[metric] = numbers
        return found

    def _candidates(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for metric, (table, column) in PAIRED.items():
            yield metric, self._column(table, column)
        for column in next(iter(self.rows(READOUTS)), {}):
            if column != "concept":
                yield f"compare/{column}", self._column(READOUTS, column)
        for vector in dict.fromkeys(row["vector"] for row in self.rows(VERDICTS)):
            for metric, column in PER_VECTOR.items():
                yield f"causal/{metric}_{vector}", self._column(VERDICTS, column, vector=vector)

    def _column(self, table: str, column: str, **where: Any) -> dict[str, Any]:
        rows = [row for row in self.rows(table) if all(row[key] == value for key, value in where.items())]
        return {row["concept"]: row.get(column) for row in rows}

    def rows(self, table: str) -> Sequence[Row]:
        """The rows of a table; none where it is not there."""
        result = self.results.get(table.partition("/")[0])
        return result.tables.get(table, ()) if result else ()

    @cached_property
    def matched(self) -> dict[str, Row]:
        """Per concept the best feature, what it and the direction detect on held-out topics, and the verdicts."""
        found: dict[str, Row] = {}
        for row in self.rows("match/concepts"):
            own = found.setdefault(row["concept"], {})
            own |= {"feature": int(row["feature"]), "feature_auroc": row["auroc_test"]}
        for row in self.rows("directions/concepts"):
            found.setdefault(row["concept"], {})["direction_auroc"] = row["auroc_test"]
        for row in self.rows(VERDICTS):
            claims = ", ".join(claim for claim in CLAIMS if row[claim])
            found.setdefault(row["concept"], {})[f"{row['vector']}_verdict"] = claims or "not shown"
        return found


class Recorder(Run):
    """A run that keeps the tables a stage sends, so that a result on disk reads like its run in Weights & Biases."""

    active = True

    def __init__(self) -> None:
        self.tables: dict[str, list[Row]] = {}

    def table(self, name: str, columns: Sequence[str], rows: Rows) -> None:
        self.tables[name] = [dict(zip(columns, row, strict=True)) for row in rows]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping by dotted key; lists are leaves."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
