"""Answers watched by a monitor while they are served: as when they are read, streamed or not, and on the live page."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import affectlens
import numpy as np
import pytest
from affectlens.errors import UserError
from affectlens.monitor.calibration import write_card
from affectlens.use.monitor import Monitor, identity
from watching import card_of

pytest.importorskip("uvicorn")

from affectlens.serve.command import serve
from affectlens.serve.service import Limits, Service
from serving import serving

ASKED = [{"role": "user", "content": "Who is at the door?"}]


@pytest.fixture(scope="module")
def study(computed_study):
    return affectlens.open_study(computed_study)


@pytest.fixture(scope="module")
def monitor(study):
    """Rows are the concepts, on the scale of some of the model's own answers; thresholds are passed now and then."""
    plain = Monitor(card_of(study.directions(), 1e9, **identity(study)), study)
    *_, answer = plain.answer(ASKED, tokens=40, temperature=1.0)
    mean, deviation = np.mean(answer.scores, axis=0), np.std(answer.scores, axis=0)
    return Monitor(card_of(study.directions(), 0.2, mean=mean, deviation=deviation, **identity(study)), study)


@pytest.fixture(scope="module")
def address(study, monitor):
    service = Service(study, Limits(), monitor)
    with serving(service) as address:
        yield address
    service.close()


def post(address: str, **body):
    values = {"model": "tiny", "messages": ASKED, "max_tokens": 30, "seed": 3} | body
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(values).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        return reply.read().decode()


def test_a_served_answer_has_the_values_and_alarms_of_the_same_draws_watched_here(address, monitor):
    reply = json.loads(post(address, affectlens={"monitor": ["calm", "sad"]}))
    own = reply["choices"][0]["affectlens"]
    live = Monitor(monitor.card, monitor.study, ["calm", "sad"]).begin(ASKED, most=30)
    draws, special = np.random.default_rng([3, 0, 0]), monitor.study.tokenizer.all_special_ids
    pieces, values, told = [], [], [[0, monitor.names[row]] for row in live.seen.alarms]
    for _ in range(30):
        token = live.drawn(draws.random(), 1.0)
        if token in special:
            break
        live.token(token)
        pieces.append(live.piece)
        values.append(live.seen.values)
        told += [[live.seen.token, monitor.names[row]] for row in live.seen.alarms]
    assert own["tokens"] == pieces
    for name in ("calm", "sad"):
        expected = np.array(values)[:, monitor.index(name)]
        np.testing.assert_allclose(own["monitor"]["values"][name], expected, atol=1e-2)
    assert own["monitor"]["alarms"] == told != []
    assert reply["affectlens"]["monitor"]["thresholds"] == {"calm": 0.2, "sad": 0.2}
    plain = json.loads(post(address))["choices"][0]
    assert plain["message"] == reply["choices"][0]["message"] and "affectlens" not in plain


def test_a_stream_says_what_the_whole_reply_says(address):
    asked = {"monitor": ["calm"], "readings": ["calm"]}
    whole = json.loads(post(address, affectlens=asked))["choices"][0]["affectlens"]
    lines = post(address, affectlens=asked, stream=True).split("\n\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    parts = [event["choices"][0].get("affectlens", {}) for event in events]
    watched = [part["monitor"] for part in parts if "monitor" in part]
    assert [v for part in watched for v in part["values"]["calm"]] == whole["monitor"]["values"]["calm"]
    assert [each for part in watched for each in part["alarms"]] == whole["monitor"]["alarms"]
    assert [v for part in parts for v in part.get("readings", {}).get("calm", [])] == whole["readings"]["calm"]
    assert events[0]["affectlens"]["monitor"]["thresholds"] == {"calm": 0.2}


def test_rows_are_watched_alone_and_together_alike(address):
    together = json.loads(post(address, affectlens={"monitor": ["calm", "sad"]}))["choices"][0]["affectlens"]["monitor"]
    alone = json.loads(post(address, affectlens={"monitor": ["sad"]}))["choices"][0]["affectlens"]["monitor"]
    assert alone["values"]["sad"] == together["values"]["sad"]
    assert alone["alarms"] == [each for each in together["alarms"] if each[1] == "sad"]


def test_models_name_what_can_be_watched(address, monitor):
    with urllib.request.urlopen(f"{address}/v1/models") as reply:
        card = json.loads(reply.read())["data"][0]["affectlens"]["monitor"]
    assert card["rows"] == monitor.names and card["target"] == 0.05 and card["statistic"]["kind"] == "rolling"


def test_an_unknown_row_and_a_server_without_a_card_refuse_by_name(address, study):
    for asked, said in ((["clam"], "did you mean `calm`"), (["calm"], "without --monitor")):
        service = None
        try:
            if said == "without --monitor":
                service = Service(study, Limits())
                with serving(service) as bare, pytest.raises(urllib.error.HTTPError) as error:
                    post(bare, affectlens={"monitor": asked})
            else:
                with pytest.raises(urllib.error.HTTPError) as error:
                    post(address, affectlens={"monitor": asked})
        finally:
            if service is not None:
                service.close()
        fault = json.loads(error.value.read())["error"]
        assert error.value.code == 400 and fault["param"] == "affectlens.monitor" and said in fault["message"]


def test_a_card_of_another_model_is_refused_before_anything_is_loaded(study, tmp_path):
    other: Any = identity(study) | {"model": "other"}
    write_card(tmp_path / "card.json", card_of(study.directions(), 1.0, **other))
    with pytest.raises(UserError, match="another model"):
        serve(study, host="127.0.0.1", port=0, limits=Limits(), say=print, monitor=tmp_path / "card.json")
