"""What a change of the study file computes again: parts are keyed by what they read, results by everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from affectlens.config import left_out
from affectlens.run import runner
from affectlens.run.workspace import Workspace
from affectlens.stage import Stage
from affectlens.study import STAGES, Study

ALL = {stage.name for stage in STAGES}


def after(*names: str) -> set[str]:
    """These stages and all that need them, directly or through others."""
    reached = set(names)
    for stage in STAGES:
        if set(stage.needs) & reached:
            reached.add(stage.name)
    return reached


def readers(name: str) -> set[str]:
    """Stages whose parts read nothing that the merge-only fields of a stage decide, directly or through others."""
    found = {name}
    for stage in STAGES:
        if stage.keeps_parts and found & set(stage.needs) and found & set(stage.needs) <= set(stage.measured_needs):
            found.add(stage.name)
    return found


def changes(before: Study, changed: Study) -> tuple[set[str], set[str]]:
    """Stages whose parts are computed again, and those whose merge is."""
    merges = {stage.name for stage in STAGES if before.fingerprint(stage) != changed.fingerprint(stage)}
    alike = {
        stage.name
        for stage in STAGES
        if stage.keeps_parts and before.fingerprint(stage, measured=True) == changed.fingerprint(stage, measured=True)
    }
    return merges - alike, merges


@pytest.mark.parametrize(
    ("override", "parts", "merges"),
    [
        # Nothing that says where or how wide the work runs, or what is sent where, decides a result.
        ("compute.workers=4", set(), set()),
        ("cluster.default.gpus=1", set(), set()),
        ("tracking.tags=[new]", set(), set()),
        ("name=other", set(), set()),
        # What parts read reaches every stage that needs theirs.
        ("seed=1", after("sae", "directions"), after("sae", "directions")),
        ("model.layer=1", after("activations"), after("activations")),
        ("corpus.ngram=9", ALL, ALL),
        ("corpus.emotions=[afraid, calm, proud]", ALL, ALL),
        ("activations.first_token=40", after("activations"), after("activations")),
        ("sae.k=9", after("sae"), after("sae")),
        ("directions.neutral_variance=0.4", after("directions"), after("directions")),
        ("match.pooling=max", after("match"), after("match")),
        ("compare.null_directions=99", after("compare"), after("compare")),
        ("geometry.shuffles=19", after("geometry"), after("geometry")),
        ("causal.strengths=[0.1, 0.2]", after("causal"), after("causal")),
        ("report.title=New", {"report"}, {"report"}),
        # What the merge alone reads leaves the parts as they are, and those of stages that read nothing of it.
        ("directions.words=5", after("directions") - readers("directions"), after("directions")),
        ("corpus.test_topics=[exam]", ALL - {"corpus", "activations"}, ALL),
        ("directions.export=[npz]", after("directions") - readers("directions"), after("directions")),
        ("match.permutations=99", after("match") - readers("match"), after("match")),
        ("match.contexts=2", after("match") - readers("match"), after("match")),
        ("match.probe_sizes=[1, 3]", after("match") - readers("match"), after("match")),
        ("causal.level=0.01", after("causal") - {"causal"}, after("causal")),
        ("causal.perplexity_limit=2.0", after("causal") - {"causal"}, after("causal")),
    ],
)
def test_a_change_computes_just_what_reads_it(study_values, write_study, override, parts, merges):
    path = write_study(study_values)
    again, merged = changes(Study.load(path), Study.load(path, [override]))
    assert again == parts
    assert merged == merges


def test_causal_measures_nothing_again_for_what_only_merges_read(study_values, write_study):
    path = write_study(study_values)
    for override in ("match.permutations=99", "directions.words=5", "causal.level=0.01"):
        again, merged = changes(Study.load(path), Study.load(path, [override]))
        assert "causal" in merged - again


def test_merge_only_fields_are_of_stages_that_keep_their_parts():
    for stage in STAGES:
        fields = left_out(stage.config_class, measured=True) - left_out(stage.config_class, measured=False)
        assert not fields or stage.keeps_parts, stage.name
        assert set(stage.measured_needs) <= set(stage.needs), stage.name


def part_times(study: Study, stage: type[Stage]) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in study.folder(stage).glob("parts/*/*.safetensors")}


def records(study: Study, stage: type[Stage]) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(study.folder(stage).glob("parts/*/part.json"))]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name not in ("manifest.json", "part.json")
    }


@pytest.mark.parametrize("override", ["directions.words=3", "directions.export=[npz]"])
def test_a_merge_only_change_repeats_the_merge_of_the_same_parts(study_values, write_study, override):
    path = write_study(study_values)
    before, changed = Study.load(path), Study.load(path, [override])
    directions = before.stage_named("directions")
    runner.run(before, only=["directions"])
    runner.run(changed, only=["directions"])
    assert before.folder(directions) != changed.folder(directions)
    assert part_times(before, directions) == part_times(changed, directions) != {}
    assert {record["adopted"] for record in records(changed, directions)} == {before.folder(directions).name}
    alone = Study.load(path, [override, f"cache={path.parent / 'alone'}"])
    runner.run(alone, only=["directions"])
    assert contents(alone.folder(directions)) == contents(changed.folder(directions))


def test_a_forced_stage_and_a_damaged_part_take_nothing_over(study_values, write_study):
    path = write_study(study_values)
    before, forced, repaired = (Study.load(path, [f"directions.words={words}"]) for words in (10, 3, 4))
    directions = before.stage_named("directions")
    runner.run(before, only=["directions"])
    runner.run(forced, only=["directions"], mode="force")
    assert not any("adopted" in record for record in records(forced, directions))
    for study in (before, forced):
        damaged = sorted(study.folder(directions).glob("parts/*/*.safetensors"))[0]
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    runner.run(repaired, only=["directions"])
    assert Workspace(repaired, directions).complete
    assert ["adopted" in record for record in records(repaired, directions)].count(False) == 1
