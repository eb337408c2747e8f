"""The server: OpenAI's own client chats, streams, scores and steers; what cannot be honoured is refused."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import affectlens
import httpx
import numpy as np
import pytest
import torch
from affectlens.serve.engine import End, Engine, Job, Prompt, Token, nucleus
from affectlens.serve.service import Limits, Service
from affectlens.use.steering import Vectors, pushes
from conftest import EMOTIONS

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")

LIMITS = Limits(rows=8, waiting=12, tokens=400, body=20_000, seconds=0.5)
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "The letter came this morning."}]
PUSH = {"vectors": {"calm": 2.0, "sad": -0.5}, "readings": ["calm", "sad"]}


@pytest.fixture(scope="module")
def study(tmp_path_factory, model_folder) -> affectlens.OpenStudy:
    """A study of four concepts on a tiny Llama, up to its directions."""
    import yaml

    folder = tmp_path_factory.mktemp("served")
    values = {
        "name": "tiny",
        "cache": str(folder / "cache"),
        "model": {"name": str(model_folder("llama")), "layer": 2, "dtype": "float32"},
        "corpus": {"emotions": list(EMOTIONS)},
        "tracking": {"mode": "disabled"},
        "compute": {"threads": 1, "device": "cpu"},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return affectlens.run_study(path, stages=["directions"])


@pytest.fixture(scope="module")
def service(study) -> Iterator[Service]:
    service = Service(study, LIMITS)
    yield service
    service.close()


@pytest.fixture(scope="module")
def address(service) -> Iterator[str]:
    from affectlens.serve.app import build

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(build(service), log_level="error", access_log=False, ws="none", lifespan="off")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


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
    np.testing.assert_allclose(np.stack([token.values for token in tokens]), expected, atol=1e-5)


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
    events = list(engine.events(Job((5, 6, 7), most=3, seed=0)))
    assert isinstance(events[0], Prompt) and isinstance(events[-1], End)
