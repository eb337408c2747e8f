"""Tables of a study, and other results, as JSON that a page can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.report.evidence import Rows

if TYPE_CHECKING:
    from affectlens.use.opened import Opened


def shown(study: Opened, name: str) -> dict[str, Any]:
    """Columns with what they mean, and rows; empty where the stage has not run.

    Args:
        study: whose table it is.
        name: ``stage/table``.
    """
    rows = rows_of(study, name)
    declared = rows.declared.columns if rows.declared else ()
    return {
        "columns": [{"name": each.name, "help": each.description, "unit": each.unit} for each in declared],
        "rows": [[plain(row[each.name]) for each in declared] for row in rows],
    }


def rows_of(study: Opened, name: str) -> Rows:
    """A table's rows; none where the stage has not run."""
    return Rows.of(study.table(name)) if name in study.tables else Rows(())


def plain(value: Any) -> Any:
    """JSON of arrays and numbers: NaN is null, four digits."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value
