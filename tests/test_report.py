"""The page of a study: the same bytes every time, honest sentences, nothing from outside, legible everywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from affectlens import results
from affectlens.interventions import tables as causal_tables
from affectlens.probing import comparison, directions, geometry_tables, match, writers
from affectlens.report import cards, draw, palette, tables
from affectlens.report.evidence import OPERATIONS, VECTORS, Evidence, Provenance, Rows, Tally
from affectlens.report.registry import FINDINGS, ITEMS, figure, finding, standing
from affectlens.report.render import SECTIONS, render
from affectlens.report.sections import behaviour, causal
from affectlens.report.sentences import Finding, conclusions
from affectlens.results import format as numbers
from affectlens.results.figures import VERDICT_WORDS
from affectlens.stages.corpus import QUALITY
from affectlens.stages.report import ReportStage

from tests.browser import browser, visit

NAN = math.nan
CONCEPTS = ("afraid", "calm", "proud", "sad", "tired")
EVIL = "</script><img src=x onerror=alert(1)><b>bold</b> {{ 7 * 7 }}"
METHODS = {
    "difference of means": 0.95,
    "LDA (shrunk)": 0.94,
    "logistic": 0.93,
    "best SAE feature": 0.75,
    "best random-SAE feature": 0.62,
    "TF-IDF": 0.92,
    "difference of means, layer 0": 0.85,
}


@dataclass(frozen=True)
class Text:
    emotion: str
    topic: str
    split: str
    kind: str
    text: str


def documents(concepts: tuple[str, ...]) -> tuple[Any, ...]:
    splits = {"train": "train", "garden": "validation", "exam": "test", "phone": "test"}
    stories = [Text(c, t, s, "story", f"A story of {t}.") for c in concepts for t, s in splits.items()]
    return (*stories, *(Text("", "", "neutral", "code", "x = 1") for _ in range(3)))


def effects(concepts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Directions act on all but the last concept; features on the first alone; nothing is found by ablating."""
    rows = []
    for index, concept in enumerate(concepts):
        for vector in VECTORS:
            for operation in OPERATIONS:
                acts = operation == "inject" and (index < len(concepts) - 1 if vector == "direction" else index == 0)
                effect = 2.0 if acts else 0.3
                rows.append(
                    {"concept": concept, "vector": vector, "operation": operation, "effect": effect}
                    | {"strength": 0.1 if operation == "inject" else 1.0, "low": effect - 0.2, "high": effect + 0.2}
                    | {"control_mean": 0.05, "control_max": 0.9, "above_controls": acts, "hardest_family": "isotropic"}
                    | {"p": 1 / 61 if acts else 0.4, "p_adjusted": 2 / 61 if acts else 0.5, "p_floor": 1 / 61}
                )
    return rows


def verdicts(concepts: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the effects are worth by all criteria; the necessity of features could not be tested."""
    return [
        {
            "concept": row["concept"],
            "vector": row["vector"],
            "words": "Sufficient.",
            "sufficient": row["above_controls"],
        }
        | {"specific": False, "necessary": False if row["vector"] == "direction" else None}
        for row in effects(concepts)
        if row["operation"] == "inject"
    ]


DECLARED = {
    "corpus/quality": QUALITY,
    "directions/concepts": directions.CONCEPTS,
    "directions/layers": directions.LAYERS,
    "match/concepts": match.CONCEPTS,
    "match/contexts": match.CONTEXTS,
    "compare/cosines": comparison.COSINES,
    "compare/detection": comparison.DETECTION,
    "compare/readouts": comparison.READOUTS,
    "compare/confounds": comparison.CONFOUNDS,
    "compare/explained": comparison.EXPLAINED,
    "compare/angles": comparison.ANGLES,
    "compare/pairs": comparison.PAIRS,
    "writers/methods": writers.METHODS,
    "writers/transfer": writers.TRANSFER,
    **{f"geometry/{table.name}": table for table in geometry_tables.ALL},
    **{f"causal/{table.name}": table for table in causal_tables.TABLES},
}


def declared(name: str, rows: list[dict[str, Any]]) -> Rows:
    """Rows with every declared column of a table and no other."""
    columns = [column.name for column in DECLARED[name].columns]
    assert {key for row in rows for key in row} <= set(columns), name
    made = Rows({column: row.get(column) for column in columns} for row in rows)
    made.declared = DECLARED[name]
    return made


def study(concepts: tuple[str, ...] = CONCEPTS, story: str = "She waited.") -> Evidence:
    """Evidence in which directions read better than features, and act on more concepts."""
    context = {"before": "before ", "token": "tok", "after": " after", "document": 0, "emotion": concepts[0]}
    texts = documents(concepts)
    per = {method: {c: mean - 0.01 * i for i, c in enumerate(concepts)} for method, mean in METHODS.items()}
    per["best SAE feature"][concepts[1]] = 0.99
    tables = {
        "directions/concepts": [
            {
                "concept": c,
                "auroc_test": 0.95 - 0.01 * i,
                "low": 0.9 - 0.01 * i,
                "high": 0.99,
                "p": 1e-6,
                "words": "dread it",
            }
            | {"neutral_energy": 0.2}
            for i, c in enumerate(concepts)
        ],
        "directions/layers": [
            {"layer": layer, "method": "difference of means", "auroc_test": 0.8 + layer / 20, "low": 0.75, "high": 0.97}
            for layer in (0, 2)
        ],
        "match/concepts": [
            {"concept": c, "feature": 7 * i, "auroc_selection": 0.9, "auroc_test": per["best SAE feature"][c]}
            | {"low": 0.6, "high": 0.995, "auroc_random_sae": 0.62, "p": 0.001, "p_adjusted": 0.002 if i else 0.3}
            | {"words": "fear"}
            for i, c in enumerate(concepts)
        ],
        "match/contexts": [{"concept": c, "value": value, **context} for c in concepts for value in (3.0, 1.5)],
        "compare/cosines": [
            {"concept": c, "feature": 7 * i, "cosine": 0.4 - 0.1 * i, "cosine_rank": i + 1, "cosine_null_95": 0.15}
            | {"closest_feature": 3, "closest_cosine": 0.5}
            for i, c in enumerate(concepts)
        ],
        "compare/detection": [
            {"method": method, "mean": mean, "low": mean - 0.04, "high": mean + 0.03}
            for method, mean in METHODS.items()
        ],
        "compare/readouts": [
            {"concept": c, "method": method, "auroc": value} for method, row in per.items() for c, value in row.items()
        ],
        "compare/confounds": [
            {"concept": c, "auroc_topic_alone": 0.5, "best_word": "dark", "auroc_best_word": 0.6, "confounded": ""}
            | {"share_beyond_affect": 0.8}
            for c in concepts
        ],
        "compare/explained": [
            {"dictionary": name, "rows": rows, "explained": share * rows / 20}
            for name, share in (("SAE decoder", 0.6), ("random", 0.3), ("covariance-matched", 0.5))
            for rows in (1, 20)
        ],
        "compare/angles": [{"angle": 1, "cosine": 0.9}, {"angle": 2, "cosine": 0.4}],
        "compare/pairs": [
            {"method": method, "layer": layer, "read": read, "accuracy": 0.55, "low": 0.4, "high": 0.7, "p": 0.4}
            | {"set": "written", "scope": "all", "pairs": 40, "ties": 0, "p_max": p_max}
            for method, layer, read, p_max in (
                ("own log-probabilities", None, "elicited", None),
                ("difference of means", 2, "mean", 0.6),
                ("best SAE feature", 2, "max", 0.6),
                ("TF-IDF", None, "text", None),
            )
        ],
        "writers/methods": [
            {
                "method": method,
                "own": mean,
                "own_low": mean - 0.04,
                "own_high": mean + 0.03,
                "other": mean - 0.1,
                "home": mean - 0.05,
            }
            | {"other_low": mean - 0.15, "other_high": mean - 0.05, "loss": 0.1, "loss_low": 0.04, "loss_high": 0.16}
            | {"hit_other": 0.4, "hit_other_low": 0.3, "hit_other_high": 0.5, "reverse": mean, "several": mean}
            | {"several_low": mean - 0.1, "several_high": mean + 0.1}
            for method, mean in METHODS.items()
        ],
        "writers/transfer": [
            {"method": "difference of means", "built": built, "read": "strangers", "auroc": 0.8}
            for built in ("own", "strangers")
        ],
        "geometry/correlations": [
            {
                "source": "directions",
                "component": 1,
                "rating": "valence",
                "r": 0.8,
                "low": 0.3,
                "high": 0.97,
                "p": 0.01,
            },
            {
                "source": "directions",
                "component": 2,
                "rating": "arousal",
                "r": 0.1,
                "low": -0.5,
                "high": 0.97,
                "p": 0.7,
            },
        ],
        "geometry/components": [
            {"concept": c, "component": axis, "coordinate": value}
            for i, c in enumerate(concepts)
            for axis, value in ((1, i - 2.0), (2, (-1) ** i * 1.5))
        ],
        "geometry/ratings": [
            {"concept": c, "rating": rating, "value": value + 0.5}
            for i, c in enumerate(concepts)
            for rating, value in (("valence", 2 + i), ("arousal", 7 - i))
        ],
        "geometry/variance": [{"component": 1, "share": 0.4}, {"component": 2, "share": 0.2}],
        "geometry/cosines": [
            {"concept": a, "other": b, "cosine": 1.0 if a == b else 0.2} for a in reversed(concepts) for b in concepts
        ],
        "geometry/layers": [{"layer": 0, "other": 2, "value": 0.7, "null_95": 0.1, "p": 0.01}],
        "geometry/clusters": [
            {"concept": c, "cluster": i % 2, "published": None if i else "Fear"} for i, c in enumerate(concepts)
        ],
        "causal/effects": effects(concepts),
        "causal/verdicts": verdicts(concepts),
        "causal/matrix": [
            {"vector": v, "injected": a, "measured": b, "effect": 1.0 if a == b else 0.1}
            for v in VECTORS
            for a in concepts
            for b in concepts
        ],
        "causal/dose": [
            {"concept": c, "vector": v, "strength": s, "effect": 10 * s, "perplexity_ratio": 1.0 + s}
            for c in concepts
            for v in VECTORS
            for s in (0.05, 0.1)
        ],
        "causal/controls": [
            {"vector": "direction", "operation": "inject", "family": "isotropic", "members": 20, "p_floor": 1 / 61},
            {"vector": "direction", "operation": "ablate", "family": "random", "members": 20, "p_floor": 1 / 21},
        ],
    }
    quality = [{"concept": c, "texts": 4, "mean_words": 101.5, "named": int(c == concepts[0])} for c in concepts]
    return Evidence(
        model="tiny",
        layer=2,
        width=32,
        concepts=concepts,
        documents=(dataclasses.replace(texts[0], text=story), *texts[1:]),
        tables={name: declared(name, rows) for name, rows in {**tables, "corpus/quality": quality}.items()},
        cards={
            "sae": {
                "rows": 900,
                "l0": 8.0,
                "explained_variance": 0.8,
                "dead_share": 0.05,
                "dense_share": 0.01,
                "width": 128,
            }
            | {"density_histogram": {"edges": [0.0, 1e-2, 1.0], "features": [100, 22]}}
            | {"random": {"explained_variance": 0.2, "l0": 8.0, "dead_share": 0.0}},
            "compare": {
                "subspace": {"share": 0.5, "null_95": 0.2},
                "pairs": [
                    {
                        "layer": 2,
                        "method": "difference of means",
                        "read": "mean",
                        "set": "written",
                        "scope": "all",
                        "devices": {"negation": 0.6, "order": 0.5},
                    }
                ],
            },
            "geometry": {
                "length_correlation": [{"component": 1, "r": 0.1, "low": -0.6, "high": 0.7}],
                "clusters": {"n": len(concepts), "rand": {"value": 0.5, "null_95": 0.2, "p": 0.01}},
                "vocabulary": {"similarity": {"value": 0.6, "p": 0.01}, "clusters": {"value": 0.1, "p": 0.3}},
            },
        },
        experiments=[
            {"name": "blackmail", "title": "Leverage", "claim": "It grows.", "refuted_by": "It does not.", "source": ""}
            | {
                "findings": [
                    {
                        "verdict": "untestable",
                        "sentences": ["The check fails.", story],
                        "metrics": {},
                        "tables": [
                            {"title": "Rates", "columns": ["Vector", "Rate"], "note": "Wilson."}
                            | {"rows": [[concepts[0], [0.5, 0.2, 0.8]], [story, None]]}
                        ],
                        "charts": [
                            {"title": "Dose", "kind": kind, "x": "strength", "y": "log-odds"}
                            | {"series": [{"name": concepts[0], "x": x, "y": [0.1, 0.2], "low": [0.0, 0.1]}]}
                            for kind, x in (("line", [-0.1, 0.1]), ("bar", ["a", "b"]), ("scatter", [1, 2]))
                        ],
                    }
                ]
            }
        ],
        provenance=Provenance(
            config={"seed": 0, "sae": {"k": 8}},
            stages=[{"stage": "corpus", "version": 1, "fingerprint": "ab" * 32}],
            data={"model": "folder:00"},
            versions={"torch": "2.0"},
        ),
        metrics={
            "directions": {"auroc_test": 0.93, "auroc_test_low": 0.9, "auroc_test_high": 0.96},
            "match": {"best_feature_auroc": 0.75, "best_feature_auroc_low": 0.7, "best_feature_auroc_high": 0.8}
            | {"random_sae_auroc": 0.62, "random_sae_auroc_low": 0.6, "random_sae_auroc_high": 0.64}
            | {"difference": 0.13, "difference_low": 0.06, "difference_high": 0.2},
            "geometry": {
                "r_component_1_valence": 0.8,
                "r_component_1_valence_low": 0.3,
                "r_component_1_valence_high": 0.97,
            }
            | {"r_component_2_arousal": 0.1, "r_component_2_arousal_low": -0.5, "r_component_2_arousal_high": 0.97},
            "causal": {"reference_strength": 0.1},
            "sae": {"features": 128.0},
            "activations": {"rows": 1234.0},
        },
    )


def changed(evidence: Evidence, name: str, change: Any) -> Evidence:
    """The same with the rows of a table changed: ``change`` maps a row to its new cells, or None drops it."""
    rows = [{**row, **new} for row in evidence.rows(name) if (new := change(row)) is not None]
    return dataclasses.replace(evidence, tables={**evidence.tables, name: Rows.like(evidence.rows(name), rows)})


def table_of(evidence: Evidence, name: str) -> tables.Table:
    """A registered table of the page."""
    found = next(item for item in ITEMS if item.name == name).build(evidence)
    assert isinstance(found, tables.Table)
    return found


def blanked(value: Any) -> Any:
    """The same data with every fractional number NaN."""
    if isinstance(value, Mapping):
        return {key: blanked(item) for key, item in value.items()}
    if isinstance(value, Rows):
        return Rows.like(value, [blanked(item) for item in value])
    if isinstance(value, list | tuple):
        return type(value)(blanked(item) for item in value)
    return NAN if isinstance(value, float) else value


def without_numbers() -> Evidence:
    whole = study()
    names = ("tables", "cards", "metrics", "experiments")
    reference = {"causal": {"reference_strength": 0.1}}
    unknown = dataclasses.replace(whole, **{name: blanked(getattr(whole, name)) for name in names})
    unknown = dataclasses.replace(unknown, metrics={**unknown.metrics, **reference})
    return changed(unknown, "causal/effects", lambda _: {"strength": 0.1})


def without_results() -> Evidence:
    """A study of which only the texts are known."""
    return dataclasses.replace(study(), tables={}, cards={}, metrics={}, experiments=())


def visible(page: str) -> str:
    """What a reader sees: no scripts, styles or tags."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def specifications(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])["figures"]


@pytest.fixture(scope="module")
def page() -> str:
    return render(study())


def test_same_evidence_gives_the_same_bytes(page: str) -> None:
    assert render(study()) == page


def test_settings_reach_the_page(page: str) -> None:
    changed = render(
        study(), title="My study", concepts_shown=1, contexts_per_feature=1, theme="dark", colours="contrast"
    )
    assert "<h1>My study</h1>" in changed
    assert 'data-theme="dark"' in changed
    assert page.count('class="concept"') == len(CONCEPTS)
    assert changed.count('class="concept"') == 1
    assert page.count("<mark") == 2 * len(CONCEPTS)
    assert changed.count("<mark") == 1
    assert palette.stylesheet("contrast") in changed


def test_every_section_is_there_and_every_link_leads_somewhere(page: str) -> None:
    # Nothing was watched, sought or sampled here; other modules of tests have pages with these sections.
    elsewhere = {"monitor", "circuits", "modulation", "samples", "shape"}
    assert not any(f'<section id="{name}">' in page for name in elsewhere)
    for name, heading in SECTIONS.items():
        if name in elsewhere:
            continue
        assert f'<section id="{name}">' in page
        assert f"<h2>{heading}</h2>" in page
    anchors = set(re.findall(r'\bid="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= anchors
    drawn = set(re.findall(r'data-chart="([^"]+)"', page))
    assert drawn == set(specifications(page))
    assert len(re.findall(r'\bid="', page)) == len(anchors), "an id is used twice"


@pytest.mark.parametrize("where", ["story", "concept", "title", "token"])
def test_markup_in_texts_is_shown_not_run(where: str) -> None:
    evidence = study(story=EVIL if where == "story" else "She waited.")
    if where == "concept":
        evidence = study(concepts=(*CONCEPTS[:4], EVIL))
    if where == "token":
        evidence = changed(evidence, "match/contexts", lambda _: {"token": EVIL})
    found = render(evidence, title=EVIL if where == "title" else "")
    assert "<img" not in found
    assert "&lt;img src=x" in found
    assert "{{ 7 * 7 }}" in found
    assert len(re.findall(r"</script>", found)) == len(re.findall(r"<script", found)) == 3


def test_unknown_numbers_are_dashes_never_zeros_or_nan() -> None:
    found = render(without_numbers())
    seen = visible(found)
    assert not re.search(r"\b([nN]a[nN]|inf|None)\b", seen)
    assert "not shown" in seen
    text = json.dumps(specifications(found))
    assert "NaN" not in text
    rows = table_of(without_numbers(), "match-concepts").rows
    assert [cell.text for cell in rows[0][2:7]] == [numbers.MISSING] * 5
    assert all(cell.key is None for cell in rows[0][2:7])
    values = re.findall(r'<span class="value">(.*?)</span>', found)
    assert values[:3] + values[5:] == [numbers.NOT_SHOWN] * 4, "all but the counts of verdicts"
    drawn_by_number = {"perplexity", "effect", "layers", "makeup", "experiment", "density"}
    dots = {name: chart for name, chart in specifications(found).items() if not drawn_by_number & set(name.split("-"))}
    drawn = [x for chart in dots.values() for trace in chart["data"] for x in trace["x"] if not isinstance(x, str)]
    assert set(drawn) <= {None}


def test_a_study_without_results_still_gives_a_page() -> None:
    seen = visible(render(without_results()))
    assert "not shown" in seen
    assert all(finding.standing == "not shown" for finding in conclusions(without_results()))


def concluded(evidence: Evidence, name: str) -> tuple[str, Mapping[str, Any]]:
    """Standing of a finding, and what its words name."""
    concluded = next(each.conclude(evidence) for each in FINDINGS if each.name == name)
    assert concluded is not None
    return concluded


def test_the_side_that_loses_is_named() -> None:
    evidence = study()
    assert concluded(evidence, "comparison")[1]["won"] == ["calm"]
    assert set(concluded(evidence, "comparison")[1]["lost"]) == {"afraid", "proud", "sad", "tired"}
    swap = {"difference of means": "best SAE feature", "best SAE feature": "difference of means"}
    turned = changed(evidence, "compare/readouts", lambda row: {"method": swap.get(row["method"], row["method"])})
    assert concluded(turned, "comparison")[1]["lost"] == ["calm"]
    for found, losers, winner in ((evidence, "SAE features", "calm"), (turned, "Differences of means", "afraid")):
        words = finding_of(found, "comparison")
        assert words.title.startswith(f"{losers} lose to ")
        assert f"loses to the feature for: {winner}" in words.text


def finding_of(evidence: Evidence, name: str) -> Finding:
    return next(each for each in conclusions(evidence) if each.name == name)


def test_concepts_for_which_an_effect_is_not_shown_are_listed() -> None:
    missing = {"inject_direction": ["tired"], "inject_feature": list(CONCEPTS[1:]), "ablate_direction": list(CONCEPTS)}
    for name, concepts in missing.items():
        assert concluded(study(), name)[1]["tally"].missing == concepts
        assert f"Not shown for: {numbers.names(concepts)}." in finding_of(study(), name).text
    assert "<dt>Inject direction</dt><dd>tired</dd>" in render(study())


def test_a_badge_needs_more_than_the_count_that_chance_gives() -> None:
    def of(shown: int, total: int, **how: Any) -> str:
        return standing(Tally(["x"] * shown, ["y"] * (total - shown)), **how)

    assert of(1, 24, level=0.05) == "not shown", "one of 24 at 5% each is what chance gives"
    assert of(5, 24, level=0.05) == "partly shown"
    assert of(24, 24, level=0.05) == "shown"
    assert of(1, 24) == "partly shown", "corrected tests let none pass"
    assert of(0, 24) == of(0, 0) == "not shown"
    assert of(10, 24, p=0.3) == "not shown", "a test of all together decides"
    assert of(0, 24, p=0.001) == "partly shown"


def test_the_diagonal_decides_the_badge_of_each_kind_of_vector() -> None:
    metrics = {**study().metrics, "causal": {"diagonal_p_direction": 0.001, "diagonal_p_feature": 0.4}}
    evidence = dataclasses.replace(study(), metrics=metrics)
    assert concluded(evidence, "inject_direction")[0] == "partly shown"
    assert concluded(evidence, "inject_feature")[0] == "not shown"


def test_a_space_parts_one_sentence_from_the_next(page: str) -> None:
    bare = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    for paragraph in re.findall(r"<p>(.*?)</p>", bare, flags=re.DOTALL):
        assert not re.search(r"[a-z)%]\.[A-Z][a-z]", re.sub(r"<[^>]+>", "", paragraph)), paragraph


def test_buttons_that_save_a_table_have_their_looks_on_the_screen_too(page: str) -> None:
    screen, _, paper = page.partition("@media print")
    assert ".save {" in screen
    assert ".clamp { display: block; }" in paper.split("</style>")[0], "what is cut on the screen is whole on paper"


def test_marks_follow_the_rule_of_the_verdicts_and_the_weaker_rule_is_half_a_mark() -> None:
    weaker = {"calm": {"sufficient": False}}
    evidence = changed(study(), "causal/verdicts", lambda row: weaker.get(row["concept"], {}))
    tones = {row[0].text: row[4].tone for row in cards.overview(evidence, {}).rows}
    assert tones == {"afraid": "yes", "calm": "weak", "proud": "yes", "sad": "yes", "tired": "no"}
    agreeing = [row[3].tone for row in cards.overview(evidence, {}).rows]
    assert agreeing == ["weak", "weak", "weak", "no", "no"], "an uncorrected test gives half a mark"


def test_verdicts_say_what_was_not_tested() -> None:
    row = table_of(study(), "verdicts").rows[0]
    assert [cell.text for cell in row[1:4]] == ["shown", "not shown", "not shown"]
    assert row[6].text == numbers.MISSING, "necessity of the feature was not tested"
    assert causal.controls(study()) == {
        "families": [("isotropic", 20)],
        "floors": [("direction", 1 / 61), ("ablation", 1 / 21)],
    }


def test_one_p_is_shown_with_its_floor_and_the_raw_one_is_a_note() -> None:
    at_floor = tables.corrected({"p": 1 / 61, "p_adjusted": 2 / 61, "p_floor": 1 / 61})
    assert (at_floor.text, at_floor.title) == ("<= 0.033", "uncorrected: <= 0.016; least possible: 0.016")
    assert tables.corrected({"p": 0.2, "p_adjusted": 0.4, "p_floor": 1 / 61}).text == "0.40"


def test_of_several_strengths_the_reference_counts() -> None:
    rows = [
        {**row, "strength": s, "effect": 100 * s}
        for row in study().rows("causal/effects")
        if row["operation"] == "inject"
        for s in (0.05, 0.2)
    ]
    metrics = {**study().metrics, "causal": {"reference_strength": 0.2}}
    evidence = dataclasses.replace(study(), tables={**study().tables, "causal/effects": rows}, metrics=metrics)
    assert evidence.effects("direction", "inject")["afraid"]["effect"] == 20
    assert len(table_of(evidence, "causal-effects").rows) == len(rows)


def test_an_effect_that_was_not_measured_is_not_called_absent() -> None:
    evidence = changed(study(), "causal/verdicts", lambda row: None if row["concept"] == "sad" else {})
    evidence = changed(evidence, "causal/effects", lambda row: None if row["concept"] == "sad" else {})
    assert concluded(evidence, "inject_direction")[1]["tally"].unknown == ["sad"]
    row = next(row for row in cards.overview(evidence, {}).rows if row[0].text == "sad")
    assert row[4].text == numbers.MISSING


def test_an_experiment_that_could_not_be_tested_is_not_called_refuted(page: str) -> None:
    seen = visible(page)
    assert 'data-finding="experiment-blackmail" data-standing="not shown"' in page
    assert VERDICT_WORDS["untestable"] in seen
    assert "0.50 [0.20, 0.80]" in seen
    assert "Dose." in seen
    assert behaviour.lead(["Short: as it is."]) == ["Short: as it is."]
    assert behaviour.lead(["None shown: " + "long " * 40, "More."])[::2] == ["None shown.", "More."]
    without = render(dataclasses.replace(study(), experiments=()))
    assert "Behavioural experiments" not in visible(without)


def test_same_words_pairs_are_corrected_for_the_number_of_readings() -> None:
    def of(**cells: Any) -> str:
        evidence = changed(study(), "compare/pairs", lambda row: cells if row["p_max"] is not None else {})
        return concluded(evidence, "beyond_words")[0]

    assert of() == "not shown"
    assert of(accuracy=0.8, low=0.7, high=0.9, p=0.001, p_max=0.01) == "shown"
    assert of(accuracy=0.8, low=0.7, high=0.9, p=0.001, p_max=0.2) == "not shown"
    assert of(accuracy=0.2, low=0.1, high=0.3, p=0.001, p_max=0.01) == "not shown", "worse than chance is no reading"


def test_a_random_dictionary_that_does_as_well_takes_the_meaning_from_few_rows() -> None:
    better = {"covariance-matched": {"explained": 0.9}}
    assert concluded(study(), "makeup")[0] == "shown"
    evidence = changed(study(), "compare/explained", lambda row: better.get(row["dictionary"], {}))
    assert concluded(evidence, "makeup")[0] == "partly shown"


@pytest.mark.parametrize("name", ["agree", "makeup", "explained"])
def test_nothing_is_concluded_from_directions_that_read_nothing(name: str) -> None:
    assert concluded(study(), name)[0] != "not shown"
    evidence = changed(study(), "directions/concepts", lambda row: {"p": 0.6, "low": 0.4, "auroc_test": 0.5})
    assert not evidence.reads and concluded(evidence, name)[0] == "not shown"
    told, before = finding_of(evidence, name), finding_of(study(), name)
    assert "so this is about noise" in told.text and "noise" not in before.text


def test_vocabulary_is_admitted_unless_directions_clear_it() -> None:
    assert concluded(study(), "vocabulary")[0] == "not shown"
    lower = {"TF-IDF": {"mean": 0.6, "low": 0.55, "high": 0.65}, "difference of means, layer 0": {"high": 0.8}}
    weaker = changed(study(), "compare/detection", lambda row: lower.get(row["method"], {}))
    assert concluded(weaker, "vocabulary")[0] == "shown"


def test_a_plugin_adds_a_figure_with_one_function() -> None:
    def texts(evidence: Evidence) -> tables.Table:
        rows = [{"split": split, "topics": len(evidence.topics(split))} for split in ("train", "test")]
        return tables.table("Added", rows, {"split": "Split", "topics": "Topics"})

    def many(evidence: Evidence) -> Any:
        return "shown", {"texts": len(evidence.documents)}

    figure("texts", caption="An added figure.")(texts)
    finding("texts", "There are texts\n\nThere are {{ texts }}.")(many)
    try:
        page = render(study())
        assert 'id="table-texts"' in page
        assert 'data-finding="many" data-standing="shown"' in page
    finally:
        ITEMS.pop()
        FINDINGS.pop()
    with pytest.raises(ValueError, match="no section `elsewhere`"):
        figure("elsewhere")


def test_columns_are_explained_by_the_declaration_of_their_table(tmp_path: Path) -> None:
    results.write(tmp_path, directions.CONCEPTS, study().rows("directions/concepts"))
    rows = Rows.of(results.read(tmp_path, "concepts"))
    assert rows[0]["stability"] is None, "an empty cell is None"
    evidence = dataclasses.replace(study(), tables={**study().tables, "directions/concepts": rows})
    help = {column.title: column.help for column in table_of(evidence, "directions-concepts").columns}
    assert directions.CONCEPTS.column("neutral_energy").description[1:] in help["Removed"]


def test_features_lose_only_where_the_paired_difference_excludes_none() -> None:
    assert concluded(study(), "comparison")[0] == "not shown", "no interval of the difference"
    ends = {"best SAE feature": {"difference": -0.2, "difference_low": -0.3, "difference_high": -0.1}}
    clear = changed(study(), "compare/detection", lambda row: ends.get(row["method"], {}))
    assert concluded(clear, "comparison")[0] == "partly shown", "one concept is read better by its feature"


def test_a_correlation_whose_interval_holds_zero_is_not_shown() -> None:
    badge, values = concluded(study(), "axes")
    assert badge == "partly shown"
    assert [row["clear"] for row in values["tested"]] == [True, False]


@pytest.mark.parametrize("verdict", ["weak", "bad"])
def test_a_bad_sae_is_called_so(verdict: str) -> None:
    evidence = study()
    assert concluded(evidence, "soundness")[0] == "shown"
    judged = {"verdict": verdict, "faults": [{"grave": True, "text": "61% of its features never fire"}]}
    faulty = {**evidence.cards, "sae": {**evidence.cards["sae"], **judged}}
    finding = finding_of(dataclasses.replace(evidence, cards=faulty), "soundness")
    assert finding.title.endswith(verdict)
    assert judged["faults"][0]["text"] in finding.text
    assert finding.standing == {"weak": "partly shown", "bad": "not shown"}[verdict]


def test_a_trained_sae_no_better_than_a_random_one_is_not_shown() -> None:
    metrics = {**study().metrics, "match": {**study().metrics["match"], "difference_low": -0.02}}
    badge, values = concluded(dataclasses.replace(study(), metrics=metrics), "trained")
    assert (badge, values["better"]) == ("not shown", False)


def test_nothing_is_fetched_from_outside(page: str) -> None:
    own = re.sub(r'<script type="application/octet-stream".*?</script>', "", page, flags=re.S)
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", own)
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(|https?://", own)
    assert "default-src 'none'" in own


@pytest.mark.parametrize("evidence", [study(), without_numbers(), without_results()], ids=["whole", "nan", "empty"])
def test_every_figure_is_valid_plotly(evidence: Evidence) -> None:
    from plotly.graph_objects import Figure

    for name, spec in specifications(render(evidence)).items():
        assert Figure(spec).to_dict()["layout"]["height"] == spec["layout"]["height"], name


def test_labels_on_the_map_do_not_overlap() -> None:
    crowd = {f"concept-{i}": (math.cos(i) * (i % 5), math.sin(2 * i) * (i % 7)) for i in range(40)}
    sides = draw.label_sides(crowd)
    assert 20 < len(sides) <= 40
    assert draw.label_sides({"one": (0.0, 0.0)}) == {"one": "top center"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.number(-0.126), "\u22120.13"),
        (numbers.number(-0.001), "0.00"),
        (numbers.number(0.5, sign=True), "+0.50"),
        (numbers.number(NAN), numbers.MISSING),
        (numbers.number(True), numbers.MISSING),
        (numbers.count(12345.0), "12,345"),
        (numbers.percent(0.004), "0.4%"),
        (numbers.percent(0.61), "61%"),
        (numbers.p_value(0.000999), "0.001"),
        (numbers.p_value(0.00001), "1e-05"),
        (numbers.p_value(1.0), "1"),
        (numbers.estimate(0.9, NAN, 1.0), "0.90 [no interval]"),
        (numbers.estimate(None, 0, 1), "not shown"),
        (numbers.names(["a"]), "a"),
        (numbers.names(list("abcd"), limit=2), "a, b and 2 more"),
        (numbers.names([]), "none"),
    ],
)
def test_numbers_are_written_plainly(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("name", list(palette.PALETTES))
def test_colours_can_be_read(name: palette.Name) -> None:
    """WCAG contrast: 4.5 for text, 3 for marks, on the page and on cards, light and dark."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colours in palette.PALETTES[name]:
        for ground in ("bg", "card"):
            for role, least in {
                "ink": 7,
                "soft": 4.5,
                "axis": 3,
                "control": 3,
                "good": 4.5,
                "bad": 4.5,
                "direction": 4.5,
                "feature": 4.5,
            }.items():
                pair = sorted((light(colours[role]), light(colours[ground])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (role, ground)


def artifacts(root: Path, moment: str) -> dict[str, Any]:
    """Artifacts as the stage gets them, with manifests written at ``moment``."""
    whole, opened = study(), {}
    names = ReportStage.needs
    metrics = whole.metrics
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        record = {
            **{"stage": name, "needs": {}, "parts": {}, "files": {}, "sizes": {}},
            "config": {
                "key": {"writers": "corpus", "circuit_units": "circuits", "circuit_sizes": "circuits"}.get(name, name)
            }
            | ({"reference": 0.1} if name == "causal" else {}),
            "version": 1,
            "fingerprint": "cd" * 32,
            "data": {"stories": "ef"} if name == "corpus" else {},
            "model_identity": "folder:00",
            "versions": {"torch": "2.0"},
            "run": {"host": f"host-{moment}", "started": moment, "seconds": 1.5},
        }
        (folder / "manifest.json").write_text(json.dumps(record), encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps(metrics.get(name, {})), encoding="utf-8")
        for table, declared in DECLARED.items():
            if table.startswith(f"{name}/") and whole.rows(table):
                results.write(folder, declared, whole.rows(table))
        opened[name] = SimpleNamespace(folder=folder)
    (root / "sae" / "sae").mkdir()
    vars(opened["corpus"]).update(emotions=whole.concepts, documents=whole.documents, fixed_split=False)
    vars(opened["activations"]).update(d_model=32)
    vars(opened["sae"]).update(folder=root / "sae" / "sae", health=whole.cards["sae"])
    vars(opened["compare"]).update(whole.cards["compare"])
    vars(opened["geometry"]).update(data=whole.cards["geometry"])
    vars(opened["conclude"]).update(findings=whole.experiments)
    return opened


def run_stage(root: Path, moment: str) -> bytes:
    from affectlens.model.subject import ModelConfig
    from affectlens.stage import Setting
    from affectlens.stages.report import PAGE, ReportConfig

    setting = Setting(seed=3, model=ModelConfig(name="org/tiny", layer=2), device="cpu", threads=1, models=root)
    stage = ReportStage(ReportConfig(), setting, artifacts(root, moment))
    (part,) = stage.parts()
    out, final = root / "part", root / "final"
    out.mkdir()
    final.mkdir()
    done: list[float] = []
    stage.run_part(part, out, done.append)
    metrics = stage.finish({part.name: out}, final)
    assert sum(done) == part.size
    assert ReportStage.open(final).page == final / PAGE
    written = (final / PAGE).read_bytes()
    assert metrics["page_megabytes"] == pytest.approx(len(written) / 1e6, abs=1e-3)
    return written


def test_stage_writes_the_same_page_whenever_and_wherever_it_runs(tmp_path: Path) -> None:
    first = run_stage(tmp_path / "a", "2031-01-02T03:04:05Z")
    second = run_stage(tmp_path / "b", "2032-11-12T13:14:15Z")
    assert first == second
    text = first.decode()
    assert "2031" not in visible(text)
    assert str(tmp_path) not in text
    for shown in ("org/tiny", "could not be tested", "cd" * 32, "folder:00", "corpus: stories", "torch 2.0"):
        assert shown in visible(text)


def test_settings_on_the_page_are_yaml_that_can_be_run_again(tmp_path: Path) -> None:
    text = run_stage(tmp_path, "x").decode()
    found = re.search(r"<pre[^>]*>(.*?)</pre>", text, re.S)
    assert found is not None
    settings = yaml.safe_load(found[1].replace("&#39;", "'"))
    assert settings["seed"] == 3
    assert settings["model"]["layer"] == 2
    assert settings["corpus"] == {"key": "corpus"}
    assert settings["report"]["theme"] == "auto"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.mark.parametrize("view", [{}, {"dark": True}, {"phone": True, "width": 390, "height": 844}])
def test_page_opens_from_disk_and_asks_for_nothing(chromium: Any, file: Path, page: str, view: dict[str, Any]) -> None:
    with visit(chromium, file, **view) as seen:
        assert seen.errors == []
        assert seen.requests == [file.resolve().as_uri()]
        assert seen.drawn() == len(specifications(page))
        assert seen.overflow() <= 0


def test_every_table_can_be_saved(chromium: Any, file: Path) -> None:
    with visit(chromium, file) as seen:
        assert seen.page.locator("button.save").count() == seen.page.locator("table.sortable").count() > 5
        seen.page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        region = seen.page.locator(".scroll:has(#table-directions-concepts)")
        with seen.page.expect_download() as waiting:
            region.locator("+ button.save").click()
        lines = Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()
        assert waiting.value.suggested_filename.endswith(".csv") and lines[0].startswith('"Concept"')
        assert sorted(line.split(",")[0].strip('"') for line in lines[1:]) == sorted(CONCEPTS)
        assert not seen.errors


def test_injected_markup_does_not_run(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(study(concepts=(*CONCEPTS[:4], EVIL), story=EVIL), title=EVIL), encoding="utf-8")
    with visit(chromium, path) as seen:
        assert seen.errors == []
        assert seen.page.locator("img").count() == 0
        assert EVIL in seen.page.locator("h1").inner_text()
        shown = seen.page.locator("#directions-auroc").text_content()
        assert "".join(EVIL.split()) in "".join(shown.split()), "a long label is broken into lines"


def test_page_without_numbers_opens_without_error(chromium: Any, tmp_path: Path) -> None:
    for name, evidence in (("nan", without_numbers()), ("empty", without_results())):
        path = tmp_path / f"{name}.html"
        path.write_text(render(evidence), encoding="utf-8")
        with visit(chromium, path) as seen:
            assert seen.errors == []


def test_tables_sort_by_number_with_the_unknown_last(chromium: Any, tmp_path: Path) -> None:
    unknown = {"calm": {"auroc_test": NAN}}
    evidence = changed(study(), "directions/concepts", lambda row: unknown.get(row["concept"], {}))
    path = tmp_path / "report.html"
    path.write_text(render(evidence), encoding="utf-8")
    with visit(chromium, path) as seen:
        table = seen.page.locator("#table-directions-concepts")
        seen.page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        heading = table.get_by_role("button", name="AUROC")
        concepts = lambda: table.locator("tbody td:first-child").all_inner_texts()  # noqa: E731
        heading.click()
        assert concepts() == ["afraid", "proud", "sad", "tired", "calm"]
        heading.click()
        assert concepts() == ["tired", "sad", "proud", "afraid", "calm"]
        assert table.locator("th[aria-sort=ascending]").count() == 1


def test_reader_can_switch_the_scheme_filter_and_follow_a_concept(chromium: Any, file: Path) -> None:
    with visit(chromium, file) as seen:
        ground = "getComputedStyle(document.body).backgroundColor"
        ink = "getComputedStyle(document.querySelector('#directions-auroc .ytick text')).fill"
        before = [seen.page.evaluate(each) for each in (ground, ink)]
        seen.page.click("#scheme")
        seen.page.wait_for_function(f"{ink} !== '{before[1]}'")
        assert seen.page.evaluate(ground) != before[0]
        seen.page.fill("#filter", "pro")
        assert seen.page.locator(".concept:visible b").all_inner_texts()[0].endswith("proud")
        assert seen.page.locator(".concept:visible").count() == 1
        seen.page.fill("#filter", "")
        seen.page.click("#table-overview a >> text=calm")
        assert seen.page.locator(".concept[open] summary b").inner_text().endswith("calm")
        assert seen.errors == []


def test_print_is_light_even_for_readers_in_the_dark(chromium: Any, file: Path) -> None:
    with visit(chromium, file, dark=True) as seen:
        seen.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert seen.page.evaluate("document.documentElement.dataset.theme") == "light"
        seen.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert seen.page.evaluate("document.documentElement.dataset.theme") == "auto"
        assert len(seen.page.pdf(format="A4")) > 50_000
