"""The page of watched answers: the page of read texts, with thresholds, alarms and rivals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from affectlens.results.format import percent
from affectlens.use.monitor import RIVALS, Monitor, Watched
from affectlens.use.page import MOST, fill, packed


def render(answers: Sequence[Watched], monitor: Monitor, *, first: str | None = None) -> str:
    """The page.

    Args:
        answers: watched; those beyond the most that a page holds are counted, not shown.
        monitor: that watched them.
        first: the row that is shown first; the first that may raise an alarm by default.
    """
    card = monitor.card
    rows = [{"name": name, "kind": "row"} for name in monitor.names] + [{"name": n, "kind": "rival"} for n in RIVALS]
    texts, size = [], 0
    for answer in answers:
        size += len(answer.pieces) * len(rows)
        if size > MOST:
            break
        values = np.concatenate([np.array(answer.values).reshape(len(answer.pieces), -1), _rivals(answer)], axis=1)
        texts.append({
            "name": answer.name, "tokens": answer.pieces, "messages": [["assistant", 0, len(answer.pieces)]],
            "values": packed(values),
            "thresholds": [*(round(float(limit), 4) for limit in answer.thresholds), *(None for _ in RIVALS)],
            "alarms": [[token, monitor.names.index(name)] for token, name in answer.alarms],
        })  # fmt: skip
    statistic = {"rolling": "the mean of the last {} tokens", "own_start": "the same less the answer's own start"}
    what = statistic.get(card.statistic.kind, f"the statistic {card.statistic.kind}").format(card.statistic.window)
    return fill(
        rows, texts, first=first or monitor.names[monitor.rows[0]], model=monitor.study.model_name, layer=card.layer,
        left_out=len(answers) - len(texts),
        monitor=(
            f"A row's value is {what}, in standard deviations of benign tokens. Each row alone passes its threshold in "
            f"{percent(card.target)} of benign answers, as calibrated on {card.source}."
        ),
    )  # fmt: skip


def _rivals(answer: Watched) -> np.ndarray:
    """Entropy and surprisal, in nats."""
    return np.array(answer.rivals).reshape(-1, len(RIVALS))
