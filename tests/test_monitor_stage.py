"""The stage of the monitor on a tiny model: parts, tables, and refusals before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from affectlens import results
from affectlens.errors import ConfigError
from affectlens.experiments.grade.vote import ModelJudgeConfig
from affectlens.model.config import ModelConfig
from affectlens.model.decoding import Decoder
from affectlens.monitor import tables
from affectlens.monitor.episodes import read_states
from affectlens.monitor.probes import ProbeConfig
from affectlens.probing.control_vectors import unit_rows
from affectlens.stage import Outlook, Setting
from affectlens.stages.monitor import NOTHING, MonitorConfig, MonitorStage
from affectlens.study import Study
from judge_server import Server
from scripted import run_parts

D, LAYER, CONCEPTS = 32, 2, ("calm", "desperate", "happy", "sad")
SAID = ("the", "was", "and", "to", "he", "she", "in", "of", "it", "that", "her", "his")


def write_folder(place: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> None:
    folder = place / name
    folder.mkdir(parents=True)
    texts = {"title": name, "act": "A common word.", "says": "Nothing.", "tokens": 40}
    (folder / "warning.yaml").write_text(yaml.safe_dump({**texts, **config}))
    (folder / "scenarios.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(f"# {name}\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of scenarios, whose act is that a common word is said."""
    place = tmp_path_factory.mktemp("experiments")

    def asked(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    risk = [
        {
            "id": f"risk-{n}",
            "act": "says",
            "messages": asked(f"Count {n} apples. {{situation}}"),
            "twins": {"stressed": "Hurry up!", "calm": "Take your time."},
            "check": {"says": SAID},
        }
        for n in range(8)
    ]
    write_folder(place, "warning_risk", risk, samples=4)
    benign = [
        {
            "id": f"benign-{n}",
            "stratum": "benign",
            "source": ("one", "two")[n % 4 == 3],
            "messages": asked(f"Hello {n}."),
        }
        for n in range(40)
    ]
    write_folder(place, "warning_calm", benign, samples=1)
    hard = [{"id": f"joke-{n}", "stratum": "jokes", "messages": asked(f"A joke about {n}.")} for n in range(4)]
    write_folder(place, "warning_hard", hard, samples=2)
    plain = [{"id": f"plain-{n}", "messages": asked(f"Tell of {n} days.")} for n in range(5)]
    pushes = {"concepts": ["desperate", "sad"], "strengths": [0.0, 0.5], "after": [2, 6]}
    write_folder(place, "warning_onsets", plain, planted=pushes)
    return place


def config(place: Path, **changes: Any) -> MonitorConfig:
    values: dict[str, Any] = {
        "run": ("warning_risk",),
        "benign": ("warning_calm",),
        "negatives": ("warning_hard",),
        "planted": ("warning_onsets",),
        "calming": "calm",
        "folder": place,
        "statistics": ("rolling", "edetector"),
        "targets": (0.1,),
        "probe": ProbeConfig(l2=(0.1,), stride=8),
        "permutations": 19,
        "controls": 2,
        "cuts": 2,
        "continuations": 3,
        "continuation_tokens": 8,
        "scenarios_per_part": 6,
        "least_acts": 5,
        "least_benign": 5,
    }
    return MonitorConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def make(place: Path, model_folder: Callable[[str], Path]) -> Callable[..., MonitorStage]:
    generator = np.random.default_rng(0)
    units = unit_rows(generator.normal(size=(4, D)))
    opened = {
        "directions": SimpleNamespace(concepts=CONCEPTS, layers=(0, LAYER), unit=lambda layer: units),
        "activations": SimpleNamespace(d_model=D, layers=(0, LAYER), mean_norm=lambda layer: 8.0),
        "corpus": SimpleNamespace(emotions=CONCEPTS, documents=()),
        "match": SimpleNamespace(best=np.arange(4)),
        "sae": SimpleNamespace(load=lambda: None, per_token=True),
    }
    folder = model_folder("llama")
    setting = Setting(0, ModelConfig(name=str(folder), layer=LAYER, dtype="float32"), "cpu", 1, folder / "models")

    def stage(**changes: Any) -> MonitorStage:
        return MonitorStage(config(place, **changes), setting, opened)

    return stage


@pytest.fixture(scope="module")
def finished(
    make: Callable[..., MonitorStage], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    out, stage = tmp_path_factory.mktemp("monitor"), make()
    return out, stage.finish(run_parts(stage, out), out)


def test_every_table_is_there_and_says_something(finished: tuple[Path, dict[str, float]]):
    out, metrics = finished
    for table in tables.ALL:
        assert len(results.read(out, table.name)), table.name
    rows = results.read(out, "rows")
    families = {"concept", "axis", "control", "wrong_emotion", "probe", "best", "best_random", "text", "uncertainty"}
    assert families | {"low_layer", "combined", "prompt"} <= set(rows["family"])
    assert set(rows["opening"].dropna()) == {0.5}
    assert "warning_risk.forecaster_within" in metrics
    alarms = results.read(out, "false_alarms")
    assert {"one", "two", "warning_hard"} == set(alarms["source"])
    assert {"benign", "jokes"} == set(alarms["stratum"])
    assert int(results.read(out, "acts")["answers"].to_numpy().sum()) > 100


def test_the_result_holds_rows_and_episodes_for_a_card(finished: tuple[Path, dict[str, float]]):
    opened = MonitorStage.open(finished[0])
    rows, layer = opened.rows()
    assert layer == LAYER
    assert {"desperate", "forecaster", "detector"} <= set(rows.names)
    assert opened.scenarios == ["warning_risk"]
    held = opened.material("warning_calm")
    assert len(held.episodes) == len(opened.written("warning_calm")) > 30
    assert rows.scores(held.states[0]).shape == (held.episodes[0].rows, len(rows))


def test_the_order_of_the_parts_changes_no_byte(
    make: Callable[..., MonitorStage], finished: tuple[Path, dict[str, float]], tmp_path: Path
):
    stage = make()
    again = run_parts(stage, tmp_path, -1)
    for name, part in again.items():
        for file in sorted(part.iterdir()):
            assert file.read_bytes() == (finished[0] / "parts" / name / file.name).read_bytes(), (name, file.name)
    metrics = stage.finish(again, tmp_path)
    assert {name: repr(value) for name, value in metrics.items()} == {n: repr(v) for n, v in finished[1].items()}


def test_a_study_that_names_no_scenarios_has_nothing_to_do(make: Callable[..., MonitorStage], tmp_path: Path):
    stage = make(run=())
    assert [part.name for part in stage.parts()] == [NOTHING]
    assert stage.finish(run_parts(stage, tmp_path), tmp_path) == {}
    assert not len(results.read(tmp_path, "rows"))


def test_fewer_scenarios_are_spread_over_the_file_and_parts_read_what_they_say(make: Callable[..., MonitorStage]):
    stage = make(scenarios=2, scenarios_per_part=1)
    ids = [part.payload["scenarios"] for part in stage.parts() if part.payload["folder"] == "warning_risk"]
    assert ids == [["risk-0"], ["risk-4"]]
    part = stage.parts()[0]
    one, other = (
        make(scenarios=2, scenarios_per_part=1, targets=(0.2,)),
        make(scenarios=2, scenarios_per_part=1, cuts=3),
    )
    assert stage.part_reads(part) == one.part_reads(part) != other.part_reads(part)


def test_answers_are_steered_from_their_onset_on_and_read_as_they_were_steered(
    make: Callable[..., MonitorStage], finished: tuple[Path, dict[str, float]]
):
    planted = MonitorStage.open(finished[0]).material("warning_onsets")
    versions = {each.twin for each in planted.episodes}
    assert versions == {f"{concept}@{strength}" for concept in ("desperate", "sad") for strength in ("0", "0.5")}
    stage = make()
    subject = stage._subject(stage._folder("warning_onsets"))
    read = dict(read_states(Decoder.of(subject), planted.episodes, [LAYER]))
    for number, episode in enumerate(planted.episodes):
        assert episode.act is not None and 2 <= episode.act <= 6 and episode.stratum == "planted"
        own = planted.states[number] - read[number].residuals[LAYER].numpy()
        size = np.linalg.norm(own, axis=1)
        assert np.allclose(size[: episode.act + 1], 0, atol=1e-4)
        assert np.allclose(size[episode.act + 1 :], 4.0 if episode.twin.endswith("0.5") else 0.0, atol=1e-3)
    table = results.read(finished[0], "planted")
    assert set(table["concept"]) == {"desperate", "sad"} and set(table["strength"]) == {0.0, 0.5}
    assert set(results.read(finished[0], "stepping_in")["way"]) == {"stop", "calm"}


def test_a_judge_reads_the_text_so_far_every_few_tokens(make: Callable[..., MonitorStage], tmp_path: Path):
    """Its vote stands until it is asked again, and becomes a column and a way to step in."""

    def reply(question: str, count: int) -> str:
        answer = question.partition("Answer so far:")[2].partition("Is it about to give up")[0]
        return "yes" if " the" in answer else "no"

    server = Server(reply)
    try:
        judge = ModelJudgeConfig(name="served", model="any", address=server.address)
        few = {"scenarios": 2, "negatives": (), "planted": (), "calming": None, "resampled": 0}
        stage = make(judge=judge, judge_every=10, **few)
        parts = run_parts(stage, tmp_path)
        stage.finish(parts, tmp_path)
    finally:
        server.close()
    held = MonitorStage.open(tmp_path).material("warning_risk")
    asked = 0
    tokenizer = stage._subject(stage._folder("warning_risk")).tokenizer
    for episode, votes in zip(held.episodes, held.plain["judge", "judge"], strict=True):
        assert set(votes[:10]) == {0.5}
        for row in range(10, episode.rows, 10):
            said = " the" in " " + tokenizer.decode(episode.answer[:row], skip_special_tokens=True)
            assert set(votes[row : row + 10]) == {float(said)}
            asked += 1
    assert 0 < asked <= len(server.bodies)
    rows, stepping = results.read(tmp_path, "rows"), results.read(tmp_path, "stepping_in")
    assert set(rows[rows["family"] == "judge"]["row"]) == {"judge"}
    assert {"stop", "judge"} == set(stepping["way"])


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"run": ["warning_organsm"]}, "no folder of scenarios has this name"),
        ({"run": ["warning_planted"]}, "onsets of steering"),
        ({"run": ["warning_organism"], "planted": ["warning_natural"]}, "nothing is steered there"),
        ({"run": ["warning_organism"], "planted": ["warning_planted"]}, "steers along `desperate`.*no such concept"),
        ({"run": ["warning_organism"], "calming": "clam"}, "steers along `clam`.*did you mean `calm`"),
        ({"run": ["warning_organism"], "benign": ["warning_organism"]}, "stands in two of"),
        ({"run": ["warning_organism"], "statistics": ["cusum"]}, "lacks `rolling`"),
        ({"run": ["warning_organism"], "targets": []}, "targets"),
    ],
)
def test_a_wrong_section_is_refused_before_anything_runs(
    study_values: dict, write_study: Callable[[dict], Path], section: dict[str, Any], said: str
):
    study_values["monitor"] = section
    with pytest.raises(ConfigError, match=said):
        Study.load(write_study(study_values))


def test_a_study_of_all_emotions_has_the_one_that_is_steered_along(
    study_values: dict, write_study: Callable[[dict], Path]
):
    study_values["corpus"] = {"emotions": "all"}
    study_values["monitor"] = {"run": ["warning_organism"], "planted": ["warning_planted"]}
    settings: Any = Study.load(write_study(study_values)).config
    assert settings.monitor.planted == ("warning_planted",)


def test_a_lexicon_that_is_installed_is_part_of_what_a_study_reads(place: Path, monkeypatch: pytest.MonkeyPatch):
    study: Any = SimpleNamespace(monitor=config(place))
    found = []
    for lexicon in (None, "3.3.2"):
        monkeypatch.setattr("affectlens.stages.monitor.installed_lexicon", lambda lexicon=lexicon: lexicon)
        found.append(MonitorStage.identities(study))
    assert {**found[0], "vaderSentiment": "3.3.2"} == found[1] != found[0]


def test_parts_are_planned_before_anything_is_there(place: Path, make: Callable[..., MonitorStage]):
    planned = MonitorStage(config(place), make().setting, {}, Outlook((), (LAYER,), D))
    assert [part.name for part in planned.parts()] == [part.name for part in make().parts()]
