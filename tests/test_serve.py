"""The server: OpenAI's own client chats, streams, scores and steers; what cannot be honoured is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import affectlens
import httpx
import numpy as np
import pytest
import torch
from affectlens.serve.engine import Engine, Full, nucleus
from affectlens.serve.generation import End, Failure, Job, Prompt, Token
from affectlens.serve.service import Limits, Service
from affectlens.use.steering import Vectors, pushes
from serving import serving
from tiny import EMOTIONS

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

LIMITS = Limits(rows=8, waiting=12, tokens=400, body=20_000, seconds=0.5)
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "The letter came this morning."}]
PUSH = {"vectors": {"calm": 2.0, "sad": -0.5}, "readings": ["calm", "sad"]}


@pytest.fixture(scope="module")
def study(computed_study) -> affectlens.OpenStudy:
    return affectlens.open_study(computed_study)


@pytest.fixture(scope="module")
def service(study) -> Iterator[Service]:
    service = Service(study, LIMITS)
    yield service
    service.close()


@pytest.fixture(scope="module")
def address(service) -> Iterator[str]:
    with serving(service) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client, **options):
    options = {"model": "tiny", "messages": CHAT, "max_tokens": 12, "seed": 3, **options}
    return client.chat.completions.create(**options)


def plainly(study, prompt: list[int], draws: np.ndarray, vectors: dict[str, float]) -> list[int]:
    """The same answer by the sampler that studies use."""
    from affectlens.model.sampling import sample
    from affectlens.use.steering import Recipe

    edits = Vectors(study).edits([Recipe(pushes(vectors))]) if vectors else []
    return sample(study.subject, [prompt], draws[None, None], edits)[0][0].tokens


@pytest.mark.parametrize("vectors", [{}, {"calm": 2.0, "sad": -0.5}])
def test_an_answer_is_what_the_studies_sampler_says(study, client, vectors):
    """So every token of it is steered: that sampler is held to it by its own tests."""
    text = study.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    prompt = study.tokenizer(text, add_special_tokens=False)["input_ids"]
    reply = chat(client, extra_body={"affectlens": {"vectors": vectors}})
    draws = np.random.default_rng([3, 0, 0]).random(12)
    expected = plainly(study, prompt, draws, vectors)
    assert reply.choices[0].message.content == study.tokenizer.decode(expected)
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.completion_tokens == len(expected)


def test_the_prompt_alone_steered_says_something_else(study, client):
    """Were only the prompt pushed, the answer would differ: the last test can fail."""
    from affectlens.model.sampling import sample
    from affectlens.model.steering import Edit, Span
    from affectlens.use.steering import Recipe

    text = study.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    prompt = study.tokenizer(text, add_special_tokens=False)["input_ids"]
    (edit,) = Vectors(study).edits([Recipe(pushes({"calm": 2.0}))])
    short = Edit(edit.layer, edit.delta, span=Span.prompt([len(prompt)], 0))
    draws = np.random.default_rng([3, 0, 0]).random(40)
    tokens = sample(study.subject, [prompt], draws[None, None], [short])[0][0].tokens
    reply = chat(client, max_tokens=40, extra_body={"affectlens": {"vectors": {"calm": 2.0}}})
    assert reply.choices[0].message.content != study.tokenizer.decode(tokens)


def test_streamed_and_whole_are_the_same(client):
    options = {"logprobs": True, "top_logprobs": 2, "n": 2, "extra_body": {"affectlens": {**PUSH, "prompt": True}}}
    whole = chat(client, **options)
    assert whole.affectlens["vectors"] == PUSH["vectors"]
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **options))
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        mine = [each.choices[0] for each in chunks[:-1] if each.choices[0].index == choice.index]
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        assert [each.finish_reason for each in mine if each.finish_reason] == [choice.finish_reason]
        scores = [score for each in mine if each.logprobs for score in each.logprobs.content]
        assert [score.token for score in scores] == [score.token for score in choice.logprobs.content]
        own = [each.affectlens for each in mine if "readings" in (getattr(each, "affectlens", None) or {})]
        for name in PUSH["readings"]:
            read = [value for each in own for value in each["readings"][name]]
            assert read == pytest.approx(choice.affectlens["readings"][name], abs=1e-4)
        assert [token for each in own for token in each["tokens"]] == choice.affectlens["tokens"]
        assert mine[0].affectlens["prompt"]["tokens"] == choice.affectlens["prompt"]["tokens"]
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_readings_are_those_of_the_same_chat_read_by_the_study(study, client):
    """Of the prompt and of the answer; the push itself is not in them."""
    reply = chat(client, extra_body={"affectlens": {**PUSH, "prompt": True}}, max_tokens=30)
    own = reply.choices[0].affectlens
    read = study.read([*CHAT, {"role": "assistant", "content": reply.choices[0].message.content}])
    asked = read[read["role"] != "assistant"]
    assert own["prompt"]["tokens"] == list(asked["token"])
    for name in PUSH["readings"]:
        np.testing.assert_allclose(own["prompt"]["readings"][name], asked[name], atol=2e-4)
    answer = read[read["role"] == "assistant"]
    if list(answer["token"]) == own["tokens"]:  # what was sampled need not be how the text is tokenised
        np.testing.assert_allclose(own["readings"]["calm"], answer["calm"], atol=2e-4)


def test_sampled_tokens_read_as_the_text_that_they_are(study, service):
    """The states are those of the unsteered model at the very tokens that were said under steering."""
    from affectlens.model.reading import Site, read

    prompt = tuple(study.subject.led(study.subject.encode("We walked home through")))
    from affectlens.use.steering import Recipe

    edits = Vectors(study).edits([Recipe(pushes({"calm": 2.0}))])
    job = Job(prompt, edits=edits, most=20, seed=1, rows=(0, 3))
    tokens = [event for event in service.engine.events(job) if isinstance(event, Token)]
    ids = [*prompt, *(token.id for token in tokens)]
    ((_, values),) = read(study.subject, [ids], [Site(study.layer)])
    expected = service.readings.values(values[Site(study.layer)][len(prompt) :])[:, [0, 3]]
    np.testing.assert_allclose(
        np.stack([token.values for token in tokens if token.values is not None]), expected, atol=1e-5
    )


def test_a_cap_holds_what_is_read_above_it(study, client):
    """Capped far below what is there, the answer changes; capped above everything, it does not."""
    plain = chat(client, max_tokens=30).choices[0].message.content
    high, low = (
        chat(client, max_tokens=30, extra_body={"affectlens": {"cap": {"calm": value}}}).choices[0].message.content
        for value in (4.0, -3.0)
    )
    assert high == plain != low


def test_log_probabilities_are_the_models(study, client):
    reply = chat(client, logprobs=True, top_logprobs=3, temperature=0)
    text = study.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    ids = study.tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = study.subject.log_probabilities(torch.tensor([ids]))[0, -1]
    first = reply.choices[0].logprobs.content[0]
    assert first.logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert [best.logprob for best in first.top_logprobs] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)


def test_echo_scores_the_prompt_as_it_is_given(study, client):
    ids = study.subject.led(study.subject.encode("The cat sat on the mat"))
    reply = client.completions.create(
        model="tiny", prompt=[ids, ids[:4]], max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    expected = study.subject.log_probabilities(torch.tensor([ids]))[0]
    for choice, length in zip(reply.choices, (len(ids), 4), strict=True):
        scores = choice.logprobs.token_logprobs
        assert scores[0] is None and len(scores) == length + 1
        wanted = [float(expected[place, ids[place + 1]]) for place in range(length - 1)]
        assert scores[1:length] == pytest.approx(wanted, abs=1e-4)
        assert choice.text.startswith(study.tokenizer.decode(ids[:length]))
    assert max(reply.choices[0].logprobs.top_logprobs[-1].values()) == reply.choices[0].logprobs.token_logprobs[-1]
    none = client.completions.create(model="tiny", prompt="The cat", max_tokens=0, logprobs=0, echo=True)
    assert none.choices[0].text == "The cat" and none.usage.completion_tokens == 0


def test_a_stop_string_ends_the_text_and_is_not_in_it(client):
    free = chat(client, max_tokens=40).choices[0].message.content
    for stop in (free[5:7], free[9:14]):
        whole = chat(client, max_tokens=40, stop=[stop, "never said"])
        assert whole.choices[0].message.content == free[: free.index(stop)]
        assert whole.choices[0].finish_reason == "stop"
        chunks = chat(client, max_tokens=40, stop=stop, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == free[: free.index(stop)]


def test_many_at_once_say_what_each_says_alone(client):
    from concurrent.futures import ThreadPoolExecutor

    wanted = [
        {"seed": seed, "max_tokens": 8 + seed, "extra_body": {"affectlens": {"vectors": {"calm": seed / 3}}}}
        for seed in range(10)
    ]
    alone = [chat(client, **options).choices[0].message.content for options in wanted]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda options: chat(client, **options).choices[0].message.content, wanted))
    assert together == alone


def test_who_goes_away_is_not_answered_any_more(address, service):
    """Streamed and whole: the rows are free again long before the answer would have ended."""
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 400, "temperature": 2, "n": 8}
    for stream in (True, False):
        before = service.engine.tokens
        with (
            httpx.Client() as client,
            pytest.raises(httpx.ReadTimeout),
            client.stream(
                "POST", f"{address}/v1/chat/completions", json={**body, "stream": stream}, timeout=0.2
            ) as reply,
        ):
            for _ in reply.iter_lines():
                raise httpx.ReadTimeout("enough")
        deadline = time.monotonic() + 20
        while service.engine.load["running"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert service.engine.load["running"] == 0
        assert service.engine.tokens - before < 8 * 400


def test_a_full_queue_says_so(address, service):
    """More than may wait are told to come back, and those who wait are served."""
    from concurrent.futures import ThreadPoolExecutor

    body = {"model": "tiny", "messages": CHAT, "max_tokens": 60, "n": 8}

    def ask(_):
        return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)

    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(ask, range(24)))
    states = {reply.status_code for reply in replies}
    assert states == {200, 429}
    refused = next(reply for reply in replies if reply.status_code == 429).json()["error"]
    assert (refused["type"], refused["code"]) == ("rate_limit_error", "queue_full")


def test_those_who_left_the_queue_take_no_place_in_it(service):
    """A long answer keeps all rows busy; as many as may wait come and go; the next one is taken."""
    engine, told = service.engine, []
    long = engine.submit(Job((5, 6, 7), most=400, samples=LIMITS.rows, temperature=2.0), told.append)
    while not told:
        time.sleep(0.01)
    waiting = [engine.submit(Job((5, 6)), told.append) for _ in range(LIMITS.waiting)]
    with pytest.raises(Full):
        engine.submit(Job((5, 6)), told.append)
    for generation in waiting:
        generation.cancel()
    last = engine.submit(Job((5, 6), most=1, seed=0), told.append)
    long.cancel()
    deadline = time.monotonic() + 20
    while engine.load["waiting"] and time.monotonic() < deadline:
        time.sleep(0.01)
    last.cancel()
    assert engine.load["waiting"] == 0


def test_the_model_says_what_it_can_be_asked_for(client, address, service):
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("tiny").id == "tiny"
    assert set(EMOTIONS) <= set(model.affectlens["vectors"])
    assert [row["name"] for row in model.affectlens["readings"]] == service.readings.names
    assert httpx.get(f"{address}/health").json()["status"] == "ok"


def test_the_nucleus_holds_its_share():
    logits = torch.log(torch.tensor([0.5, 0.1, 0.3, 0.1]))
    assert torch.isfinite(nucleus(logits, 1.0, 0.5)).tolist() == [True, False, False, False]
    assert torch.isfinite(nucleus(logits, 1.0, 0.6)).tolist() == [True, False, True, False]
    assert torch.isfinite(nucleus(logits, 1.0, 1e-9)).tolist() == [True, False, False, False]
    assert torch.isfinite(nucleus(logits, 1.0, 1.0)).all()


def test_what_breaks_one_generation_leaves_the_others(service):
    """An edit that raises ends its own prompt; one that raises later ends whoever shares its step, and nobody after."""
    from affectlens.model.steering import Edit

    def broken(residual):
        raise RuntimeError("planted")

    engine: Engine = service.engine
    with pytest.raises(RuntimeError, match="planted"):
        list(engine.events(Job((5, 6, 7), edits=[Edit(2, broken)])))
    told: list[list] = [[], [], []]
    with engine._wake:  # all are admitted at once, and so read as one batch
        for number, sink in enumerate(told):
            edits = [Edit(2, broken)] if number == 1 else []
            engine.submit(Job((5, 6, 7 + number), edits=edits, most=3, seed=0), sink.append)
    deadline = time.monotonic() + 20
    while not all(sink and isinstance(sink[-1], End | Failure) for sink in told) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [type(sink[-1]) for sink in told] == [End, Failure, End]
    events = list(engine.events(Job((5, 6, 7), most=3, seed=0)))
    assert isinstance(events[0], Prompt) and isinstance(events[-1], End)


def hostile() -> dict[str, tuple[bytes, set[int]]]:
    """By what it tries, a body for the chat endpoint and the states that may answer it."""
    good = {"model": "tiny", "messages": CHAT, "max_tokens": 2}
    bad, cases = {400}, {}

    def wrong(name: str, states: set[int] = bad, /, **values: Any) -> None:
        cases[name] = (json.dumps({**good, **values}).encode(), states)

    plain = json.dumps(good)[:-1]
    cases["a key twice"] = (f'{plain}, "max_tokens": 3}}'.encode(), bad)
    cases["a key twice within"] = (
        f'{plain}, "affectlens": {{"vectors": {{"calm": 0.1, "calm": 0.2}}}}}}'.encode(),
        bad,
    )
    others = [-1, 10**400, 1e308, True, "", "x", [], [[]], {}, {"a": 1}, ["x" * 300]]
    for field in ("temperature", "top_p", "n", "seed", "max_tokens", "top_logprobs", "logprobs", "stream", "messages"):
        fine = {"seed": [-1], "logprobs": [True], "stream": [True]}.get(field, [])
        for value in others:
            if value not in fine or isinstance(value, bool) != any(isinstance(each, bool) for each in fine):
                wrong(f"{field}={str(value)[:12]}", **{field: value})
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "calm\0",
        "feature:-1",
        "feature:99999999999",
        "",
        "x" * 5000,
        "{{7*7}}",
        "\u202e",
    ):
        wrong(f"vector {name[:12]!r}", affectlens={"vectors": {name: 0.1}})
        wrong(f"cap {name[:12]!r}", affectlens={"cap": {name: 0.1}})
        wrong(f"reading {name[:12]!r}", affectlens={"readings": [name]})
        wrong(f"model {name[:12]!r}", {400, 404}, model=name)
    for value in (5, -4.1, 1e300, "0.1", None, [0.1], True, {"a": 1}):
        wrong(f"strength {value}", affectlens={"vectors": {"calm": value}})
        wrong(f"capped {value}", affectlens={"cap": {"calm": value}})
    for value in ("card", {"threshold": 1}, 1):
        wrong(f"monitor {value}", affectlens={"monitor": value})
    for value in (
        {"tensor": "gASV"},
        {"code": "import os"},
        {"vectors": [1, 2]},
        {"vectors": {f"v{n}": 0 for n in range(300)}},
        {"readings": ["calm"] * 300},
        [],
        "x",
        {"prompt": True},
    ):
        wrong(f"affectlens {str(value)[:20]}", affectlens=value)
    for field, value in (
        ("tools", [{"type": "function"}]), ("logit_bias", {"5": 100}), ("presence_penalty", 1),
        ("frequency_penalty", -2),
        ("response_format", {"type": "json_object"}), ("functions", [{}]), ("top_k", 5), ("min_p", 0.1), ("best_of", 3),
        ("suffix", "x"), ("store", True), ("metadata", {"a": "b"}), ("audio", {}), ("modalities", ["audio"]),
        ("prediction", {}), ("web_search_options", {}), ("tool_choice", "required"), ("reasoning_effort", "high"),
        ("service_tier", "priority"), ("use_beam_search", True), ("no_such_thing", 1), ("__class__", 1),
        ("prompt", "x"),
    ):  # fmt: skip
        wrong(f"{field} is not offered", **{field: value})
    for content in (5, [], [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], {"a": 1}, None, [5]):
        wrong(f"content {str(content)[:20]}", messages=[{"role": "user", "content": content}])
    for role in ("tool", "function", "root", "", 5, None, "<|im_start|>"):
        wrong(f"role {role}", messages=[{"role": role, "content": "x"}])
    wrong("nothing to answer", messages=[*CHAT, {"role": "assistant", "content": "Yes."}])
    wrong("no content", messages=[{"role": "user"}])
    wrong("a name", messages=[{"role": "user", "content": "x", "name": "y"}])
    wrong("too long for the model", messages=[{"role": "user", "content": "word " * 2000}])
    wrong("too many answers", n=100)
    wrong("too many tokens", max_tokens=10**9)
    wrong("too many tokens in the new word", max_completion_tokens=3)
    wrong("scores without scores", top_logprobs=3)
    wrong("options of no stream", stream_options={"include_usage": True})
    wrong("stops", stop=["x"] * 100)
    wrong("an empty stop", stop=["a", ""])
    deep = 100_000
    cases |= {
        "nothing": (b"", bad), "no JSON": (b"{", bad), "binary": (bytes(range(256)), bad), "a list": (b"[]", bad),
        "a number": (b"1", bad), "null": (b"null", bad), "a string": (b'"x"', bad), "empty": (b"{}", bad),
        "UTF-16": (json.dumps(good).encode("utf-16"), bad), "pickle": (b"\x80\x04\x95", bad),
        "gzip": (b"\x1f\x8b\x08", bad),
        "NaN": (b'{"model":"tiny","messages":[],"temperature":NaN}', bad),
        "Infinity": (b'{"model":"tiny","messages":[],"temperature":-Infinity}', bad),
        "1e999": (json.dumps(good).encode()[:-1] + b',"temperature":1e999}', bad),
        "half a pair": (b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}', bad),
        "half a pair as model": (b'{"model":"\\udfff","messages":[{"role":"user","content":"x"}]}', bad),
        "digits": (b'{"seed":' + b"9" * 10_000 + b"}", bad),
        "deep lists": (b"[" * 9_000 + b"]" * 9_000, bad), "deep objects": (b'{"a":' * 3_000 + b"1" + b"}" * 3_000, bad),
        "deep metadata": (b'{"metadata":' + b"[" * 9_000 + b"]" * 9_000 + b"}", bad),
        "too deep and too large": (b"[" * deep, {413}), "too large": (b" " * 30_000, {413}),
    }  # fmt: skip
    return cases


def test_hostile_requests_are_refused_and_harm_nobody(address, service, client):
    """Each is answered in OpenAI's form with a state of its own; afterwards an honest request is answered as before."""
    before, cases = chat(client, max_tokens=5).choices[0].message.content, hostile()
    assert len({body for body, _ in cases.values()}) >= 200
    made = service.engine.tokens
    with httpx.Client(base_url=address, timeout=20) as raw:
        for name, (body, states) in cases.items():
            reply = raw.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
            assert reply.status_code in states, f"{name}: {reply.status_code} {reply.text[:300]}"
            error = reply.json()["error"]
            assert error["message"] and error["type"] == "invalid_request_error" and error["code"], name
            assert "Traceback" not in reply.text and "/work" not in reply.text and "site-packages" not in reply.text
    assert service.engine.tokens == made, "none of them cost a token"
    assert service.engine.load["running"] == service.engine.load["waiting"] == 0
    assert chat(client, max_tokens=5).choices[0].message.content == before


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [-1], [640], [10**30], [[0], "x"], [["x"]], {"a": 1}, ["x"] * 300, 5, None]
)
def test_prompts_that_are_none_are_refused(address, prompt):
    reply = httpx.post(f"{address}/v1/completions", json={"model": "tiny", "prompt": prompt, "max_tokens": 1})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("prompt")


def test_who_speaks_no_http_is_sent_away(address, client):
    """Slow bodies, lies about their length, half a request, other methods, paths and hosts."""
    host, port = address.removeprefix("http://").split(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    def told(*pieces: bytes, wait: float = 0.0) -> bytes:
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            for piece in pieces:
                raw.sendall(piece)
                time.sleep(wait)
            return raw.recv(4000)

    assert b" 408 " in told(f"{head}Content-Length: 900\r\n\r\n".encode(), b"{", wait=0.1)
    assert b" 413 " in told(f"{head}Content-Length: 99999999\r\n\r\n".encode())
    assert b" 413 " in told(
        f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), *[b"1000\r\n" + b" " * 4096 + b"\r\n"] * 6
    )
    assert b" 400 " in told(b"\x16\x03\x01 is no HTTP\r\n\r\n")
    assert b" 400 " in told(f"{head}Content-Length: {'9' * 23}\r\n\r\n".encode())
    assert b" 400 " in told(f"{head}Content-Length: -5\r\n\r\n".encode())
    assert b" 400 " in told(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"), "a name that is made to point here"
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"{head}Content-Length: 900\r\n\r\n{{".encode())  # and gone
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404), ("GET", "/static/x", 404), ("POST", "/", 405),
    ):  # fmt: skip
        assert httpx.request(method, address + path).status_code == status
    plain = httpx.post(f"{address}/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415, "what another web page may send without asking"
    assert chat(client, max_tokens=3).choices[0].finish_reason


HEADS = {
    "says nothing": [],
    "sends a letter now and then": [b"GE", b"T / HT", b"TP/1.1\r\n", b"Host: 127.0.0.1\r\n", b"X-A", b": b", b"\r\n"]
    * 3,
    "asks and then says nothing": [b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"],
    "asks and begins anew": [b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET / HTTP/1.1\r\nHos"],
}


@pytest.mark.parametrize("name", HEADS)
def test_a_client_that_does_not_come_to_its_request_is_let_go(name, address, monkeypatch):
    from affectlens.serve import connections

    monkeypatch.setattr(connections, "HEAD_S", 0.4)
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        for piece in HEADS[name]:
            try:
                line.sendall(piece)
            except OSError:  # it was closed amid the head
                break
            time.sleep(0.1)
        said = b""
        while True:
            try:
                more = line.recv(4096)
            except ConnectionResetError:
                break
            if not more:
                break
            said += more
    assert said.count(b"HTTP/1.1 200") == name.startswith("asks")


def test_a_slow_answer_is_not_a_late_request(address, client, monkeypatch):
    from affectlens.serve import connections

    monkeypatch.setattr(connections, "HEAD_S", 0.01)
    pieces = list(chat(client, max_tokens=200, stream=True))
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")


def test_a_head_without_end_is_refused(address):
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000)
        assert line.recv(4096).startswith(b"HTTP/1.1 400")


def test_no_prompt_is_logged(address, client, service, caplog, capfd):
    """Not even where a generation fails."""
    secret = "xyzzy-plugh"
    with caplog.at_level("DEBUG", logger="affectlens"):
        chat(client, messages=[{"role": "user", "content": secret}])
        httpx.post(f"{address}/v1/chat/completions", json={"model": "tiny", "messages": [{"role": secret}]})
    said = capfd.readouterr()
    assert secret not in caplog.text + said.out + said.err


def test_the_command_tells_what_is_wrong_before_it_loads_a_model(computed_study, tmp_path):
    """A port that is taken, results that are not there; each in one line."""

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "affectlens.cli", "serve", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode in (1, 2) and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in run(str(computed_study), "--port", str(taken.getsockname()[1]))
    assert "directions" in run(str(computed_study), f"cache={tmp_path / 'none'}")
    assert "--host" in run(str(computed_study), "--host", "999.1.1.1")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil does not tell allocated memory from mapped files")
def test_memory_stays_flat_over_many_requests(computed_study, record_property):
    """Over 1,000 requests, streamed, whole and abandoned, after 200 others, a server grows by less than 30 MB.

    It is the command's own process, so that nothing else is counted; the client lives in this one. Counted is what the
    process has allocated, in memory or swapped out: pages of its libraries come and go as the kernel likes.
    """
    import psutil

    def allocated(process: psutil.Process) -> int:
        own = process.memory_full_info()
        return own.rss - own.shared + own.swap

    def ask(client, number: int) -> None:
        options = {"seed": number, "max_tokens": 4 + number % 9, "extra_body": {"affectlens": PUSH}}
        if number % 3 == 0:
            list(chat(client, stream=True, **options))
        elif number % 3 == 1:
            with chat(client, stream=True, **options) as chunks:
                next(iter(chunks))
        else:
            chat(client, **options)

    command = [sys.executable, "-m", "affectlens.cli", "serve", str(computed_study), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            address = served.stdout.readline().split(" at ")[1].split(",")[0]
            process, held = psutil.Process(served.pid), []
            with openai.OpenAI(base_url=f"{address}v1", api_key="none", max_retries=0) as client:
                for number in range(1200):
                    if number >= 200 and number % 100 == 0:
                        held.append(allocated(process))
                    ask(client, number)
            held.append(allocated(process))
            load = httpx.get(f"{address}health").json()
        finally:
            served.terminate()
    assert load["tokens"] > 5_000, "it is this process that answered"
    record_property("bytes_held", held)
    assert held[0] > 100e6, "a model and its results are held, so what is counted is not nothing"
    assert held[-1] - held[0] < 30e6
