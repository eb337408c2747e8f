"""What one study found, in the same terms wherever it was read from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from affectlens.results.tables import averaged

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
CLAIMS = ("sufficient", "specific", "necessary")
"""Columns of the table ``causal/verdicts``: what was shown of a vector of a concept."""


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
        tables: by name, each with its declaration in ``attrs["table"]``.
        note: what could not be read of it.
    """

    stage: str
    record: Mapping[str, Any]
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
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
        metrics = {}
        for result in self.results.values():
            values = {name: math.nan if value is None else float(value) for name, value in result.metrics.items()}
            for name, value in values.items():
                stem, _, end = name.rpartition("_")
                if end in ("low", "high", "n") and f"{stem}_low" in values:
                    continue
                ends = (values.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
                metrics[f"{result.stage}/{name}"] = Value(value, *ends)
        return metrics

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What was asked for and can change a result, by dotted key: ``sae.k``."""
        settings: dict[str, Any] = {}
        for result in self.results.values():
            record = result.record
            settings |= {f"{result.stage}.{key}": value for key, value in flat(record.get("config") or {})}
            settings |= {f"model.{key}": value for key, value in flat(record.get("model") or {})}
            if record.get("seed") is not None:
                settings["seed"] = record["seed"]
        return settings

    @cached_property
    def circumstances(self) -> dict[str, str]:
        """What can change a result without being a setting: contents of files, code, packages."""
        circumstances: dict[str, list[str]] = {}
        for result in self.results.values():
            record = result.record
            named = {f"{result.stage}.data.{role}": digest for role, digest in (record.get("data") or {}).items()}
            named |= {f"{result.stage}.version": record.get("version")}
            named |= {"code": record.get("git"), "model.files": record.get("model_identity")}
            named |= {f"package {name}": version for name, version in (record.get("versions") or {}).items()}
            for key, value in named.items():
                if value is not None:
                    circumstances.setdefault(key, []).append(str(value))
        return {key: ", ".join(dict.fromkeys(values)) for key, values in circumstances.items()}

    @cached_property
    def per_concept(self) -> dict[str, dict[str, float]]:
        """Values by metric and concept, for metrics that a table declares to be the mean of a column."""
        values: dict[str, dict[str, float]] = {}
        for result in self.results.values():
            for frame in result.tables.values():
                for name, rows, column in averaged(frame):
                    metric = f"{result.stage}/{name}"
                    if "concept" not in rows or metric not in self.metrics:
                        continue
                    values_of = rows.assign(value=rows[column].astype(float))[["concept", "value"]].dropna()
                    means = values_of.groupby("concept", sort=False)["value"].agg("mean")
                    # Concepts with unequal numbers of rows: the metric is then no mean over concepts.
                    if len(means) and math.isclose(
                        float(means.to_numpy().mean()), self.metrics[metric].value, abs_tol=1e-6
                    ):
                        values[metric] = means.to_dict()
        return values

    @cached_property
    def matched(self) -> dict[str, Row]:
        """Per concept the best feature, what it and the direction detect on held-out topics, and the verdicts."""
        matched: dict[str, Row] = {}
        for row in self._rows("match", "concepts"):
            figures = {"feature": int(row["feature"]), "feature_auroc": row["auroc_test"]}
            matched.setdefault(row["concept"], {}).update(figures)
        for row in self._rows("directions", "concepts"):
            matched.setdefault(row["concept"], {})["direction_auroc"] = row["auroc_test"]
        for row in self._rows("causal", "verdicts"):
            claims = ", ".join(claim for claim in CLAIMS if row[claim] is True)
            matched.setdefault(row["concept"], {})[f"{row['vector']}_verdict"] = claims or "not shown"
        return matched

    def _rows(self, stage: str, table: str) -> list[Row]:
        """The rows of a table; none where it is not there."""
        frame = self.results[stage].tables.get(table) if stage in self.results else None
        return [] if frame is None else frame.to_dict("records")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping by dotted key; lists are leaves."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
