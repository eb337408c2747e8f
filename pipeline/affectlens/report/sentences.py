"""The findings in plain words, generated from the numbers: what is shown, what loses, and what is not shown."""

from __future__ import annotations

from collections.abc import Sequence

from affectlens.report import makeup, meaning, shape
from affectlens.report.evidence import BASELINE, OPERATIONS, SIGNIFICANT, VECTORS, Evidence, Row, Tally
from affectlens.report.finding import Finding, Standing
from affectlens.report.numbers import NOT_SHOWN, estimate, finite, general, names, number, p_value, percent, plural


def findings(evidence: Evidence) -> list[Finding]:
    """All findings in the order of the page; one whose numbers are missing says so."""
    return [
        directions(evidence),
        vocabulary(evidence),
        health(evidence),
        features(evidence),
        comparison(evidence),
        agreement(evidence),
        makeup.finding(evidence),
        *meaning.findings(evidence),
        geometry(evidence),
        shape.finding(evidence),
        *(causal(evidence, operation) for operation in OPERATIONS),
    ]


def directions(evidence: Evidence) -> Finding:
    """Whether directions read their concepts on topics that built nothing."""
    value, low, high = evidence.figure("directions", "auroc_test")
    topics = plural(len(evidence.topics("test")), "topic")
    text = (
        f"On {topics} that built nothing, difference-of-means directions rank the stories of their own concept above "
        f"those of the other concepts with a mean AUROC of {estimate(value, low, high)} "
        f"({plural(len(evidence.concepts), 'concept')}, {plural(evidence.splits['test'], 'story', 'stories')}; "
        "0.5 is chance, 1 is perfect)."
    )
    more = ""
    ranked = sorted((row for row in evidence.directions if finite(row["auroc_test"]) is not None), key=_auroc)
    if ranked:
        best, worst = (f"{row['concept']} with {number(row['auroc_test'])}" for row in (ranked[-1], ranked[0]))
        more = f"The strongest is {best}, the weakest {worst}. "
        more += _counted(evidence.read_by_direction, "an interval above chance")
    standing = _above(low, 0.5, evidence.read_by_direction)
    return Finding("directions", "Directions read the concepts", text, standing, more)


def vocabulary(evidence: Evidence) -> Finding:
    """Whether reading stories needs more than their words."""
    method = evidence.method(BASELINE)
    lowest = evidence.lowest_layer
    rivals = [
        (label, row)
        for label, row in (
            ("word counts (TF-IDF)", evidence.method("TF-IDF")),
            (f"directions at{lowest.get('method', '').removeprefix(BASELINE).lstrip(',')}", lowest),
        )
        if finite(row.get("mean")) is not None
    ]
    if not rivals or finite(method.get("mean")) is None:
        return Finding("methods", "How much is vocabulary", f"The word-level baselines are {NOT_SHOWN}.", "not shown")
    each = " and ".join(f"{label} reach {_of(row)}" for label, row in rivals)
    ceiling = max(_end(row, "high") for _, row in rivals)
    clear = _end(method, "low") > ceiling
    verdict = (
        "directions read more than the vocabulary"
        if clear
        else "the intervals overlap, so reading these stories alone does not show more than vocabulary"
    )
    text = f"With little or no context, {each}; directions at layer {evidence.layer} reach {_of(method)}: {verdict}."
    return Finding("methods", "How much is vocabulary", text, "shown" if clear else "not shown")


def features(evidence: Evidence) -> Finding:
    """Whether single SAE features match concepts, and better than those of a random SAE."""
    best = evidence.figure("match", "best_feature_auroc")
    noise = evidence.figure("match", "random_sae_auroc")
    gap = evidence.figure("match", "difference")
    tally = evidence.read_by_feature
    better = gap[1] is not None and gap[1] > 0
    worse = gap[2] is not None and gap[2] < 0
    verdict = (
        "the trained SAE is better"
        if better
        else "the trained SAE loses to a random one"
        if worse
        else "that training helps is not shown"
    )
    text = (
        f"The best SAE feature of each concept, chosen on other topics, has a mean AUROC of {estimate(*best)}; "
        f"the best of a random SAE of the same shape has {estimate(*noise)}. The difference is "
        f"{estimate(*gap, sign=True)}: {verdict}. "
        + _counted(tally, f"a matching feature at a corrected {SIGNIFICANT:.0%}")
    )
    floors = [floor for row in evidence.match if (floor := finite(row.get("p_floor"))) is not None]
    more = f"The least p that the permutations allow is {p_value(max(floors))}." if floors else ""
    standing = "not shown" if not better else "shown" if not tally.missing else "partly shown"
    return Finding("features", "Single SAE features match concepts", text, standing, more)


def health(evidence: Evidence) -> Finding:
    """Whether the SAE is good enough for a weak result to mean something."""
    figures, random = evidence.health, evidence.health.get("random", {})
    dead = finite(figures.get("dead_share"))
    variance, noise = finite(figures.get("explained_variance")), finite(random.get("explained_variance"))
    if dead is None or variance is None:
        return Finding("features", "Health of the SAE", f"The health of the SAE is {NOT_SHOWN}.", "not shown")
    text = (
        f"It explains {percent(variance)} of the variance of held-out tokens (a random SAE: {percent(noise)}) with "
        f"{general(figures.get('l0'))} active features per token; {percent(dead)} of the features are dead."
    )
    verdict = figures.get("verdict", "sound")
    if verdict == "sound":
        return Finding("features", "The SAE is sound", text, "shown")
    advice = (
        "bad: do not read its features as evidence" if verdict == "bad" else "weak: a missing feature may be its fault"
    )
    text += f" This SAE is {advice[verdict]}, because {' and '.join(fault['text'] for fault in figures['faults'])}."
    return Finding("features", f"The SAE is {verdict}", text, "not shown" if verdict == "bad" else "partly shown")


def comparison(evidence: Evidence) -> Finding:
    """Which of the two reads better, and that the other one loses."""
    pairs = evidence.paired_detection()
    means = evidence.paired_means()
    if not pairs or means is None:
        return Finding("methods", "Features against directions", f"The comparison of both is {NOT_SHOWN}.", "not shown")
    lost = sorted((c for c, (a, b) in pairs.items() if b < a), key=lambda c: pairs[c][1] - pairs[c][0])
    won = sorted((c for c, (a, b) in pairs.items() if b > a), key=lambda c: pairs[c][0] - pairs[c][1])
    tied = [concept for concept, (a, b) in pairs.items() if a == b]
    direction_wins = means[0] >= means[1]
    title = (
        "SAE features lose to difference of means" if direction_wins else "Difference of means loses to SAE features"
    )
    if means[0] == means[1]:
        title = "SAE features and difference of means draw"
    text = (
        f"As detectors, single SAE features lose to difference of means for {len(lost)} of "
        f"{plural(len(pairs), 'concept')} (mean AUROC {number(means[1])} against {number(means[0])}). "
    )
    if lost:
        worst = lost[0]
        text += f"The widest loss is {worst} ({number(pairs[worst][1])} against {number(pairs[worst][0])}). "
    text += f"Difference of means loses to the feature for: {names(won)}."
    if tied:
        text += f" Both are equal for: {names(tied)}."
    more = f"Features lose for: {names(lost, len(lost))}."
    return Finding("methods", title, text, "shown" if not (lost and won) else "partly shown", more)


def agreement(evidence: Evidence) -> Finding:
    """Whether the feature that matches a concept points where its direction points."""
    tally = evidence.agreeing
    text = (
        f"The cosine between a concept's best feature (decoder row) and its direction has a median of "
        f"{number(evidence.median_cosine())}. {_counted(tally, 'a cosine above 95% of its null')}"
    )
    return Finding("agreement", "Do features and directions agree", text, _standing(tally))


def geometry(evidence: Evidence) -> Finding:
    """Whether the main axes of the concept space go with valence and arousal."""
    parts, clear = [], []
    for component, rating in ((1, "valence"), (2, "arousal")):
        row = evidence.correlation(component, rating)
        r, low, high = (finite(row.get(key)) for key in ("r", "low", "high"))
        if r is None:
            parts.append(f"for component {component} and {rating} it is {NOT_SHOWN}")
            clear.append(False)
            continue
        excludes = low is not None and high is not None and (low > 0 or high < 0)
        clear.append(excludes)
        parts.append(
            f"component {component} goes with {rating} at r = {estimate(r, low, high)} (n = {row.get('n', 0)} concepts)"
            + ("" if excludes else ", an interval that holds 0: not shown")
        )
    text = f"In the space of directions, {'; '.join(parts)}. The sign of a component is arbitrary."
    standing: Standing = "shown" if all(clear) else "partly shown" if any(clear) else "not shown"
    return Finding("geometry", "Valence and arousal", text, standing)


def causal(evidence: Evidence, operation: str) -> Finding:
    """For how many concepts an intervention does more than every control, and for which it does not."""
    tallies = {vector: evidence.tally_effect(vector, operation) for vector in VECTORS}
    verb, effect = ("injecting", "raises") if operation == "inject" else ("ablating", "lowers")
    said = {
        "direction": f"{verb} the direction {effect} the concept's own words, against those of the other "
        "concepts, more than every control does",
        "feature": f"{verb} the best SAE feature does so",
    }
    text = " ".join(
        f"{_for_how_many(tally)} {said[vector]}."
        + (f" Not shown for: {names(tally.missing)}." if tally.missing else "")
        + (f" Not measured for: {names(tally.unknown)}." if tally.unknown and tally.total else "")
        for vector, tally in tallies.items()
    )
    direction, feature = tallies["direction"], tallies["feature"]
    text += _loser(direction, feature)
    both = Tally([*direction.shown, *feature.shown], [*direction.missing, *feature.missing])
    return Finding("causal", f"What {verb} does", text, _standing(both), _strict(evidence, operation))


def _strict(evidence: Evidence, operation: str) -> str:
    """By the criteria of the verdicts, which ask for more than to exceed the controls."""
    claims = ("sufficient", "specific") if operation == "inject" else ("necessary",)
    parts = []
    for vector in VECTORS:
        tallies = [(claim, evidence.tally_verdict(vector, claim)) for claim in claims]
        counted = [f"{claim} for {len(tally.shown)} of {tally.total}" for claim, tally in tallies if tally.total]
        if counted:
            parts.append(f"the {vector} is {' and '.join(counted)}")
    if not parts:
        return ""
    rule = (
        "corrected p, interval above 0, fluent neutral text; for specific, also hardly any other concept's vector does "
        "as much and the effect exceeds that on words of like valence"
        if operation == "inject"
        else "corrected p, interval above 0, stories that do evoke the words"
    )
    return f"By the stricter rule of the verdicts ({rule}), {' and '.join(parts)} concepts."


def controls(evidence: Evidence) -> str:
    """What stands against the studied vectors, and how small a p it allows."""
    found = evidence.controls
    families = [f"{size:,} {name.replace('_', ' ')}" for name, size in found.get("families", {}).items()]
    if not families:
        return ""
    floors = [f"{vector} {p_value(each['p_floor'])}" for vector, each in found.get("inject", {}).items()]
    if "ablate" in found:
        floors.append(f"ablation {p_value(found['ablate']['p_floor'])}")
    note = f" {found['note']}" if found.get("note") else ""
    return f"Controls: {names(families)} vectors.{note} The least p they allow: {', '.join(floors)}."


def _loser(direction: Tally, feature: Tally) -> str:
    """The sentence that says which of the two does less; empty when either was not measured."""
    if not direction.total or not feature.total:
        return ""
    a, b = len(direction.shown) / direction.total, len(feature.shown) / feature.total
    if a == b:
        return " Neither of the two does more."
    return " Here SAE features lose to directions." if a > b else " Here directions lose to SAE features."


def _counted(tally: Tally, what: str) -> str:
    if not tally.total:
        return f"Which concepts have {what} is {NOT_SHOWN}."
    verb = "has" if len(tally.shown) == 1 else "have"
    text = f"{len(tally.shown)} of {plural(tally.total, 'concept')} {verb} {what}."
    return text + (f" Not shown for: {names(tally.missing)}." if tally.missing else "")


def _for_how_many(tally: Tally) -> str:
    if not tally.total:
        return f"For how many concepts is {NOT_SHOWN}:"
    return f"For {len(tally.shown)} of {plural(tally.total, 'concept')}"


def _standing(tally: Tally) -> Standing:
    if not tally.shown:
        return "not shown"
    return "partly shown" if tally.missing or tally.unknown else "shown"


def _above(low: float | None, chance: float, tally: Tally) -> Standing:
    if low is None or low <= chance:
        return "not shown"
    return "partly shown" if tally.missing else "shown"


def _of(row: Row) -> str:
    return estimate(row.get("mean"), row.get("low"), row.get("high"))


def _end(row: Row, end: str) -> float:
    """An end of the interval, or the mean where there is none."""
    found = finite(row.get(end))
    return found if found is not None else float(row["mean"])


def _auroc(row: Row) -> float:
    return float(row["auroc_test"])


def not_shown(evidence: Evidence) -> Sequence[tuple[str, Sequence[str]]]:
    """Per intervention the concepts for which an effect beyond the controls is not shown."""
    found = []
    for operation in OPERATIONS:
        for vector in VECTORS:
            tally = evidence.tally_effect(vector, operation)
            found.append((f"{operation} {vector}", [*tally.missing, *tally.unknown]))
    return found
