"""Random-weight model folders with tokenizers of their own, for fixtures and tests."""

from __future__ import annotations

from pathlib import Path

from affectlens.corpus.texts import EMBEDDED, read_jsonl

EMOTIONS = ("afraid", "calm", "proud", "sad")
"""Of the small studies."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 640}
CONFIGS = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "gpt_neox": "GPTNeoXConfig",
    "olmo2": "Olmo2Config",
}
"""transformers' class for each family; GPT-2 names its sizes differently."""


def _tokenizer(folder: Path, *, bos: bool, padding_side: str = "right") -> None:
    """A byte-level BPE trained on some stories, saved as transformers expects it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY["vocab_size"],
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["text"] for row in read_jsonl(EMBEDDED / "stories.jsonl")[:60]), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        padding_side=padding_side,
        **({"bos_token": "<s>"} if bos else {}),
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def build_model(folder: Path, family: str, **changes: object) -> Path:
    """A random-weight model folder of the family, 4 layers of width 32, with its own tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=TINY["hidden_size"], n_layer=TINY["num_hidden_layers"], n_head=4, vocab_size=TINY["vocab_size"],
            n_positions=512, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
    else:
        sizes = {**TINY, "intermediate_size": 64, "max_position_embeddings": 512}
        if family != "gpt_neox":
            sizes |= {"num_key_value_heads": 2, "head_dim": 8}
        kind = getattr(transformers, CONFIGS[family])
        config = kind(**{**sizes, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, **changes})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    _tokenizer(folder, bos=family != "qwen2", padding_side="left" if family == "qwen2" else "right")
    return folder
