"""What directions are made of: decoder rows that add up to them, and the angles between both subspaces."""

from __future__ import annotations

from affectlens.report import marks
from affectlens.report.evidence import Evidence, Row
from affectlens.report.finding import Finding
from affectlens.report.marks import Chart
from affectlens.report.numbers import NOT_SHOWN, finite, percent, plural

DECODER = "SAE decoder"
COLOURS = {DECODER: "feature", "random": "control", "covariance-matched": "ink"}
DASHES = {"random": "dot", "covariance-matched": "dash"}


def pursuit_lines(evidence: Evidence) -> Chart:
    """Explained share of the directions against the number of dictionary rows, beside random dictionaries."""
    traces = []
    for dictionary in dict.fromkeys(row["dictionary"] for row in evidence.pursuit):
        rows = _of(evidence, dictionary)
        line = marks.line(
            "SAE decoder rows" if dictionary == DECODER else f"{dictionary} rows".capitalize(),
            [row["rows"] for row in rows],
            [row["explained"] for row in rows],
            COLOURS.get(dictionary, "control"),
        )
        line["line"]["dash"] = DASHES.get(dictionary, "solid")
        traces.append(line)
    layout = marks.layout(
        xaxis=marks.axis("Rows of the dictionary that may be used"),
        yaxis=marks.axis("Share of the direction explained", range=[0, 1]),
    )
    layout["margin"]["t"] = 40
    words = "Line chart: share of the directions that so many dictionary rows explain, SAE beside random dictionaries."
    return marks.chart("makeup-pursuit", traces, layout, 340, words)


def angle_dots(evidence: Evidence) -> Chart:
    """Cosines of the principal angles between the directions' subspace and that of the chosen features."""
    cosines = list(evidence.subspace.get("cosines", []))
    places = list(range(1, len(cosines) + 1))
    line = marks.line("Directions and chosen features", places, cosines, "direction")
    layout = marks.layout(xaxis=marks.axis("Principal angle"), yaxis=marks.axis("Its cosine", range=[0, 1.02]))
    words = "Line chart: cosines of the principal angles between directions and chosen SAE features."
    return marks.chart("makeup-angles", [line], layout, 300, words)


def finding(evidence: Evidence) -> Finding:
    """Whether a few decoder rows make up a direction better than rows drawn at random."""
    title = "Are directions made of few features"
    sizes = [row["rows"] for row in _of(evidence, DECODER)]
    at = {
        name: {row["rows"]: finite(row["explained"]) for row in _of(evidence, name)}
        for name in dict.fromkeys(row["dictionary"] for row in evidence.pursuit)
    }
    if not sizes or at[DECODER][sizes[-1]] is None:
        return Finding("makeup", title, f"How directions are made up is {NOT_SHOWN}.", "not shown")
    size = sizes[-1]
    rivals = {name: share[size] for name, share in at.items() if name != DECODER and share.get(size) is not None}
    said = ", ".join(f"{percent(share)} by {name} rows" for name, share in rivals.items())
    best = max((share for share in rivals.values() if share is not None), default=0.0)
    own = at[DECODER][size] or 0.0
    verdict = (
        "decoder rows make up directions better than any random dictionary"
        if own > best
        else "a random dictionary with the covariance of the activations does better, so that few features add up to a "
        "direction says little about features"
    )
    text = (
        f"With {plural(size, 'row')} orthogonal matching pursuit makes up {percent(own)} of a direction from the SAE's "
        f"decoder, {said}: {verdict}."
    )
    share, null = evidence.subspace.get("share"), evidence.subspace.get("null_95")
    more = ""
    if finite(share) is not None:
        more = (
            f"The subspace of the chosen features holds {percent(share)} of the directions' subspace; as many features "
            f"drawn at random hold at most {percent(null)} in 95% of the draws."
        )
    standing = "shown" if own > best else "partly shown" if own > (rivals.get("random") or 0.0) else "not shown"
    return Finding("makeup", title, text, standing, more)


def _of(evidence: Evidence, dictionary: str) -> list[Row]:
    return sorted((row for row in evidence.pursuit if row["dictionary"] == dictionary), key=lambda row: row["rows"])
