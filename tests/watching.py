"""Cards for tests: rows of a study's directions, standardised and with thresholds that are set by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from affectlens.monitor.calibration import BucketConfig, CardConfig, WatchedRowConfig
from affectlens.monitor.statistics import StatisticConfig


def card_of(
    weights: dict[str, np.ndarray],
    threshold: float,
    *,
    kind: Any = "rolling",
    window: int = 4,
    layer: int = 2,
    mean: Any = 0.0,
    deviation: Any = 1.0,
    **identity: Any,
) -> CardConfig:
    """A card whose rows have one threshold for answers of up to 32 tokens and twice that for longer ones."""
    ends = ((32, threshold), (None, 2 * threshold))
    buckets = tuple(BucketConfig(longest=end, threshold=value, episodes=99, band=(0.0, 0.1)) for end, value in ends)
    count = len(weights)
    means, deviations = (np.broadcast_to(each, count).tolist() for each in (mean, deviation))
    rows = tuple(
        WatchedRowConfig(
            name=name,
            layer=layer,
            weights=tuple(np.asarray(row, dtype=float).tolist()),
            offset=0.0,
            mean=means[place],
            deviation=deviations[place],
            buckets=buckets,
        )
        for place, (name, row) in enumerate(weights.items())
    )
    known: dict[str, Any] = {"model": "m", "template": "t", "dtype": "float32"} | identity
    return CardConfig(
        **known,
        layer=layer,
        statistic=StatisticConfig(kind=kind, window=window, start=6),
        refractory=4,
        target=0.05,
        source="tests",
        rows=rows,
    )
