"""Studies side by side: what differs, by how much, and whether that is more than its uncertainty."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from affectlens import results
from affectlens.cli import app
from affectlens.compare import arguments, export, groups, page, tables
from affectlens.compare.differences import LEAST_SHARED, UNKNOWN, Comparison, Metric, compare
from affectlens.compare.findings import Findings
from affectlens.compare.findings import Result as Stage
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.errors import ConfigError, UserError
from affectlens.run import runner
from affectlens.study import Study, stage_named
from affectlens.tracking.observer import WandbObserver
from browser import browser, visit
from rich.console import Console
from test_tracking import sync
from typer.testing import CliRunner, Result
from wandb_server import WandbServer

EMOTIONS = ("afraid", "calm", "proud", "sad")
STAGES = ("corpus", "activations", "sae", "directions", "match", "compare", "causal")


CONCEPTS = results.Table(
    "concepts",
    "One concept.",
    (results.text("concept", "it"), results.integer("feature", "number"), results.number("auroc_test", "AUROC")),
    key=("concept",),
    averages=(results.Average("best_feature_auroc", "auroc_test"),),
)


def found(name: str, metrics: dict[str, float], aurocs: dict[str, float] | None = None, **record) -> Findings:
    """A study with one stage, and per-concept AUROCs of best features behind its mean."""
    rows = [(concept, 1, value) for concept, value in (aurocs or {}).items()]
    frame = pd.DataFrame(rows, columns=[column.name for column in CONCEPTS.columns])
    frame.attrs["table"] = CONCEPTS
    result = Stage("match", {"config": {"k": 1}} | record, metrics, {"concepts": frame})
    return Findings(name, name, "memory", {"match": result})


def paired(name: str, values: np.ndarray) -> Findings:
    aurocs = {f"concept {index}": float(value) for index, value in enumerate(values)}
    return found(name, {"best_feature_auroc": float(np.nanmean(values))}, aurocs)


def metric(comparison: Comparison, name: str) -> Metric:
    return next(each for each in comparison.metrics if each.name == name)


# The rules


@pytest.mark.parametrize(
    ("low", "high", "exceeds"), [(0.80, 0.9, True), (0.69, 0.9, False), (0.1, 0.5, True), (0.1, 0.61, False)]
)
def test_without_pairs_a_difference_exceeds_when_intervals_do_not_overlap(low, high, exceeds) -> None:
    first = found("a", {"score": 0.65, "score_low": 0.6, "score_high": 0.7, "score_n": 5})
    other = found("b", {"score": 0.5, "score_low": low, "score_high": high, "score_n": 5})
    row = metric(compare([first, other]), "match/score")
    difference = row.differences[1]
    assert (difference.rule, difference.exceeds, row.marked) == ("intervals", exceeds, exceeds)
    assert difference.value == pytest.approx(-0.15)
    assert [each.name for each in compare([first, other]).metrics] == ["match/score"]  # its ends are no metrics


def test_without_intervals_nothing_is_claimed() -> None:
    difference = metric(compare([found("a", {"loss": 1.0}), found("b", {"loss": 9.0})]), "match/loss").differences[1]
    assert (difference.rule, difference.exceeds, difference.value) == ("none", None, 8.0)


def test_pairs_find_a_small_shift_that_intervals_would_hide_and_none_where_there_is_none() -> None:
    generator = np.random.default_rng(0)
    values = generator.uniform(0.5, 0.9, 24)
    noise = generator.normal(0, 0.01, 24)
    shifted = compare([paired("a", values), paired("b", values + 0.02 + noise)])
    difference = metric(shifted, "match/best_feature_auroc").differences[1]
    assert (difference.rule, difference.exceeds, difference.concepts) == ("paired", True, 24)
    assert difference.low < 0.02 < difference.high
    assert difference.value == pytest.approx(0.02 + noise.mean())
    noise -= noise.mean()
    still = compare([paired("a", values), paired("b", values + 10 * noise)])
    assert metric(still, "match/best_feature_auroc").differences[1].exceeds is False
    again = compare([paired("a", values), paired("b", values + 0.02 + noise)])
    assert export.as_json(again) == export.as_json(compare([paired("a", values), paired("b", values + 0.02 + noise)]))


def test_pairs_are_the_concepts_that_both_studies_have() -> None:
    values = np.linspace(0.5, 0.9, 9)
    first, other = paired("a", values), paired("b", values[:6] + 0.05)
    difference = metric(compare([first, other]), "match/best_feature_auroc").differences[1]
    assert (difference.concepts, difference.value) == (6, pytest.approx(0.05))
    few = paired("b", values[:3])
    assert metric(compare([first, few]), "match/best_feature_auroc").differences[1].rule == "none"


def test_a_column_that_is_not_what_the_metric_is_the_mean_of_is_not_paired() -> None:
    values = {f"concept {index}": 0.5 for index in range(9)}
    other = found("b", {"best_feature_auroc": 0.7}, values)
    assert other.per_concept == {}
    assert metric(compare([other, other]), "match/best_feature_auroc").differences[1].rule == "none"


def test_a_metric_of_several_rows_a_concept_is_paired_by_concept_and_empty_cells_are_left_out() -> None:
    verdicts = results.Table(
        "verdicts",
        "One vector of one concept.",
        (results.text("concept", "it"), results.text("vector", "it"), results.flag("shown", "whether")),
        key=("concept", "vector"),
        averages=(results.Average("share_{vector}", "shown"), results.Average("share", "shown")),
    )
    concepts = [f"concept {index}" for index in range(6)]
    rows = [(concept, vector, True) for concept in concepts for vector in ("direction", "feature")]
    frame = pd.DataFrame(rows, columns=["concept", "vector", "shown"]).astype({"shown": object})
    frame.attrs["table"] = verdicts
    frame.loc[1, "shown"] = None
    frame.loc[0, "shown"] = False
    metrics = {"share_direction": 5 / 6, "share_feature": 1.0, "share": 10 / 11}
    study = Findings("a", "", "memory", {"causal": Stage("causal", {}, metrics, {"verdicts": frame})})
    assert study.per_concept["causal/share_direction"] == {name: float(name != "concept 0") for name in concepts}
    assert study.per_concept["causal/share_feature"] == dict.fromkeys(concepts[1:], 1.0)
    # One concept has a single row: the mean over rows is not the mean over concepts, and is not paired.
    assert "causal/share" not in study.per_concept


def test_only_what_differs_is_listed_and_what_is_not_known_is_not_a_difference() -> None:
    one = found("a", {"x": 1.0}, config={"k": 1, "same": [1, 2]}, seed=0, versions={"torch": "1"}, data={"texts": "f"})
    two = found("b", {"x": 1.0}, config={"k": {"deep": 2}, "same": [1, 2]}, seed=0, versions={"torch": "2"})
    comparison = compare([one, two, found("c", {"x": 1.0}, config={"k": 3, "same": (1, 2)})])
    assert {each.key: list(each.values) for each in comparison.settings} == {"match.k": [1, UNKNOWN, 3]}
    assert {each.key: list(each.values) for each in comparison.circumstances} == {"package torch": ["1", "2", UNKNOWN]}


def test_nothing_in_common_is_one_sentence_that_says_what_there_is() -> None:
    other = Findings("b", "", "memory", {"sae": Stage("sae", {}, {"l0": 3.0})})
    with pytest.raises(UserError, match=r"a has match; b has sae") as refused:
        compare([found("a", {"x": 1.0}), other])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="one study is nothing to compare with"):
        compare([other])


def test_equal_names_are_told_apart() -> None:
    names = [each.name for each in compare([found("a", {"x": 1.0})] * 3).studies]
    assert names == ["a", "a (2)", "a (3)"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.12345, "0.123"), (3.0, "3"), (-12345.6, "\u221212,346"), (0.00025, "0.00025"), (0.0, "0")]
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert tables.number(value) == shown


# The page

DIRECTIONS = dataclasses.replace(CONCEPTS, averages=(results.Average("auroc_test", "auroc_test"),))
EVIL = "</script><img src=x onerror=alert(1)>"


def whole_study(name: str, shift: float) -> Findings:
    """Detection by features and directions of 24 concepts, verdicts, and a metric without interval."""
    generator = np.random.default_rng(3)
    concepts = ["calm", EVIL, *(f"concept {index}" for index in range(22))]
    base = generator.uniform(0.6, 0.95, 24)
    tables_of = {}
    for stage, values in (("match", base - 0.1), ("directions", np.minimum(base + shift, 1.0))):
        frame = pd.DataFrame({"concept": concepts, "feature": range(24), "auroc_test": values})
        frame.attrs["table"] = CONCEPTS if stage == "match" else DIRECTIONS
        metrics = (
            {"best_feature_auroc": float(values.mean())} if stage == "match" else {"auroc_test": float(values.mean())}
        )
        ends = {
            f"{each}_{end}": metrics[each] + way for each in metrics for end, way in (("low", -0.02), ("high", 0.02))
        }
        record = {
            "config": {"k": 16 if shift else 8, EVIL: shift},
            "fingerprint": f"{stage}-{shift}",
            "versions": {"torch": "2"},
        }
        tables_of[stage] = Stage(stage, record, metrics | ends | {"loss": 1.0 + shift}, {"concepts": frame})
    return Findings(name, "", f"{name}.yaml", tables_of, missing=("causal (missing)",))


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return compare([whole_study("base", 0.0), whole_study(f"tuned {EVIL}", 0.04)])


@pytest.fixture(scope="module")
def running():
    with browser() as opened:
        yield opened


def test_the_page_counts_marks_against_chance(compared) -> None:
    found = page.judged(compared)
    assert found == {"judged": 2, "marked": 1, "expected": 1}
    html = page.render(compared)
    assert html == page.render(compare([whole_study("base", 0.0), whole_study(f"tuned {EVIL}", 0.04)]))
    assert "1 of 2 differences with an interval is marked. About 1 would be if nothing differed: there are not" in html
    assert EVIL not in html
    assert page.judged(compare([found_("a"), found_("b")])) == {"judged": 0, "marked": 0, "expected": 0}
    assert "none can be judged" in page.render(compare([found_("a"), found_("b")]))


def found_(name: str) -> Findings:
    return found(name, {"loss": 1.0})


@pytest.mark.parametrize(("width", "dark", "phone"), [(1200, False, False), (390, True, True)])
def test_the_page_is_drawn_and_fits(running, compared, tmp_path, width: int, dark: bool, phone: bool) -> None:
    path = tmp_path / "compare.html"
    path.write_text(page.render(compared), encoding="utf-8")
    with visit(running, path, width=width, height=900, dark=dark, phone=phone) as seen:
        look = seen.page
        assert seen.drawn() == 3 and seen.overflow() <= 0
        assert look.inner_text("h1").startswith("base and tuned </script>")
        look.click("#concepts summary >> nth=0")
        assert look.locator("#table-concepts tbody tr").count() == 24
        look.dispatch_event("#table-concepts thead button >> nth=1", "click")
        shown = [float(text) for text in look.locator("#table-concepts tbody tr td:nth-child(2)").all_inner_texts()]
        assert shown == sorted(shown, reverse=True) and len(set(shown)) > 12
        before = look.evaluate("document.documentElement.dataset.theme")
        look.click("#scheme")
        assert look.evaluate("document.documentElement.dataset.theme") != before
        assert not seen.errors
        assert [each for each in seen.requests if not each.startswith(("file:", "blob:", "data:"))] == []


def test_three_studies_are_held_against_the_first(compared) -> None:
    three = compare([*compared.studies, whole_study("third", 0.01)])
    html = page.render(three)
    assert html.count('data-chart="concepts-2-') == 2 and "the others are held against" in html


# A sweep that ran, seen in every way


@pytest.fixture(scope="module")
def swept(model_folder, tmp_path_factory) -> tuple[Path, Result]:
    """A study file whose sweep over two SAEs has run with offline tracking, and what the command printed."""
    root = tmp_path_factory.mktemp("swept")
    neutral = [row["text"] for row in read_jsonl(EMBEDDED / "stories.jsonl") if row["emotion"] in ("alert", "docile")]
    lines = [json.dumps({"kind": "prose", "text": text}) + "\n" for text in neutral[:12]]
    (root / "neutral.jsonl").write_text("".join(lines), encoding="utf-8")
    values = {
        "name": "tiny",
        "cache": str(root / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": list(EMOTIONS), "neutral": str(root / "neutral.jsonl")},
        "activations": {"texts_per_part": 32, "pooled_layers": [0]},
        "sae": {"width": 64, "k": 8, "steps": 30, "batch": 128, "health_rows": 500},
        "match": {"permutations": 99, "random_saes": 2, "contexts": 2},
        "compare": {"null_directions": 99},
        "causal": {"frames": 2, "stories": 1},
        "tracking": {"mode": "offline"},
        "compute": {"threads": 1, "device": "cpu"},
    }
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    stages = ["--stage", "compare", "--stage", "causal"]
    done = CliRunner().invoke(app, ["run", str(path), "sae.k=4,12", "--sweep", *stages], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output + repr(done.exception)
    return path, done


def send(swept: tuple[Path, Result], server: WandbServer, scratch: Path, wanted: Callable[[dict], bool]) -> list[dict]:
    """Sync a copy of the offline runs whose record is wanted, in their order; returns the records with their ids."""
    copy = Path(shutil.copytree(swept[0].parent / "cache" / "wandb", scratch / "wandb"))  # `wandb sync` leaves marks
    records = [json.loads(path.read_text()) | {"id": path.stem} for path in (copy / "runs").glob("*.json")]
    records = sorted(filter(wanted, records), key=lambda record: record["time"])
    for record in records:
        (folder,) = copy.glob(f"wandb/offline-run-*-{record['id']}")
        sync([folder], server, scratch)
    return records


def side_by_side(*words: object) -> Comparison:
    return compare(arguments.read([str(word) for word in words], (), None))


def facts(comparison: Comparison) -> list:
    """What the comparison says of metrics and concepts, whatever the studies are called."""
    content = json.loads(export.as_json(comparison))
    rows = [
        (each["metric"], list(each["values"].values()), list(each["differences"].values()))
        for each in content["metrics"]
    ]
    return [sorted(rows, key=str), {concept: list(each.values()) for concept, each in content["concepts"].items()}]


def test_a_sweep_ends_with_its_comparison(swept) -> None:
    path, done = swept
    for words in ("2 studies", "tiny-k4", "tiny-k12", "sae.k", "AUROC of the best SAE feature", "afraid"):
        assert words in done.stdout
    assert re.search(r": corpus, activations, directions\b", done.stdout), "the stages with one result are listed"
    again = CliRunner().invoke(app, ["compare", str(path), "sae.k=4,12"], env={"COLUMNS": "160"})
    assert again.exit_code == 0
    printed = again.stdout[again.stdout.index("Metrics") :]
    assert printed in done.stdout


def test_the_page_of_a_sweep_has_what_the_terminal_has(swept, tmp_path) -> None:
    study, _ = swept
    path = tmp_path / "sweep.html"
    done = CliRunner().invoke(app, ["compare", str(study), "sae.k=4,12", "--page", str(path)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    html = path.read_text(encoding="utf-8")
    assert {"sae.k", "match/best_feature_auroc", "directions", *EMOTIONS} <= set(re.findall(r"[\w./]+", html))
    refused = CliRunner().invoke(app, ["compare", str(study), "sae.k=4,12", "--page", str(path), "--models"])
    assert "leave --models out" in str(refused.exception)


def test_files_folders_and_groups_say_the_same(swept) -> None:
    path, _ = swept
    cache = path.parent / "cache"
    by_file = side_by_side(path, "sae.k=4,12")
    assert {each.key: list(each.values) for each in by_file.settings} == {"sae.k": [4, 12]}
    assert set(by_file.concepts) == set(EMOTIONS)
    pairs = {each.name: each.differences[1].rule for each in by_file.metrics}
    first, second = (study.per_concept for study in by_file.studies)
    shared = {name for name in first if len(set(first[name]) & set(second.get(name, ()))) >= LEAST_SHARED}
    assert shared
    assert {pairs[name] for name in shared} == {"paired"}
    studies = [Study.load(path, [f"sae.k={k}"]) for k in (4, 12)]
    ends = [[study.folder(stage_named(name)) for study in studies] for name in ("causal", "compare")]
    for folder in (ends[0], [f"{end}/manifest.json" for end in ends[0]]):
        by_folder = side_by_side(*folder)
        assert {each.key: list(each.values) for each in by_folder.settings} == {"sae.k": [4, 12]}
        assert facts(by_folder)[1] == facts(by_file)[1]
        wanted = [each for each in facts(by_file)[0] if not each[0].startswith("compare/")]
        assert facts(by_folder)[0] == wanted
    by_group = compare(arguments.read(["tiny-k4", "tiny-k12"], (), cache / "wandb"))
    wanted = [each for each in facts(by_file)[0] if each[0].startswith(("sae", "match", "causal", "compare"))]
    got = [each for each in facts(by_group)[0] if each[0].startswith(("sae", "match", "causal", "compare"))]
    assert [each[0] for each in got] == [each[0] for each in wanted]
    for ours, theirs in zip(wanted, got, strict=True):
        assert json.dumps(ours) == json.dumps(theirs), ours[0]


def test_the_server_says_the_same_as_the_runs_that_were_synced(swept, monkeypatch, tmp_path) -> None:
    here = swept[0].parent / "cache" / "wandb"
    with WandbServer() as server:
        wanted = ("sae", "match")
        send(swept, server, tmp_path, lambda record: record["group"] == "tiny-k12" and record["stage"] in wanted)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        remote = groups.read("tiny-k12", [tmp_path / "none"])
        assert groups.read("local/affectlens/tiny-k12", [here]).metrics == remote.metrics
        assert server.unknown == []
        with pytest.raises(ConfigError, match=r"tiny-k13: .*none of this name on http"):
            groups.read("tiny-k13", [here])
    local = groups.read("tiny-k12", [here])
    for stage in wanted:
        theirs, ours = remote.results[stage], local.results[stage]
        known = {name: value for name, value in theirs.metrics.items() if value is not None}
        assert known == {
            name: value for name, value in ours.metrics.items() if value is not None and math.isfinite(value)
        }
        assert set(theirs.record) >= {"config", "fingerprint", "versions"}
        for key in set(theirs.record) & set(ours.record) - {"config", "seed", "device"}:
            assert theirs.record[key] == ours.record[key], key
        for name, frame in ours.tables.items():
            pd.testing.assert_frame_equal(theirs.tables[name], frame, check_dtype=False)
    assert remote.per_concept == {name: local.per_concept[name] for name in remote.per_concept}
    assert set(remote.per_concept) == {name for name in local.per_concept if name.partition("/")[0] in wanted}


def test_a_server_that_fails_is_one_sentence(monkeypatch, tmp_path) -> None:
    with WandbServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.refuse = 401
        with pytest.raises(UserError, match=r"tiny-k13.*cannot be asked") as refused:
            groups.read("tiny-k13", [tmp_path / "none"])
    assert "\n" not in str(refused.value)


def test_a_run_whose_result_has_left_the_cache_is_named(swept, tmp_path) -> None:
    place = tmp_path / "cache" / "wandb"
    shutil.copytree(swept[0].parent / "cache" / "wandb" / "runs", place / "runs")
    study = groups.read("tiny-k4", [place])
    assert study.metrics == {}
    assert sum(note.endswith("(no longer in the cache)") for note in study.missing) == len(STAGES)


def test_the_name_of_a_shipped_study_is_that_study_and_a_group_is_named_as_one(swept, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "cache" / "wandb"
    shutil.copytree(swept[0].parent / "cache" / "wandb" / "runs", place / "runs")
    for record in (place / "runs").glob("*.json"):
        record.write_text(record.read_text(encoding="utf-8").replace('"tiny-k4"', '"quickstart"'), encoding="utf-8")
    (study,) = arguments.read(["quickstart"], (), place)
    assert study.source.endswith("quickstart.yaml") and "corpus (missing)" in study.missing
    changed = arguments.read(["quickstart", "sae.k=8,16"], (), place)
    assert [each.name for each in changed] == ["quickstart-k8", "quickstart-k16"]
    (group,) = arguments.read(["wandb:quickstart"], (), place)
    assert group.source.startswith("W&B group") and len(group.results) > 5
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(UserError, match="quickstart"):
        arguments.read(["quickstart"], (), place)  # a folder of that name is that folder, which holds nothing


def test_a_group_that_is_nowhere_names_those_that_are(swept, monkeypatch, tmp_path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"tinny: .*tiny-k12, tiny-k4.*WANDB_API_KEY"):
        groups.read("tinny", [swept[0].parent / "cache" / "wandb"])


def test_unfinished_studies_are_compared_as_far_as_they_are(swept) -> None:
    path, _ = swept
    comparison = side_by_side(path, "sae.k=4,5,12")
    names = [each.name for each in comparison.studies]
    assert names == ["tiny-k4", "tiny-k5", "tiny-k12"]
    assert any(note.startswith("tiny-k5: without sae (missing), match (missing)") for note in comparison.notes)
    row = metric(comparison, "match/best_feature_auroc")
    assert [value is None for value in row.values] == [False, True, False]
    assert [difference is None for difference in row.differences] == [True, True, False]
    assert {each.key: list(each.values) for each in comparison.settings} == {"sae.k": [4, 5, 12]}
    first_unfinished = metric(side_by_side(path, "sae.k=5,4,12"), "match/best_feature_auroc")
    assert first_unfinished.differences == [None, None, None]


def test_the_csv_has_one_row_a_study_and_metric(swept, tmp_path) -> None:
    path, _ = swept
    target = tmp_path / "sweep.csv"
    done = CliRunner().invoke(app, ["compare", str(path), "--set", "sae.k=4,12", "--csv", str(target), "--json", "-"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    with target.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * len(content["metrics"])
    by_key = {(row["study"], row["metric"]): row for row in rows}
    for each in content["metrics"]:
        for study, value in each["values"].items():
            row = by_key[study, each["metric"]]
            assert float(row["value"]) == value["value"]
            assert (row["low"] == "") == (value["low"] is None)
            assert row["group"] == study
            assert row["sae.k"] == study.removeprefix("tiny-k")


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)"])
def test_no_text_of_the_csv_is_a_formula(name: str) -> None:
    studies = [found(name, {"loss": -1.0}, config={"k": name}), found("b", {"loss": -2.0}, config={"k": "plain"})]
    rows = list(csv.DictReader(io.StringIO(export.as_csv(compare(studies)))))
    assert (rows[0]["study"], rows[0]["match.k"], rows[0]["value"]) == (f"'{name}", f"'{name}", "-1.0")
    assert (rows[1]["match.k"], rows[1]["difference"]) == ("plain", "-1.0")


def printed(comparison: Comparison, width: int, *, everything: bool = False) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    tables.show(comparison, everything=everything, console=console)
    return console.export_text()


@pytest.mark.parametrize("values", ["4,12", "4,5,12,6"])
@pytest.mark.parametrize("width", [76, 100, 250])
def test_nothing_is_cut_whatever_the_width(swept, values: str, width: int) -> None:
    comparison = side_by_side(swept[0], f"sae.k={values}")
    text = printed(comparison, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= max(width, max(map(len, comparison.notes)) + 1)
    for concept, rows in comparison.concepts.items():
        assert concept in text
        for value in (rows[0].get(key) for key in ("feature_auroc", "direction_auroc")):
            assert value is None or tables.number(value) in text, concept


def test_all_metrics_can_be_had(swept) -> None:
    comparison = side_by_side(swept[0], "sae.k=4,12")
    assert "--all shows them" in printed(comparison, 160)
    text = printed(comparison, 160, everything=True)
    assert "--all shows them" not in text
    assert all(each.name in text for each in comparison.metrics)


def test_the_tables_of_a_stage_its_charts_and_its_metrics_have_different_names(swept) -> None:
    """In W&B a table and a metric of one name would overwrite each other."""
    study = Study.load(swept[0], ["sae.k=4"])
    for name in STAGES:
        stage = stage_named(name)
        metrics = json.loads((study.folder(stage) / "metrics.json").read_text(encoding="utf-8"))
        charts = [chart.name for table in stage.tables for chart in table.charts]
        names = [*metrics, *(table.name for table in stage.tables), *charts]
        tables_with_a_chart_of_their_name = [table.name for table in stage.tables if table.name in charts]
        assert len(names) - len(set(names)) == len(tables_with_a_chart_of_their_name), name


# What the stages send


def test_stages_form_a_lineage_by_fingerprint_and_send_their_tables(swept, tmp_path) -> None:
    """Activations by reference -> SAE -> match -> causal, from offline runs that were synced."""
    path, _ = swept
    study = Study.load(path, ["sae.k=12"])
    name = {stage: f"{stage}-{study.fingerprint(stage_named(stage))[:16]}" for stage in STAGES}
    with WandbServer() as server:
        # What the second study shares with the first was not computed again, and has runs in its group all the same.
        records = send(swept, server, tmp_path, lambda record: record["group"] == "tiny-k12")
        identity = {record["stage"]: record["id"] for record in records}
        assert set(identity) == {*STAGES, "summary"}
        artifacts = {stage: server.artifact(name[stage]) for stage in STAGES}
        assert [each.version for each in server.artifacts] == [0] * len(server.artifacts)
        runs = server.runs
    for stage, made_from in stage_needs().items():
        assert artifacts[stage].made_by == identity[stage]
        assert sorted(artifacts[stage].metadata["uses"]) == sorted(name[need] for need in made_from)
        assert all(identity[stage] in artifacts[need].used_by for need in made_from)
        assert identity["summary"] in artifacts[stage].used_by
        sent = runs[identity[stage]]
        for table in stage_named(stage).tables:
            assert sent.summary[f"{stage}/{table.name}"]["_type"] == "table-file"
            assert len(table.charts) == 0 or any(
                key.startswith(f"{stage}/{table.charts[0].name}") for key in sent.summary
            )
    activations = artifacts["activations"]
    folder = study.folder(stage_named("activations")).resolve()
    assert activations.files == {}
    record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert {key: entry["digest"] for key, entry in activations.manifest["contents"].items()} == record["files"]
    assert activations.manifest["contents"]["activations.h5"]["ref"] == f"file://{folder / 'activations.h5'}"
    assert set(artifacts["sae"].files) >= {"sae/cfg.json", "sae/sae_weights.safetensors"}
    assert "manifest.json" not in artifacts["sae"].files  # it names the host


def test_online_a_study_that_is_computed_again_adds_no_run_and_no_version(
    study_values, write_study, monkeypatch, caplog
) -> None:
    with WandbServer() as server:
        monkeypatch.delenv("WANDB_MODE", raising=False)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        study = Study.load(write_study({**study_values, "tracking": {"mode": "online"}}))
        for mode in ("cached", "force"):
            runner.run(study, mode=mode, only=["corpus", "activations", "directions"], observer=WandbObserver())
        kinds = sorted(run.fields["jobType"] for run in server.runs.values())
        assert kinds == ["activations", "corpus", "directions", "summary"]
        assert sorted((each.type, each.version) for each in server.artifacts if each.type in STAGES) == [
            ("activations", 0),
            ("corpus", 0),
            ("directions", 0),
        ]
        for artifact in server.artifacts:
            assert artifact.committed
            users = {name for name, run in server.runs.items() if artifact.type in inputs_of(run)}
            if artifact.type in STAGES:
                assert set(artifact.used_by) == users
        assert server.unknown == []
        assert [record for record in caplog.records if record.name == "affectlens.tracking"] == []


def inputs_of(run) -> tuple[str, ...]:
    kind = run.fields["jobType"]
    return STAGES if kind == "summary" else stage_named(kind).needs


def stage_needs() -> dict[str, tuple[str, ...]]:
    return {stage: stage_named(stage).needs for stage in STAGES}


def test_a_large_result_is_recorded_by_reference(swept) -> None:
    from affectlens.run import manifest
    from affectlens.tracking import lineage

    sae = stage_named("sae")
    for limit, reference in ((100, False), (0, True)):
        study = Study.load(swept[0], ["sae.k=4", f"tracking.upload_mb={limit}"])
        record = manifest.read(study.folder(sae))
        assert record is not None
        assert lineage.artifact(study, sae, record).reference is reference


# Mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.yaml", "other.yaml"], "no such file"),
        (["./nothing", "STUDY"], "./nothing: no such file or folder"),
        (["STUDY"], "one study is nothing to compare with"),
        (["sae.k=1,2"], "name at least one"),
        (["CACHE", "sae.k=1,2"], "changes study files, but none is given"),
        (["STUDY", "sae.kk=1,2"], "did you mean `k`"),
        (["CACHE", "STUDY"], "results of stage `causal`; name one of them"),
        (["EMPTY", "STUDY"], "holds no result"),
        (["STUDY", "TEXT"], "not a study file"),
    ],
)
def test_mistakes_are_one_sentence(swept, tmp_path, words, said) -> None:
    path, _ = swept
    (tmp_path / "notes.txt").write_text("?", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    places = {"STUDY": path, "CACHE": path.parent / "cache", "EMPTY": tmp_path / "empty"}
    places["TEXT"] = tmp_path / "notes.txt"
    done = CliRunner().invoke(app, ["compare", *(str(places.get(word, word)) for word in words)])
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_mistake_is_answered_before_anything_heavy_is_imported(swept) -> None:
    code = (
        "import sys\nfrom affectlens import cli\n"
        f"sys.argv = ['affectlens', 'compare', {str(swept[0])!r}, 'sae.kk=1,2']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    print('STATUS', end.code)\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'h5py', 'wandb', 'scipy', 'plotly'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "STATUS 2\nHEAVY []" in done.stdout, done.stdout + done.stderr
