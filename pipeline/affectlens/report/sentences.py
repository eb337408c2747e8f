"""The findings in plain words, generated from the numbers: what is shown, what loses, and what is not shown."""

from __future__ import annotations

from collections.abc import Sequence

from affectlens.report import makeup, meaning, shape
from affectlens.report.evidence import BASELINE, FEATURE, OPERATIONS, SIGNIFICANT, VECTORS, Evidence, Row, Tally
from affectlens.report.finding import Finding, Standing, standing
from affectlens.report.numbers import NOT_SHOWN, estimate, finite, general, names, number, p_value, percent, plural

LOSERS = {True: "SAE features", False: "Differences of means"}
EXPECTED_ABOVE_95 = 0.05
"""Share of cosines above 95% of their null where features and directions have nothing in common."""


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
        *(causal(evidence, vector, operation) for operation in OPERATIONS for vector in VECTORS),
    ]


def directions(evidence: Evidence) -> Finding:
    """Whether directions read their concepts on topics that built nothing."""
    value, low, high = evidence.figure("directions", "auroc_test")
    text = (
        f"Built without a topic and read within it, difference-of-means directions rank the stories of their own "
        f"concept above those of the other concepts with a mean AUROC of {estimate(value, low, high)} over "
        f"{plural(len(evidence.tested), 'topic')} ({plural(len(evidence.concepts), 'concept')}, "
        f"{plural(evidence.stories, 'story', 'stories')}; 0.5 is chance, 1 is perfect)."
    )
    more = ""
    ranked = sorted((row for row in evidence.directions if finite(row["auroc_test"]) is not None), key=_auroc)
    if ranked:
        best, worst = (f"{row['concept']} with {number(row['auroc_test'])}" for row in (ranked[-1], ranked[0]))
        more = f"The strongest is {best}, the weakest {worst}. "
        more += _counted(evidence.read_by_direction, "an AUROC above chance at a corrected 5%")
    badge: Standing = "not shown" if low is None or low <= 0.5 else standing(evidence.read_by_direction)
    return Finding("directions", "Directions read the concepts", text, badge, more)


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
        return Finding(
            "methods", "Directions read more than vocabulary", f"The word-level baselines are {NOT_SHOWN}.", "not shown"
        )
    each = " and ".join(f"{label} reach {_of(row)}" for label, row in rivals)
    ceiling = max(_end(row, "high") for _, row in rivals)
    clear = _end(method, "low") > ceiling
    verdict = (
        "directions read more than the vocabulary"
        if clear
        else "the intervals overlap, so reading these stories alone does not show more than vocabulary"
    )
    text = f"With little or no context, {each}; directions at layer {evidence.layer} reach {_of(method)}: {verdict}."
    return Finding("methods", "Directions read more than vocabulary", text, "shown" if clear else "not shown")


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
        f"The best SAE feature of each concept, chosen on the other topics, has a mean AUROC of {estimate(*best)}; "
        f"the best of a random SAE of the same shape has {estimate(*noise)}. The difference is "
        f"{estimate(*gap, sign=True)}: {verdict}. "
        + _counted(tally, f"a matching feature at a corrected {SIGNIFICANT:.0%} that reads better than a random SAE's")
    )
    floors = [floor for row in evidence.match if (floor := finite(row.get("p_floor"))) is not None]
    more = f"The least p that the permutations allow is {p_value(max(floors))}." if floors else ""
    badge: Standing = standing(tally) if better else "not shown"
    return Finding("features", "Trained features match concepts better than random ones", text, badge, more)


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
    text += f" This SAE is {advice}, because {' and '.join(fault['text'] for fault in figures['faults'])}."
    return Finding("features", f"The SAE is {verdict}", text, "not shown" if verdict == "bad" else "partly shown")


def comparison(evidence: Evidence) -> Finding:
    """Which of the two reads better, by the paired difference, and that the other one loses."""
    pairs, means, row = evidence.paired_detection(), evidence.paired_means(), evidence.method(FEATURE)
    if not pairs or means is None:
        return Finding("methods", "Features against directions", f"The comparison of both is {NOT_SHOWN}.", "not shown")
    lost = sorted((c for c, (a, b) in pairs.items() if b < a), key=lambda c: pairs[c][1] - pairs[c][0])
    won = sorted((c for c, (a, b) in pairs.items() if b > a), key=lambda c: pairs[c][0] - pairs[c][1])
    tied = [concept for concept, (a, b) in pairs.items() if a == b]
    low, high = finite(row.get("difference_low")), finite(row.get("difference_high"))
    clear = (low is not None and low > 0) or (high is not None and high < 0)
    title = "SAE features and difference of means draw"
    if means[0] != means[1]:
        loses = means[0] > means[1]
        title = f"{LOSERS[loses]} lose to {LOSERS[not loses].lower().replace('sae', 'SAE')}"
    text = (
        f"As detectors, single SAE features lose to difference of means for {len(lost)} of "
        f"{plural(len(pairs), 'concept')} (mean AUROC {number(means[1])} against {number(means[0])}; difference "
        f"{estimate(row.get('difference'), low, high, sign=True)}). "
    )
    if lost:
        worst = lost[0]
        text += f"The widest loss is {worst} ({number(pairs[worst][1])} against {number(pairs[worst][0])}). "
    text += f"Difference of means loses to the feature for: {names(won)}."
    if tied:
        text += f" Both are equal for: {names(tied)}."
    more = f"Features lose for: {names(lost, len(lost))}."
    badge: Standing = "not shown" if not clear else "partly shown" if lost and won else "shown"
    return Finding("methods", title, text, badge, more)


def agreement(evidence: Evidence) -> Finding:
    """Whether the feature that matches a concept points where its direction points."""
    tally = evidence.agreeing
    text = (
        f"The cosine between a concept's best feature (decoder row) and its direction has a median of "
        f"{number(evidence.median_cosine())}. {_counted(tally, 'a cosine above 95% of its null')} "
        f"By chance {number(EXPECTED_ABOVE_95 * tally.total, 1)} would."
    )
    badge = standing(tally, level=EXPECTED_ABOVE_95)
    return Finding("agreement", "Features point where directions point", text, badge)


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
    badge: Standing = "shown" if all(clear) else "partly shown" if any(clear) else "not shown"
    return Finding("geometry", "Components go with valence and arousal", text, badge)


def causal(evidence: Evidence, vector: str, operation: str) -> Finding:
    """For how many concepts an intervention is shown by the verdicts' rule, and for which it is not.

    The badge of injections comes from the permutation test of all vectors together where the study has it: concepts
    share controls and sentences, so that their own tests are not independent.
    """
    tally = evidence.tally_effect(vector, operation)
    title, verb, effect = {
        ("direction", "inject"): ("Injecting directions raises their concepts' words", "injecting it", "raises"),
        ("feature", "inject"): ("Injecting SAE features raises their concepts' words", "injecting it", "raises"),
        ("direction", "ablate"): ("Taking directions out lowers their concepts' words", "taking it out", "lowers"),
        ("feature", "ablate"): ("Taking SAE features out lowers their concepts' words", "taking it out", "lowers"),
    }[vector, operation]
    name = "direction" if vector == "direction" else "best SAE feature"
    if not tally.total:
        return Finding("causal", title, f"For how many concepts it does is {NOT_SHOWN}.", "not shown")
    text = (
        f"For {len(tally.shown)} of {plural(tally.total, 'concept')} the {name} passes: {verb} {effect} the concept's "
        f"own words, against those of the other concepts, beyond every family of controls at a corrected "
        f"{SIGNIFICANT:.0%}."
    )
    if tally.missing:
        text += f" Not shown for: {names(tally.missing)}."
    if tally.unknown:
        text += f" Not testable for: {names(tally.unknown)}."
    if operation == "ablate":
        return Finding("causal", title, text, standing(tally), _weaker(tally))
    p = evidence.figure("causal", f"diagonal_p_{vector}")[0]
    if p is not None:
        text += f" All vectors together: p = {p_value(p)} with the labels permuted among them."
    specific = evidence.tally_verdict(vector, "specific")
    more = (
        f"Specific for {len(specific.shown)} of {specific.total}: hardly any other concept's vector does as much, and "
        "the effect exceeds that on words of like valence. "
    )
    for key, said in (("", "move the words more than every control vector"), (
        "_at_equal_divergence", "do so when all vectors move the next token equally far (equal KL)"
    )):  # fmt: skip
        share = evidence.figure("causal", f"share_above_controls{key}_{vector}")[0]
        wrong = evidence.figure("causal", f"above_controls{key}_expected_{vector}")[0]
        if share is not None:
            more += f"{percent(share)} {said}; {percent(wrong)} would under the labels of other concepts. "
    return Finding("causal", title, text, standing(tally, p=p), more + _weaker(tally))


def _weaker(tally: Tally) -> str:
    return f"More than every control, but not shown by the whole rule: {names(tally.weak)}." if tally.weak else ""


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


def _counted(tally: Tally, what: str) -> str:
    if not tally.total:
        return f"Which concepts have {what} is {NOT_SHOWN}."
    verb = "has" if len(tally.shown) == 1 else "have"
    text = f"{len(tally.shown)} of {plural(tally.total, 'concept')} {verb} {what}."
    return text + (f" Not shown for: {names(tally.missing)}." if tally.missing else "")


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
