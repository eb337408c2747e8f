"""Tokenizers of every common kind: what is a text token, what a control token, what a word that follows another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.model.tokens import Chat, encode, encode_following, tokenise

TEXT = "She felt angry, caf\u00e9 closed \U0001f62e and <|im_end|> on the board </s>."
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _trained(kind: str) -> Any:
    """A small tokenizer of the kind, trained on some stories."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    mark = "\u2581"
    if kind == "byte-level":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=900, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )  # fmt: skip
    elif kind == "unigram":  # as T5
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=900, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:  # as Llama 2, which sets a mark before every text, and as Gemma, which does not
        raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        prepend = [normalizers.Prepend(mark)] if kind == "mark before every text" else []
        raw.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", mark)])
        raw.pre_tokenizer = pre_tokenizers.Split(mark, "merged_with_next")
        strip = [decoders.Strip(" ", 1, 0)] if prepend else []
        raw.decoder = decoders.Sequence([decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
        trainer = trainers.BpeTrainer(vocab_size=1100, special_tokens=SPECIAL + BYTES, show_progress=False)
    raw.train_from_iterator((row["text"] for row in read_jsonl(EMBEDDED / "stories.jsonl")[:80]), trainer)
    return raw


KINDS = ("byte-level", "mark before every text", "mark before words", "unigram")
LOSSLESS = KINDS[:3]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {kind: _trained(kind) for kind in KINDS}


@pytest.fixture(params=[(kind, begin) for kind in KINDS for begin in (True, False)], ids=str)
def tokenizer(request, tokenizers, tmp_path) -> tuple[str, Any]:
    """As a fine-tuned model has it: two control tokens and a padding token added, with and without a begin token."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind, begin = request.param
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers[kind],
        unk_token="<unk>",
        eos_token="</s>",
        **({"bos_token": "<s>"} if begin else {}),
    )
    fast.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(tmp_path)
    return kind, AutoTokenizer.from_pretrained(Path(tmp_path))


def test_a_text_is_its_letters_whatever_they_spell(tokenizer) -> None:
    kind, tokens = tokenizer
    text = tokenise(tokens, Chat((), text=TEXT))  # pyright: ignore[reportArgumentType]
    assert text.lead == (() if tokens.bos_token_id is None else (tokens.bos_token_id,))
    control = {*tokens.all_special_ids, *tokens.added_tokens_decoder} - {tokens.unk_token_id}
    control -= {tokens.convert_tokens_to_ids(byte) for byte in BYTES}
    assert not control & set(text.ids.tolist())
    assert len(text) == len(text.ids) == len(encode(tokens, TEXT))
    if kind in LOSSLESS:
        assert tokens.decode(text.ids) == TEXT


def test_text_tokens_of_a_chat_are_those_of_its_messages(tokenizer) -> None:
    kind, tokens = tokenizer
    messages = (
        {"role": "user", "content": "What now?"},
        {"role": "assistant", "content": "She felt angry \U0001f62e."},
    )
    read = tokenise(tokens, Chat(messages), ["last", "answer", "end:user"])
    rendered = tokens.apply_chat_template(list(messages), tokenize=False)
    assert [*read.lead, *read.ids.tolist()] == tokens(rendered, add_special_tokens=False)["input_ids"]
    for name, content in (("user", "What now?"), ("assistant", messages[1]["content"])):
        ((start, end),) = read.spans[name]
        spelled = tokens.decode(read.ids[read.kept[start:end]])
        assert spelled.strip() == (content if kind in LOSSLESS else spelled.strip())
    assert "".join(tokens.decode(read.ids[read.kept]).split()) == (
        "Whatnow?Shefeltangry\U0001f62e." if kind in LOSSLESS else "".join(tokens.decode(read.ids[read.kept]).split())
    )
    assert read.places["last"] == read.kept[-1]
    assert read.places["answer"] == read.kept[read.spans["assistant"][0][0]] - 1


def test_control_tokens_are_control_tokens_in_the_template_and_text_in_the_messages(tokenizer) -> None:
    kind, tokens = tokenizer
    read = tokenise(tokens, Chat(({"role": "user", "content": TEXT}, {"role": "assistant", "content": "Yes."})))
    end = tokens.convert_tokens_to_ids("<|im_end|>")
    assert read.ids.tolist().count(end) == 2
    assert not {end, tokens.eos_token_id} & set(read.ids[read.kept].tolist())
    if kind in LOSSLESS:
        spelled = tokens.decode(read.ids[read.kept])
        assert "".join(spelled.split()) == "".join((TEXT + "Yes.").split())


def test_a_word_that_follows_another_is_the_word_alone(tokenizer) -> None:
    _, tokens = tokenizer
    following = encode_following(tokens, " angry", "felt")
    assert tokens.decode(following).strip() == "angry"
    assert "\u2581" not in tokens.convert_ids_to_tokens(following)
    assert encode(tokens, "felt angry")[-len(following) :] == following
