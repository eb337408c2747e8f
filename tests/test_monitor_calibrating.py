"""A study's monitor on the user's own episodes: cards with thresholds, figures on others, and refusals by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from affectlens.errors import ConfigError, UserError
from affectlens.monitor.calibration import read_card, write_card
from affectlens.monitor.episodes import Written, read_episodes, write_episodes
from affectlens.monitor.statistics import StatisticConfig
from affectlens.use.calibrating import Asked, calibrate, evaluate
from affectlens.use.opened import Opened, finished
from test_monitor_stage import config, place  # noqa: F401 - the fixture


@pytest.fixture(scope="module")
def study(
    place: Path,  # noqa: F811
    model_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Opened:
    """A study of the tiny model whose monitor is finished."""
    import affectlens

    folder = tmp_path_factory.mktemp("calibrating")
    monitor = config(place).model_dump(mode="json", exclude_defaults=True) | {"folder": str(place)}
    values = {
        "name": "tiny",
        "cache": str(folder / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": ["afraid", "calm", "desperate", "sad"]},
        "activations": {"pooled_layers": [0]},
        "sae": {"width": 64, "k": 8, "steps": 10, "batch": 64, "health_rows": 200, "health_texts": 1},
        "match": {"permutations": 20, "random_saes": 1},
        "monitor": monitor,
        "tracking": {"mode": "disabled"},
        "compute": {"threads": 1, "device": "cpu"},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(values))
    affectlens.run_study(folder / "study.yaml", stages=["monitor"])
    return Opened(*finished(folder / "study.yaml"))


def own(count: int) -> list[Written]:
    asked = [({"role": "user", "content": f"Tell me about {n}."},) for n in range(count)]
    return [
        Written(name=f"o{n}", scenario=f"o{n}", messages=each, answer="Well, it is. " * 4)
        for n, each in enumerate(asked)
    ]


def test_the_studys_own_benign_episodes_give_a_card_and_none_that_trained_it(study: Opened, tmp_path: Path):
    card = calibrate(study, Asked(rows=("forecaster", "desperate"), target=0.1))
    write_card(tmp_path / "card.json", card)
    assert read_card(tmp_path / "card.json") == card
    result = study.result("monitor")
    sources = {each.source for each in result.written("warning_calm") if each.name in result.fitted()}
    usable = [e for e in result.written("warning_calm") if e.source in sources and e.name not in result.fitted()]
    assert sum(bucket.episodes for bucket in card.rows[0].buckets) == len(usable)
    assert [row.name for row in card.rows] == ["forecaster", "desperate"]


@pytest.mark.parametrize("kind", ["rolling", "own_start", "cusum", "edetector"])
def test_on_the_episodes_that_set_it_a_threshold_is_passed_by_no_more_than_the_target(study: Opened, kind: str):
    rows = own(20)
    asked = Asked(target=0.1, statistic=StatisticConfig(kind=kind))  # pyright: ignore[reportArgumentType]
    card = calibrate(study, asked, rows, "mine")
    (found,) = evaluate(study, card, rows)
    assert found["flagged"] <= 0.1
    assert card.source == "mine"


def test_answers_that_lack_are_sampled(study: Opened):
    bare = [row.model_copy(update={"answer": ""}) for row in own(12)]
    card = calibrate(study, Asked(target=0.1, tokens=12), bare)
    assert card.rows[0].buckets[0].episodes >= 10


def test_acts_are_counted_apart_from_false_alarms(study: Opened, tmp_path: Path):
    rows = own(12)
    card = calibrate(study, Asked(target=0.1), rows)
    risky = [row.model_copy(update={"stratum": "risk", "act": 20, "name": f"r{n}"}) for n, row in enumerate(rows[:5])]
    write_episodes(tmp_path / "own.jsonl", [*rows, *risky])
    found = evaluate(study, card, read_episodes(tmp_path / "own.jsonl"))
    by_stratum = {each["stratum"]: each for each in found}
    assert by_stratum["benign"]["acts"] == 0 and by_stratum["benign"]["caught"] is None
    assert by_stratum["risk"]["acts"] == 5 and by_stratum["risk"]["flagged"] is None
    assert 0 <= by_stratum["risk"]["caught"] <= 1


def test_a_card_streams_as_it_was_calibrated(study: Opened):
    """The scores and values of a watched stream are those of the batch."""
    from affectlens.monitor.episodes import read_states, tokenised
    from affectlens.monitor.statistics import follow
    from affectlens.monitor.watching import Watch
    from affectlens.use.calibrating import read_scores

    rows = own(12)
    card = calibrate(study, Asked(rows=("forecaster", "calm"), target=0.1), rows)
    monitor_rows, layer = study.result("monitor").rows()
    _, (scores,) = read_scores(study, monitor_rows.only(["forecaster", "calm"]), layer, rows[:1])
    batch = follow(card.statistic, scores[None], np.array([len(scores)]))[0]
    watch = Watch(card)
    ((_, states),) = read_states(study.decoder, [tokenised(study.tokenizer, rows[0])], [layer])
    live = np.stack([watch.feed(state).values for state in states.residuals[layer]])
    np.testing.assert_allclose(live, batch, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "other"}, "another model"),
        ({"template": "x"}, "another chat template"),
        ({"dtype": "bfloat16"}, "another number type"),
        ({"layer": 1}, "another layer"),
    ],
)
def test_a_card_of_something_else_is_refused_by_name(study: Opened, changed: dict, said: str):
    card = calibrate(study, Asked(target=0.1), own(12))
    with pytest.raises(UserError, match=said):
        evaluate(study, card.model_copy(update=changed), own(2))


def test_what_cannot_be_calibrated_is_refused(study: Opened):
    with pytest.raises(UserError, match="needs at least 99 benign episodes, and there are 12"):
        calibrate(study, Asked(target=0.01), own(12))
    with pytest.raises(UserError, match="no such row"):
        calibrate(study, Asked(rows=("forcaster",), target=0.1), own(12))
    risky = own(12)
    risky[3] = risky[3].model_copy(update={"act": 3})
    with pytest.raises(UserError, match="`o3` is not benign"):
        calibrate(study, Asked(target=0.1), risky)


def test_the_commands_say_what_they_found(study: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from affectlens.everyday.calibrating import calibrate as command
    from affectlens.everyday.calibrating import evaluate as evaluating

    assert study.study is not None
    source = next(Path(study.study.config.cache).parent.glob("study.yaml"))
    write_episodes(tmp_path / "own.jsonl", own(12))
    command(source, tmp_path / "card.json", tmp_path / "own.jsonl", ["forecaster"], 0.1)
    evaluating(source, tmp_path / "card.json", tmp_path / "own.jsonl", 128, tmp_path / "found.json")
    said = capsys.readouterr().out
    assert "forecaster: alarm above" in said and "raise an alarm (target 0.1)" in said
    assert json.loads((tmp_path / "found.json").read_text())[0]["episodes"] == 12
    with pytest.raises(ConfigError, match="--statistic ema"):
        command(source, tmp_path / "card.json", None, None, 0.1, "ema")
