"""Words or meaning: pairs of texts made of the same words, and what else than the concept might be read."""

from __future__ import annotations

from collections import Counter
from typing import Any

from affectlens.report import marks
from affectlens.report.evidence import BASELINE, FEATURE, SIGNIFICANT, Evidence, Row
from affectlens.report.finding import Finding
from affectlens.report.marks import Chart
from affectlens.report.numbers import MISSING, NOT_SHOWN, estimate, finite, names, number, p_value, plural
from affectlens.report.tables import Cell, Column, Table, figure, span, word

READ = {"mean": "mean of all tokens", "last": "last token", "max": "largest value", "text": "words"}
WITHOUT = "without telling words"


def _named(row: Row) -> str:
    place = "" if row.get("layer") is None else f", layer {row['layer']}"
    return f"{row['method']}{place} · {READ.get(row['read'], row['read'])}"


def pair_dots(evidence: Evidence) -> Chart:
    """Share of same-words pairs told apart, for every method, layer and way of reading."""
    rows = [{**row, "concept": _named(row)} for row in evidence.pairs]
    trace = marks.dots(rows, "accuracy", "direction", "Pairs told apart", "share")
    trace["marker"] |= {
        "color": ["var(--feature)" if "SAE" in row["method"] else "var(--direction)" for row in rows],
        "symbol": ["diamond" if "SAE" in row["method"] else "circle" for row in rows],
    }
    return marks.dot_plot(
        "meaning-pairs",
        [trace],
        [row["concept"] for row in rows],
        title="Share of pairs told apart rightly",
        zero=0.5,
        limits=[0, 1],
        words="Dot plot: share of same-words pairs that each method tells apart at each layer, with 95% intervals.",
    )


def pairs(evidence: Evidence) -> Table:
    """Same-words pairs by method, with the device that makes the difference."""
    devices = sorted({device for row in evidence.pairs for device in row.get("devices", {})})
    columns = [
        Column("Method"),
        Column("Layer", numeric=True),
        Column("Read at"),
        Column("Told apart", "Ties count a half", True),
        Column("95% interval", "Resampling pairs of the same concepts together", True),
        Column("p", "Against one half", True),
        *(Column(device.capitalize(), f"Pairs that differ by {device} alone", True) for device in devices),
    ]
    rows = [
        [
            word(row["method"]),
            Cell(MISSING if row.get("layer") is None else str(row["layer"]), finite(row.get("layer"))),
            word(READ.get(row["read"], row["read"])),
            figure(row.get("accuracy")),
            span(row.get("low"), row.get("high")),
            Cell(p_value(row.get("p")), finite(row.get("p"))),
            *(figure(row.get("devices", {}).get(device), 2) for device in devices),
        ]
        for row in evidence.pairs
    ]
    return Table("pairs", "Same-words pairs", columns, rows)


def confounds(evidence: Evidence) -> Table:
    """Per concept what else tells its stories from the others."""
    columns = [
        Column("Concept"),
        Column("Direction", "AUROC within left-out topics", True),
        Column("without words", "The same with the tokens of the concept's most telling words left out", True),
        Column("Feature", "AUROC of the best SAE feature", True),
        Column("without words", "The same with the tokens of the most telling words left out", True),
        Column("Topic alone", "AUROC of knowing only the topic; 0.5 where stories are crossed with topics", True),
        Column("Best word"),
        Column("its AUROC", "Of whether a story holds that one word", True),
        Column("Beyond affect", "Share of the direction's energy that valence and arousal do not explain", True),
        Column("Confounded by"),
    ]
    rows = [
        [
            word(row["concept"]),
            *(
                figure(row.get(key))
                for key in (BASELINE, f"{BASELINE}, {WITHOUT}", FEATURE, f"{FEATURE}, {WITHOUT}", "auroc_topic_alone")
            ),
            word(row.get("best_word", MISSING)),
            figure(row.get("auroc_best_word")),
            figure(row.get("share_beyond_affect"), 2),
            word(", ".join(row.get("confounded", [])) or MISSING),
        ]
        for row in evidence.confounds
    ]
    return Table("confounds", "What else might be read", columns, rows)


def findings(evidence: Evidence) -> list[Finding]:
    """What the pairs say of meaning, and which concepts something else explains."""
    return [_pairs(evidence), _confounds(evidence)]


def _pairs(evidence: Evidence) -> Finding:
    title = "Meaning beyond words"
    tried = [row for row in evidence.pairs if row["method"] != "TF-IDF" and finite(row.get("p")) is not None]
    if not tried:
        return Finding("meaning", title, f"Same-words pairs were not read, so it is {NOT_SHOWN}.", "not shown")
    # Every row is a try: Holm over all of them, since any could have come out on top.
    left, better = len(tried), []
    for row in sorted(tried, key=lambda row: float(row["p"])):
        if float(row["p"]) * left > SIGNIFICANT:
            break
        left -= 1
        if float(row["accuracy"]) > 0.5:
            better.append(row)
    best = max(tried, key=lambda row: float(row["accuracy"]))
    told = estimate(best["accuracy"], best.get("low"), best.get("high"))
    text = (
        f"On {plural(int(best.get('pairs', 0)), 'pair')} of texts made of the same words, where word counts must "
        f"guess, the best of {plural(len(tried), 'reading')} tells {told} apart ({_named(best)}; one half is chance). "
    )
    if not better:
        text += "After correction for the number of readings none beats chance: meaning beyond words is not shown."
        return Finding("meaning", title, text, "not shown")
    text += f"After correction {len(better)} of {len(tried)} beat chance."
    return Finding("meaning", title, text, "shown" if len(better) == len(tried) else "partly shown")


def _confounds(evidence: Evidence) -> Finding:
    title = "What else might be read"
    if not evidence.confounds:
        return Finding("meaning", title, f"Confounds were not looked for: it is {NOT_SHOWN}.", "not shown")
    marked = [row["concept"] for row in evidence.confounds if row.get("confounded")]
    reasons: Counter[str] = Counter(reason for row in evidence.confounds for reason in row.get("confounded", []))
    text = (
        f"Leaving out the tokens of each concept's most telling words changes the mean AUROC of directions from "
        f"{number(_mean(evidence, BASELINE))} to {number(_mean(evidence, f'{BASELINE}, {WITHOUT}'))}. "
    )
    if marked:
        why = "; ".join(f"{reason}: {plural(count, 'concept')}" for reason, count in reasons.most_common())
        text += f"The detection of {names(marked)} cannot be told from that of something else ({why})."
    else:
        text += "For no concept do topic or telling words explain half of its detection."
    return Finding("meaning", title, text, "partly shown" if marked else "shown")


def _mean(evidence: Evidence, key: str) -> float | None:
    known: list[Any] = [value for row in evidence.confounds if (value := finite(row.get(key))) is not None]
    return sum(known) / len(known) if known else None
