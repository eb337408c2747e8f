"""Words or meaning: pairs of texts made of the same words, and what else than the concept might be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import fmean

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, Marks
from affectlens.report.evidence import BASELINE, FEATURE, SIGNIFICANT, Evidence, Row
from affectlens.report.registry import figure, findings
from affectlens.report.sentences import Finding, Standing, say
from affectlens.report.tables import Table, table
from affectlens.results.format import finite
from affectlens.stats import holm

READ = {"mean": "mean of all tokens", "last": "last token", "max": "largest value", "text": "words"}
WITHOUT = "without telling words"


def _named(row: Row) -> str:
    layer = "" if row["layer"] is None else f", layer {row['layer']:.0f}"
    return f"{row['method']}{layer} · {READ.get(row['read'], row['read'])}"


@figure(
    "meaning",
    "compare/pairs",
    caption="Same-words pairs: share told apart rightly, with 95% intervals. The dashed line is chance; word counts "
    "sit "
    'on it by construction. {{ "n = " ~ plural(evidence.rows("compare/pairs")[0]["pairs"] or 0, "pair") }}',
)
def pair_dots(evidence: Evidence) -> Chart:
    """Share of same-words pairs told apart, for every method, layer and way of reading."""
    rows = [{**row, "name": _named(row)} for row in evidence.rows("compare/pairs")]
    sae = ["SAE" in row["method"] for row in rows]
    colours, symbols = ["feature" if each else "direction" for each in sae], ["diamond" if e else "circle" for e in sae]
    return draw.dots(
        "meaning-pairs",
        [Marks(draw.series("Pairs told apart", rows, "accuracy", x="name"), colours, symbols)],
        [row["name"] for row in rows],
        title="Share of pairs told apart rightly",
        zero=0.5,
        limits=[0, 1],
        words="Dot plot: share of same-words pairs that each method tells apart at each layer, with 95% intervals.",
    )


@figure("meaning", "compare/pairs")
def pairs(evidence: Evidence) -> Table:
    """Same-words pairs by method, with the device that makes the difference."""
    details = {
        (row["layer"], row["method"], row["read"]): row["devices"]
        for row in evidence.cards.get("compare", {}).get("pairs", ())
    }
    devices = sorted({device for row in details.values() for device in row})
    rows = [
        {**row, "read": READ.get(row["read"], row["read"])}
        | details.get((row["layer"], row["method"], row["read"]), {})
        for row in evidence.rows("compare/pairs")
    ]
    columns = [
        tables.text("Method", "method"),
        tables.whole("Layer", "layer"),
        tables.text("Read at", "read"),
        tables.figure("Told apart", "accuracy", "Ties count a half"),
        tables.span("Resampling pairs of the same concepts together"),
        tables.p("p", "p", "Against one half"),
        *(tables.figure(each.capitalize(), each, f"Pairs that differ by {each} alone", digits=2) for each in devices),
    ]
    return table("pairs", "Same-words pairs", rows, columns)


@figure("meaning", "compare/confounds")
def confounds(evidence: Evidence) -> Table:
    """Per concept what else tells its stories from the others."""
    methods = {
        BASELINE: ("Direction", "AUROC within left-out topics"),
        f"{BASELINE}, {WITHOUT}": ("without words", "With the tokens of the most telling words left out"),
        FEATURE: ("Feature", "AUROC of the best SAE feature"),
        f"{FEATURE}, {WITHOUT}": ("without words ", "With the tokens of the most telling words left out"),
    }
    areas = {method: evidence.aurocs(method) for method in methods}
    rows = [
        {**row, **{method: areas[method].get(row["concept"]) for method in methods}}
        for row in evidence.rows("compare/confounds")
    ]
    columns = [
        tables.text("Concept", "concept"),
        *(tables.figure(title, method, help) for method, (title, help) in methods.items()),
        tables.figure("Topic alone", "auroc_topic_alone", "0.5 where stories are crossed with topics"),
        tables.text("Best word", "best_word"),
        tables.figure("AUROC of the word", "auroc_best_word", "Of whether a story holds one word, chosen elsewhere"),
        tables.figure("Beyond affect", "share_beyond_affect", "Share that valence and arousal leave", digits=2),
        tables.text("Confounded by", "confounded", "What its detection cannot be told from"),
    ]
    return table("confounds", "What else might be read", rows, columns)


@findings
def meaning(evidence: Evidence) -> Iterator[Finding]:
    """What the pairs say of meaning, and which concepts something else explains."""
    yield beyond_words(evidence)
    yield explained(evidence)


def beyond_words(evidence: Evidence) -> Finding:
    """How many readings tell same-words pairs apart; any could have come out on top, so all are corrected for."""
    title = "Meaning is read beyond words"
    rows = [row for row in evidence.rows("compare/pairs") if row["method"] != "TF-IDF" and finite(row["p"]) is not None]
    if not rows:
        return Finding("meaning", title, "Same-words pairs were not read, so it is not shown.")
    import numpy as np

    p = holm(np.array([row["p"] for row in rows]))
    better = sum(bool(each <= SIGNIFICANT and row["accuracy"] > 0.5) for each, row in zip(p, rows, strict=True))
    best = max(rows, key=lambda row: row["accuracy"])
    text = say(
        """On {{ plural(best.pairs or 0, "pair") }} of texts made of the same words, where word counts must guess, the
        best of {{ plural(total, "reading") }} tells {{ (best.accuracy, best.low, best.high) | figure }} apart
        ({{ name }}; one half is chance). {% if better %}After correction {{ better }} of {{ total }} beat chance.
        {% else %}After correction for the number of readings none beats chance: meaning beyond words is not shown.
        {% endif %}""",
        **{"best": best, "total": len(rows), "name": _named(best), "better": better},
    )
    badge: Standing = "shown" if better == len(rows) else "partly shown" if better else "not shown"
    return Finding("meaning", title, text, badge)


def explained(evidence: Evidence) -> Finding:
    """Which concepts' detection topic or words explain."""
    title, rows = "Nothing else explains the detection", evidence.rows("compare/confounds")
    if not rows:
        return Finding("meaning", title, "Confounds were not looked for: it is not shown.")
    reasons = Counter(reason for row in rows if row["confounded"] for reason in row["confounded"].split(", "))
    areas = [evidence.aurocs(name).values() for name in (BASELINE, f"{BASELINE}, {WITHOUT}")]
    text = say(
        """Leaving out the tokens of each concept's most telling words changes the mean AUROC of directions from
        {{ whole | number }} to {{ rest | number }}.
        {% if marked %}The detection of {{ marked | names }} cannot be told from that of something else
        ({% for reason, count in reasons %}{{ "; " if not loop.first }}{{ reason }}: {{ plural(count, "concept") }}
        {%- endfor %}).{% else %}For no concept do topic or telling words explain half of its detection.{% endif %}""",
        whole=fmean(areas[0]) if areas[0] else None,
        rest=fmean(areas[1]) if areas[1] else None,
        marked=[row["concept"] for row in rows if row["confounded"]],
        reasons=reasons.most_common(),
    )
    return Finding("meaning", title, text, "partly shown" if reasons else "shown")
