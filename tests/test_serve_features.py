"""SAE features through the server, and all that may be done along a vector: what the study itself does and reads."""

from __future__ import annotations

import json

import affectlens
import httpx
import numpy as np
import pytest
from affectlens.model.reading import Site, read
from affectlens.serve.service import Limits, Service
from affectlens.use.steering import Recipe, Vectors, pushes

pytest.importorskip("uvicorn")
from serving import serving

SAE = ("sae.width=64", "sae.k=8", "sae.steps=20", "sae.train_batch_size_tokens=64", "sae.health_texts=0")
PROMPT = "We walked home through the rain until"


@pytest.fixture(scope="module")
def study(computed_study) -> affectlens.OpenStudy:
    return affectlens.run_study(computed_study, *SAE, stages=["directions", "sae"])


@pytest.fixture(scope="module")
def address(study):
    service = Service(study, Limits(rows=4, waiting=8, tokens=60))
    with serving(service) as address:
        yield f"{address}/v1/completions"
    service.close()


@pytest.fixture(scope="module")
def feature(study) -> int:
    """One that fires on every kind of text."""
    return int(study.sae.encode(study.activations.tokens(study.layer).of(0)).mean(axis=0).argmax())


def ask(address: str, own: dict, **options) -> dict:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "seed": 3, "affectlens": own, **options}
    reply = httpx.post(address, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def by_the_study(study, recipe: Recipe) -> str:
    """The same answer by the sampler that studies use, without a character that was not completed at its end."""
    from affectlens.model.sampling import sample

    prompt = study.subject.led(study.subject.encode(PROMPT))
    draws = np.random.default_rng([3, 0, 0]).random(30)
    edits = Vectors(study).edits([recipe]) if recipe.pushes else []
    tokens = sample(study.subject, [prompt], draws[None, None], edits)[0][0].tokens
    return study.tokenizer.decode(tokens).rstrip("\ufffd")


def test_features_are_read_beside_concepts(study, address, feature):
    """At the prompt and at the answer, streamed or whole; a push along the feature is not in its own readings."""
    names = ["sad", f"feature:{feature}", "feature:3", "valence"]
    own = {"readings": names, "prompt": True, "vectors": {f"feature:{feature}": 0.8}}
    choice = ask(address, own)
    prompt = study.subject.led(study.subject.encode(PROMPT))
    ids = [*prompt, *study.tokenizer(choice["text"], add_special_tokens=False)["input_ids"]]
    ((_, found),) = read(study.subject, [ids], [Site(study.layer)])
    states = found[Site(study.layer)].float().numpy()
    codes = study.sae.encode(states)
    start = len(prompt)
    for name, column in ((f"feature:{feature}", feature), ("feature:3", 3)):
        asked = choice["affectlens"]["prompt"]["readings"][name]
        np.testing.assert_allclose(asked, codes[start - len(asked) : start, column], atol=2e-4)
        if len(choice["affectlens"]["tokens"]) == len(ids) - start:  # what was sampled need not be tokenised alike
            np.testing.assert_allclose(choice["affectlens"]["readings"][name], codes[start:, column], atol=2e-4)
    assert any(choice["affectlens"]["prompt"]["readings"][f"feature:{feature}"])
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "seed": 3, "affectlens": own, "stream": True}
    lines = httpx.post(address, json=body, timeout=60).text.splitlines()
    chunks = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    for name in names:
        said = [value for each in chunks for value in each.get("affectlens", {}).get("readings", {}).get(name, [])]
        np.testing.assert_allclose(said, choice["affectlens"]["readings"][name], atol=1e-4)


@pytest.mark.parametrize("action", ["vectors", "out", "clamp", "cap"])
@pytest.mark.parametrize("kind", ["concept", "feature"])
def test_all_that_may_be_done_is_what_the_study_does(study, address, feature, action: str, kind: str):
    """Along a concept and along a feature; each of them is felt."""
    name = "calm" if kind == "concept" else f"feature:{feature}"
    amount = {"vectors": 1.5, "clamp": 1.5 if kind == "concept" else 40.0, "cap": -1.5 if kind == "concept" else 0.0}
    given = [name] if action == "out" else {name: amount[action]}
    words = {"vectors": "add"}.get(action, action)
    recipe = Recipe(pushes(**{"add": {}, words: given}))
    said = ask(address, {action: given})["text"]
    assert said == by_the_study(study, recipe)
    if (action, kind) not in {
        ("cap", "feature"),
        ("out", "concept"),
        ("out", "feature"),
    }:  # small, and may change no word
        assert said != by_the_study(study, Recipe())


def test_together_each_answer_keeps_its_own(study, address, feature):
    """Prompts of one request are read and decoded as one batch, features capped and clamped in it."""
    own = {"clamp": {f"feature:{feature}": 40.0}, "cap": {"calm": -1.0}, "readings": ["feature:3"]}
    body = {"model": "tiny", "prompt": [PROMPT, "Then", PROMPT], "max_tokens": 20, "seed": 3, "affectlens": own}
    choices = httpx.post(address, json=body, timeout=60).json()["choices"]
    alone = ask(address, own, max_tokens=20)
    assert choices[0]["text"] == choices[2]["text"] == alone["text"]
    for choice in (choices[0], choices[2]):
        np.testing.assert_allclose(
            choice["affectlens"]["readings"]["feature:3"], alone["affectlens"]["readings"]["feature:3"], atol=1e-4
        )


@pytest.mark.parametrize(
    ("own", "param"),
    [
        ({"readings": ["feature:64"]}, "affectlens.readings"), ({"readings": ["feature:x"]}, "affectlens.readings"),
        ({"vectors": {"feature:64": 0.1}}, "affectlens.vectors"), ({"out": ["feature:-1"]}, "affectlens.out"),
        ({"clamp": {"feature:3": 1e9}}, "affectlens.clamp"), ({"clamp": {"calm": 5}}, "affectlens.clamp"),
        ({"cap": {"feature:3": float("1e300")}}, "affectlens.cap"), ({"out": ["nothing"]}, "affectlens.out"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused(address, own, param: str):
    reply = httpx.post(address, json={"model": "tiny", "prompt": "x", "affectlens": own})
    assert reply.status_code == 400 and reply.json()["error"]["param"].startswith(param)
