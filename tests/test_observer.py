"""A study tells its observers what happens to its results, and no observer can stop it."""

from __future__ import annotations

import pytest
from affectlens.errors import PartFailed
from affectlens.run import runner
from affectlens.run.observer import Observer
from affectlens.stages.corpus import CorpusStage
from affectlens.study import Study


class Notes(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple] = []

    def stage_started(self, study, stage, total) -> None:
        assert total > 0
        self.heard.append(("started", stage.name))

    def advanced(self, units) -> None:
        self.heard.append(("advanced", units))

    def stage_finished(self, study, stage, record, metrics, folder, *, computed) -> None:
        assert record["fingerprint"] == study.fingerprint(stage)
        assert (folder / "metrics.json").is_file()
        self.heard.append(("finished", stage.name, computed, metrics))

    def stage_failed(self, study, stage, error) -> None:
        self.heard.append(("failed", stage.name, type(error)))

    def study_finished(self, study, outcomes) -> None:
        self.heard.append(("study finished", [outcome.stage for outcome in outcomes]))

    def close(self) -> None:
        self.heard.append(("closed",))


@pytest.fixture
def study(study_values, write_study) -> Study:
    return Study.load(write_study(study_values))


def test_an_observer_learns_what_was_computed_and_what_was_there(study):
    notes = Notes()
    outcomes = runner.run(study, only=["corpus"], observer=notes)
    assert notes.heard[0] == ("started", "corpus")
    ending = [("study finished", ["corpus"]), ("closed",)]
    assert notes.heard[-3:] == [("finished", "corpus", True, outcomes[0].metrics), *ending]
    again = Notes()
    runner.run(study, only=["corpus"], observer=again)
    assert again.heard == [("finished", "corpus", False, outcomes[0].metrics), *ending]


def test_an_observer_learns_of_a_failure(study, monkeypatch):
    def fail(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(CorpusStage, "run_part", fail)
    notes = Notes()
    with pytest.raises(PartFailed):
        runner.run(study, only=["corpus"], observer=notes)
    assert notes.heard == [("started", "corpus"), ("failed", "corpus", PartFailed), ("closed",)]


def test_an_observer_that_raises_stops_nothing_and_is_named_once(study, caplog):
    class Broken(Observer):
        def stage_started(self, study, stage, total):
            raise RuntimeError("planted start")

        def advanced(self, units):
            raise MemoryError("planted progress")

        def stage_finished(self, study, stage, record, metrics, folder, *, computed):
            raise OSError("planted end")

        def study_finished(self, study, outcomes):
            raise OSError("planted summary")

        def close(self):
            raise OSError("planted close")

    outcomes = runner.run(study, only=["activations"], observer=Broken())
    assert {outcome.state for outcome in outcomes} == {"computed"}
    messages = [record.message for record in caplog.records if record.name == "affectlens.run"]
    assert sorted(message.split(" ")[0] for message in messages) == [
        "Broken.advanced",
        "Broken.close",
        "Broken.stage_finished",
        "Broken.stage_started",
        "Broken.study_finished",
    ]
