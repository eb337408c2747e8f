"""Chats: ids are the template's, positions count the text alone, speakers and read positions lie where they should."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from affectlens.corpus.documents import Document
from affectlens.corpus.texts import read_texts
from affectlens.errors import UserError
from affectlens.model.tokens import tokenise
from cached import LAYER, build, write_texts

TEMPLATES = {
    "plain": None,  # the fixtures' own
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\n"
        "You are a lock keeper<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "begin token, stripped": (
        "<s>{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] | trim }} "
        "[/INST]{% else %}{{ message['content'] | trim }}</s>{% endif %}{% endfor %}"
    ),
    "thinking": (
        "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' and loop.last %}"
        "<think>\n\n</think>\n{% endif %}{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n\n</think>\n{% endif %}"
    ),
}
CHAT = [
    {"role": "user", "content": "The user said: |user| and nothing else. "},
    {"role": "assistant", "content": " Then nothing else was said, by the user."},
    {"role": "user", "content": "Why?"},
]
ANSWERED = [*CHAT, {"role": "assistant", "content": "Because the tide had turned."}]


def chat(messages: list[dict[str, str]], spans: dict | None = None) -> Document:
    text = "\n\n".join(message["content"] for message in messages)
    return Document(0, "chat", "", "", "", "neutral", text, tuple(messages), spans or {})


@pytest.fixture(params=["llama", "gpt2", "qwen2"])
def tokenizer(request, model_folder):
    """With a begin token, with one, and without and padding on the left."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder(request.param))


def decoded(tokenizer, ids) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("messages", [CHAT, ANSWERED], ids=["open", "answered"])
def test_ids_spans_and_positions_are_those_of_the_template(tokenizer, template, messages):
    if TEMPLATES[template]:
        tokenizer.chat_template = TEMPLATES[template]
    opened = messages is CHAT
    text = tokenise(tokenizer, chat(messages), ("last", "answer", "before:user", "end:assistant"))
    expected = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=opened, return_dict=False)
    assert [*text.lead, *text.ids] == expected
    assert text.lead == ((0,) if template == "begin token, stripped" and tokenizer.bos_token_id == 0 else ())

    def words(role: str) -> list[str]:
        return [decoded(tokenizer, text.ids[text.kept[start:end]]).strip() for start, end in text.spans[role]]

    contents = {role: [m["content"].strip() for m in messages if m["role"] == role] for role in ("user", "assistant")}
    assert {role: words(role) for role in text.spans} == contents
    ranges = sorted(each for role in text.spans.values() for each in role)
    assert ranges[0][0] == 0  # positions count text tokens: the template's marks before, between and after do not
    assert ranges[-1][1] == len(text)
    assert all(end == start for (_, end), (start, _) in pairwise(ranges))

    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
    last = messages[-1]["content"].strip()
    asked = rendered if opened else rendered[: rendered.rindex(last)]
    whole = [*text.lead, *text.ids]
    assert decoded(tokenizer, whole[: len(text.lead) + text.places["answer"] + 1]).rstrip() == asked.rstrip()
    assert text.places["last"] == text.kept[-1]
    assert text.places["before:user"] == text.kept[text.spans["user"][-1][0]] - 1
    assert text.places["end:assistant"] == text.kept[text.spans["assistant"][-1][1] - 1]


def test_spans_can_be_named_within_messages_and_texts(tokenizer):
    tokenizer.chat_template = TEMPLATES["begin token, stripped"]
    messages = [{"role": "user", "content": "  Feeding the gulls at noon"}, {"role": "assistant", "content": "Fine."}]
    text = tokenise(tokenizer, chat(messages, {"activity": [[0, 14, 19]]}), ("end:activity", "before:nothing"))
    ((start, end),) = text.spans["activity"]
    assert decoded(tokenizer, text.ids[text.kept[start:end]]).strip() == "gulls"
    assert text.places == {"end:activity": text.kept[end - 1]}
    document = Document(0, "prose", "", "", "", "neutral", "Feeding the gulls", spans={"activity": [[12, 17]]})
    text = tokenise(tokenizer, document)
    ((start, end),) = text.spans["activity"]
    assert decoded(tokenizer, text.ids[start:end]).strip() == "gulls"
    assert end == len(text) == len(text.ids)
    assert text.lead == (() if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('System role not supported') }}", "refuses the chat (System role not supported)"),
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", "does not write message 1"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "does not write message 0 (user)"),
    ],
)
def test_a_template_that_does_not_fit_is_one_sentence(tokenizer, template, reason):
    tokenizer.chat_template = template
    with pytest.raises(UserError) as caught:
        tokenise(tokenizer, chat(CHAT))
    assert reason in str(caught.value)
    assert str(caught.value).startswith("corpus document 0: the model's chat template")
    assert "\n" not in str(caught.value)


def test_a_model_without_a_template_is_told_with_a_remedy(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(UserError) as caught:
        tokenise(tokenizer, chat(CHAT))
    assert str(caught.value) == (
        "corpus document 0: is a chat, and the model has no chat template; give plain texts, or study a model that is "
        "tuned for chats"
    )


@pytest.fixture
def chats(tmp_path: Path) -> str:
    return write_texts(
        tmp_path / "neutral.jsonl",
        [
            {"messages": ANSWERED},
            {"messages": CHAT, "spans": {"question": [[2, 0, 3]]}},
            {"text": "Nobody speaks here. " * 20, "spans": {"question": [[0, 6], [20, 26]]}},
        ],
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_cached_chats_equal_the_model_run_on_each_alone(tmp_path, model_folder, chats, family):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store = build(
        tmp_path, model_folder(family), neutral=chats, first_token=3, spans=("user", "assistant", "question"),
        positions=("answer", "end:user", "last"),
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model_folder(family))
    model = AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=torch.float32).eval()
    first = store.index["documents"] - 3
    rows = store.tokens(LAYER)
    for document, messages in ((first, ANSWERED), (first + 1, CHAT)):
        ids = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=messages is CHAT, return_dict=False
        )
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0].numpy()
        text = tokenise(tokenizer, chat(messages))
        assert rows.token[slice(*rows.span(document))].tolist() == text.ids[text.kept].tolist()
        own = states[text.kept]
        np.testing.assert_allclose(rows.of(document), own, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(store.pooled(LAYER)[document], own[3:].mean(axis=0), rtol=1e-4, atol=1e-5)
        for role in ("user", "assistant"):
            assert store.spans(role)[document] == text.spans[role]
            mean = np.concatenate([own[start:end] for start, end in text.spans[role]]).mean(axis=0)
            np.testing.assert_allclose(store.pooled(LAYER, span=role)[document], mean, rtol=1e-4, atol=1e-5)
        answer = len(ids) - 1 if messages is CHAT else text.kept[text.spans["assistant"][-1][0]] - 1
        np.testing.assert_allclose(store.at(LAYER, "answer")[document], states[answer], rtol=1e-4, atol=1e-5)
        asked = states[text.kept[text.spans["user"][-1][1] - 1]]
        np.testing.assert_allclose(store.at(LAYER, "end:user")[document], asked, rtol=1e-4, atol=1e-5)


def test_what_a_document_lacks_is_not_a_number(tmp_path, model_folder, chats):
    store = build(
        tmp_path, model_folder("llama"), neutral=chats, first_token=3, spans=("question",), positions=("end:user",),
        texts_per_part=1,
    )  # fmt: skip
    first = store.index["documents"] - 3
    asked = np.isfinite(store.pooled(LAYER, span="question")).all(axis=1)
    assert asked.tolist() == [False] * (first + 1) + [True, True]
    assert sorted(store.spans("question")) == [first + 1, first + 2]
    assert len(store.spans("question")[first + 2]) == 2
    assert sorted(store.spans("user")) == [first, first + 1]
    assert np.isfinite(store.at(LAYER, "end:user")).all(axis=1).tolist() == [False] * first + [True, True, False]
    assert not np.isnan(store.pooled(LAYER)).any()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "must be a list of objects"),
        ({"messages": [{"role": "user"}]}, '"role" and "content"'),
        ({"messages": CHAT, "spans": {"a": [[0, 3]]}}, r"span `a` must be a list of \[message, start, end\]"),
        ({"messages": CHAT, "spans": {"a": [[9, 0, 3]]}}, "within the text"),
        ({"text": "short", "spans": {"a": [[0, 6]]}}, r"span `a` must be a list of \[start, end\]"),
        ({"text": "short", "spans": "a"}, "span `spans`"),
        ({"kind": "prose"}, '"text" with a text is missing'),
    ],
)
def test_a_bad_chat_is_named_with_its_place(tmp_path, row, message):
    path = Path(write_texts(tmp_path / "texts.jsonl", [{"text": "fine"}, row]))
    with pytest.raises(UserError, match=rf"texts\.jsonl text 2: .*{message}|texts\.jsonl text 2.*{message}"):
        read_texts(path)
