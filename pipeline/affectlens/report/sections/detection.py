"""Which directions and features read their concepts, and which of the two does it better."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from affectlens.report import draw, tables
from affectlens.report.draw import Chart, Marks
from affectlens.report.evidence import BASELINE, FEATURE, SIGNIFICANT, Evidence, Row
from affectlens.report.registry import figure, findings
from affectlens.report.sentences import Finding, Standing, say, standing
from affectlens.report.tables import Table, table
from affectlens.results.format import finite

AUROC = "AUROC within left-out topics"
STORIES = '{{ "n = " ~ plural(evidence.stories, "story", "stories") ~ ", " ~ plural(len(evidence.tested), "topic") }}'
GATES = {
    "named": ("Names the concept", "Texts that hold their own concept's word or an inflection of it"),
    "short": ("Short", "Fewer words than a story should have"),
    "long": ("Long", "More words than a story should have"),
    "duplicates": ("Duplicates", "Texts equal to an earlier one"),
    "shared_runs": ("Shared runs", "Texts that share a run of words with another text"),
}


def words_of(row: Row, limit: int) -> list[str]:
    """The first logit-lens words of a row."""
    return str(row.get("words") or "").split()[:limit]


def _words(evidence: Evidence, help: str) -> tables.Column:
    return tables.Column("Logit-lens words", lambda row: tables.word(", ".join(words_of(row, evidence.words))), help)


@figure("texts", "corpus/quality")
def quality(evidence: Evidence) -> Table:
    """Per concept its texts and what the quality gates found."""
    gates = [tables.whole(title, gate, help) for gate, (title, help) in GATES.items()]
    columns = [tables.text("Concept", "concept"), tables.whole("Texts", "texts")]
    columns += [tables.figure("Words per text", "mean_words", digits=1), *gates]
    return table("quality", "Texts and findings of the quality gates", evidence.rows("corpus/quality"), columns)


@figure(
    "directions",
    "directions/concepts",
    caption="Detection by each concept's direction. Bars are 95% t intervals over topics; the dashed line is chance. "
    + STORIES,
)
def direction_dots(evidence: Evidence) -> Chart:
    """AUROC of every direction with its interval."""
    rows = draw.ranked(evidence.rows("directions/concepts"), "auroc_test")
    marks = [Marks(draw.series("Direction", rows, "auroc_test"), "direction")]
    words = "Dot plot: AUROC of each concept's direction with its 95% interval."
    return draw.dots("directions-auroc", marks, _concepts(rows), title=AUROC, zero=0.5, words=words)


@figure("directions", "directions/concepts")
def directions(evidence: Evidence) -> Table:
    """Per concept its direction's detection, what the neutral projection removed, and its words."""
    columns = [
        tables.text("Concept", "concept"),
        tables.figure("AUROC", "auroc_test"),
        tables.span(),
        tables.share("Removed", "neutral_energy"),
        _words(evidence, "Tokens whose unembedding the direction points to most"),
    ]
    return table("directions", "Directions within left-out topics", evidence.rows("directions/concepts"), columns)


@figure(
    "layers",
    "directions/layers",
    caption="Mean AUROC over concepts within left-out topics at each layer that was read, with 95% t intervals over "
    "topics. The upright line marks the layer of this study, the level one chance.",
)
def layer_sweep(evidence: Evidence) -> Chart | None:
    """Mean AUROC of difference of means against layer."""
    rows = [row for row in evidence.rows("directions/layers") if row["method"] == BASELINE]
    rows.sort(key=lambda row: row["layer"])
    if len(rows) < 2:
        return None
    limits = draw.reach([1.0, *(row["low"] for row in rows)], around=0.5)
    return draw.lines(
        "directions-layers",
        "line",
        [Marks(draw.series("Difference of means", rows, "auroc_test", x="layer"), "direction")],
        x="Layer (0 = after the first block)",
        y="Mean AUROC",
        words="Line chart: mean AUROC of the directions within left-out topics at each layer that was read.",
        xaxis={"dtick": 1} if rows[-1]["layer"] < 13 else {},
        yaxis={"range": limits},
        shapes=[draw.rule("x", evidence.layer), draw.rule("y", 0.5)],
    )


@figure(
    "features",
    "match/concepts",
    heading="Which feature for which concept",
    caption="Best SAE feature of each concept (diamond, 95% interval), the best feature of random SAEs (upright line) "
    "and the direction (ring). " + STORIES,
)
def feature_dots(evidence: Evidence) -> Chart:
    """Per concept: best feature with interval, best random-SAE feature, and the direction."""
    rows = draw.ranked(evidence.rows("match/concepts"), "auroc_test")
    directions = evidence.by_concept("directions/concepts")
    both = [directions[row["concept"]] for row in rows if row["concept"] in directions]
    noise = draw.series("Best random-SAE feature", rows, "auroc_random_sae", spread=False)
    ring = {"line": {"width": 1.8, "color": "var(--direction)"}}
    marks = [
        Marks(noise, "control", "line-ns-open", 11, more={"line": {"width": 2.5, "color": "var(--control)"}}),
        Marks(draw.series("Direction", both, "auroc_test", spread=False), "direction", "circle-open", more=ring),
        Marks(draw.series("Best SAE feature", rows, "auroc_test"), "feature", "diamond"),
    ]
    words = "Dot plot: AUROC of each concept's best SAE feature with interval, beside random SAE and direction."
    return draw.dots("features-auroc", marks, _concepts(rows), title=AUROC, zero=0.5, words=words)


@figure("features", "match/concepts")
def features(evidence: Evidence) -> Table:
    """Per concept its feature, against random SAEs and against chance."""
    columns = [
        tables.text("Concept", "concept"),
        tables.Column("Feature", lambda row: index(row.get("feature")), "", "numeric", "feature"),
        tables.figure("AUROC", "auroc_test"),
        tables.span(),
        tables.figure("On choosing", "auroc_selection"),
        tables.figure("Random SAE", "auroc_random_sae"),
        tables.p("p, corrected", "p_adjusted", "Permutation within topics, maximum over all features; over concepts"),
        _words(evidence, "Tokens whose unembedding the decoder row points to most"),
    ]
    return table("features", "The best SAE feature of each concept", evidence.rows("match/concepts"), columns)


def index(feature: object) -> tables.Cell:
    """The number of a feature, without commas."""
    number = finite(feature)
    return tables.Cell(tables.MISSING if number is None else f"{number:.0f}", number)


@figure(
    "methods",
    "compare/detection",
    caption="All ways of detecting within the same left-out topics. Large marks are means with 95% t intervals over "
    'topics, small dots single concepts; the dashed line is chance. {{ "n = " ~ plural(len(evidence.concepts), '
    '"concept") ~ ", " ~ plural(len(evidence.tested), "topic") }}',
)
def method_dots(evidence: Evidence) -> Chart:
    """Every way of detecting, side by side: the mean with its interval, and the concepts behind it."""
    rows = draw.ranked(evidence.rows("compare/detection"), "mean")
    single = draw.series(
        "One concept", evidence.rows("compare/readouts"), "auroc", x="method", spread=False, note=lambda r: r["concept"]
    )
    colours = ["feature" if "SAE" in row["method"] else "direction" for row in rows]
    mean = draw.series("Mean and 95% interval", rows, "mean", x="method")
    return draw.dots(
        "methods-auroc",
        [Marks(single, "control", size=6, more={"opacity": 0.38}), Marks(mean, colours, size=11)],
        [row["method"] for row in rows],
        title=AUROC,
        zero=0.5,
        row=36,
        words="Dot plot: mean AUROC of each detection method with its interval, and of each concept behind it.",
    )


@figure("methods", "compare/detection")
def methods(evidence: Evidence) -> Table:
    """Per method its mean detection, beside difference of means."""
    columns = [
        tables.text("Method", "method"),
        tables.figure("Mean AUROC", "mean"),
        tables.span(),
        tables.figure("Difference", "difference", sign=True),
        tables.whole("Better", "concepts_better"),
        tables.whole("Worse", "concepts_worse"),
    ]
    return table("methods", "Detection within the same left-out topics", evidence.rows("compare/detection"), columns)


@figure(
    "methods",
    "compare/readouts",
    caption="Each diamond is a concept. Below the diagonal its best SAE feature loses to its direction, above it the "
    'direction loses. {{ "n = " ~ plural(len(evidence.paired()), "concept") }}',
    narrow=True,
)
def duel(evidence: Evidence) -> Chart:
    """Each concept's feature against its direction: below the diagonal the feature loses."""
    pairs = evidence.paired()
    left, bottom = (min([pair[side] for pair in pairs.values()] or [0.5]) - 0.03 for side in (0, 1))
    diagonal = {"x0": max(left, bottom), "y0": max(left, bottom), "x1": 1.02, "y1": 1.02}
    diagonal |= {"type": "line", "layer": "below", "line": {"color": "var(--soft)", "width": 1.2, "dash": "dash"}}
    named = [f"{concept}\ndirection {a:.3f}, feature {b:.3f}" for concept, (a, b) in pairs.items()]
    series = draw.Series("", [a for a, _ in pairs.values()], [b for _, b in pairs.values()], labels=named)
    return draw.points(
        "methods-duel",
        [Marks(series, "feature", "diamond", more={"opacity": 0.9})],
        x="AUROC of the direction",
        y="AUROC of the best SAE feature",
        words="Scatter plot: AUROC of direction and best SAE feature, one mark a concept.",
        height=480,
        wide=320,
        room=(75, 24),
        xaxis={"range": [left, 1.02]},
        yaxis={"range": [bottom, 1.04]},
        shapes=[diagonal],
    )


def _concepts(rows: list[Row]) -> list[str]:
    return [row["concept"] for row in rows]


@findings
def reading(evidence: Evidence) -> Iterator[Finding]:
    """Whether directions read their concepts, with more than words; whether trained features do; which of both wins."""
    figure, tally = evidence.metric("directions", "auroc_test"), evidence.read_by_direction
    rows = draw.ranked([row for row in evidence.rows("directions/concepts") if finite(row["auroc_test"])], "auroc_test")
    yield Finding(
        "directions",
        "Directions read the concepts",
        say(
            """Built without a topic and read within it, difference-of-means directions rank the stories of their own
            concept above those of the other concepts with a mean AUROC of {{ figure | figure }} over
            {{ plural(len(evidence.tested), "topic") }} ({{ plural(len(evidence.concepts), "concept") }},
            {{ plural(evidence.stories, "story", "stories") }}; 0.5 is chance, 1 is perfect).""",
            evidence=evidence,
            figure=figure,
        ),
        standing(tally) if (figure[1] or 0) > 0.5 else "not shown",
        say(
            """{% if rows %}The strongest is {{ rows[0].concept }} with {{ rows[0].auroc_test | number }}, the weakest
            {{ rows[-1].concept }} with {{ rows[-1].auroc_test | number }}.
            {{ counted(tally, "an AUROC above chance at a corrected 5%") }}{% endif %}""",
            rows=rows,
            tally=tally,
        ),
    )
    yield vocabulary(evidence)
    yield trained(evidence)
    yield comparison(evidence)


def vocabulary(evidence: Evidence) -> Finding:
    """Whether reading stories needs more than their words."""
    title, own = "Directions read more than vocabulary", evidence.method(BASELINE)
    detection = evidence.rows("compare/detection")
    lowest = next((row for row in detection if row["method"].startswith(f"{BASELINE}, layer ")), {})
    names = {"TF-IDF": "word counts (TF-IDF)", lowest.get("method"): f"directions at {lowest.get('method', '')[21:]}"}
    rivals = [(names[row["method"]], row) for row in detection if row["method"] in names and finite(row["mean"])]
    if not rivals or finite(own.get("mean")) is None:
        return Finding("methods", title, "The word-level baselines are not shown.")
    ceiling = max(row["high"] or row["mean"] for _, row in rivals)
    clear = (own["low"] or own["mean"]) > ceiling
    text = say(
        """With little or no context, {% for name, row in rivals %}{{ " and " if not loop.first }}{{ name }} reach
        {{ (row.mean, row.low, row.high) | figure }}{% endfor %}; directions at layer {{ layer }} reach
        {{ (own.mean, own.low, own.high) | figure }}: {{ "directions read more than the vocabulary" if clear else
        "the intervals overlap, so reading these stories alone does not show more than vocabulary" }}.""",
        rivals=rivals,
        own=own,
        layer=evidence.layer,
        clear=clear,
    )
    return Finding("methods", title, text, "shown" if clear else "not shown")


def trained(evidence: Evidence) -> Finding:
    """Whether single SAE features match concepts, and better than those of a random SAE."""
    gap, tally = evidence.metric("match", "difference"), evidence.read_by_feature
    better, worse = gap[1] is not None and gap[1] > 0, gap[2] is not None and gap[2] < 0
    text = say(
        """The best SAE feature of each concept, chosen on the other topics, has a mean AUROC of {{ best | figure }};
        the best of a random SAE of the same shape has {{ noise | figure }}. The difference is
        {{ gap | figure(sign=True) }}: {{ "the trained SAE is better" if better else
        "the trained SAE loses to a random one" if worse else "that training helps is not shown" }}.
        {{ counted(tally, "a matching feature at a corrected " ~ level ~ " that reads better than a random SAE's")
        }}""",
        best=evidence.metric("match", "best_feature_auroc"),
        noise=evidence.metric("match", "random_sae_auroc"),
        **{"gap": gap, "better": better, "worse": worse, "tally": tally, "level": f"{SIGNIFICANT:.0%}"},
    )
    title = "Trained features match concepts better than random ones"
    return Finding("features", title, text, standing(tally) if better else "not shown")


def comparison(evidence: Evidence) -> Finding:
    """Which of the two reads better, by the paired difference, and that the other one loses."""
    pairs, row = evidence.paired(), evidence.method(FEATURE)
    if not pairs:
        return Finding("methods", "Features against directions", "The comparison of both is not shown.")
    lost = sorted((c for c, (a, b) in pairs.items() if b < a), key=lambda c: pairs[c][1] - pairs[c][0])
    won = sorted((c for c, (a, b) in pairs.items() if b > a), key=lambda c: pairs[c][0] - pairs[c][1])
    means = [fmean(pair[side] for pair in pairs.values()) for side in (0, 1)]
    low, high = finite(row.get("difference_low")), finite(row.get("difference_high"))
    clear = (low is not None and low > 0) or (high is not None and high < 0)
    title = "SAE features and difference of means draw"
    if means[0] != means[1]:
        sides = ("SAE features", "differences of means")[:: 1 if means[0] > means[1] else -1]
        title = f"{sides[0][0].upper()}{sides[0][1:]} lose to {sides[1]}"
    text = say(
        """As detectors, single SAE features lose to difference of means for {{ len(lost) }} of
        {{ plural(len(pairs), "concept") }} (mean AUROC {{ means[1] | number }} against {{ means[0] | number }};
        difference {{ (row.get("difference"), low, high) | figure(sign=True) }}).
        {% if lost %}The widest loss is {{ lost[0] }} ({{ pairs[lost[0]][1] | number }} against
        {{ pairs[lost[0]][0] | number }}).{% endif %}
        Difference of means loses to the feature for: {{ won | names }}.
        {% if tied %}Both are equal for: {{ tied | names }}.{% endif %}""",
        tied=[c for c, (a, b) in pairs.items() if a == b],
        **{"lost": lost, "won": won, "pairs": pairs, "means": means, "row": row, "low": low, "high": high},
    )
    badge: Standing = "not shown" if not clear else "partly shown" if lost and won else "shown"
    more = say("Features lose for: {{ lost | names(len(lost)) }}.", lost=lost)
    return Finding("methods", title, text, badge, more)
