"""A second version of a model, a few steps of training away, where none has been published.

Comparing a base model with its post-trained version takes two models. Where only one is at hand, this makes the other:
the model is trained for a moment to tell, as the assistant, stories of chosen emotions. It is a stand-in for real
post-training, not an example of it: nothing is learnt from preferences, and the direction is known, in that the
emotions trained towards were chosen beforehand. The weights surely differ; that the representations of the chosen
concepts rise at the answer is for the comparison to find, and a few steps also teach style, which moves other things.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from affectlens.config import Config, nearest
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.errors import ConfigError
from affectlens.model.config import ModelConfig, identity
from affectlens.model.converted import converted_folder
from affectlens.model.loading import load_tokenizer, load_weights

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

VERSION = 1
"""Goes into the folder's name: raised when the same config would train differently."""
PROMPTS = (
    "Write a short piece of prose.",
    "Tell me a short story.",
    "Write a few lines, whatever you like.",
    "Please write one paragraph of fiction.",
)
"""None names or hints at an emotion."""
UNSEEN = -100
"""The label of tokens that are not learnt."""


class TunedConfig(Config):
    """How the second version is trained."""

    tune: tuple[str, ...] = Field(min_length=1)
    """The emotions whose embedded stories the assistant learns to tell."""
    steps: int = Field(default=60, ge=1)
    """Updates of the weights."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Of AdamW, after a tenth of the steps; it falls to zero at the end."""
    batch: int = Field(default=2, ge=1)
    """Stories an update."""
    length: int = Field(default=112, ge=8)
    """Most tokens of a chat; what is beyond is cut."""
    seed: int = 0
    """Draws the stories and their prompts."""


def tuned_folder(config: TunedConfig, model: ModelConfig, models: Path, *, device: str = "cpu") -> Path:
    """The tuned version of a model as an ordinary transformers folder (float32), trained on first use.

    The folder's name says what went in (model by content, config, stories), so another recipe means another folder. On
    one machine the same recipe gives the same bytes.

    Args:
        config: the recipe.
        model: where training starts.
        models: the folder that holds converted models.
        device: where training computes.

    Raises:
        ConfigError: an emotion without embedded stories.
        UserError: the model cannot be loaded.
    """
    stories = _stories(config.tune)
    recipe = [VERSION, identity(model), config.model_dump(mode="json"), PROMPTS, stories]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    build = partial(_tune, config, model, models, stories, device)
    return converted_folder(models, f"tuned-{digest[:16]}", build)


def _stories(emotions: Sequence[str]) -> list[str]:
    rows = read_jsonl(EMBEDDED / "stories.jsonl", required=("emotion", "text"))
    known = sorted({row["emotion"] for row in rows})
    for emotion in emotions:
        if emotion not in known:
            raise ConfigError(f"`tune: {emotion}`: there are no embedded stories of it; {nearest(emotion, known)}")
    return [row["text"] for row in rows if row["emotion"] in emotions]


def _tune(
    config: TunedConfig, model: ModelConfig, models: Path, stories: Sequence[str], device: str, folder: Path
) -> None:
    """Train and save; dropout stays off and every draw is seeded, so that nothing is left to chance."""
    import torch

    tokenizer = load_tokenizer(model, models)
    trained = load_weights(model, device=device, models=models, dtype=torch.float32)
    # A quarter of a small model's memory in training is its vocabulary, which has nothing to learn here.
    for vocabulary in (trained.get_input_embeddings(), trained.get_output_embeddings()):
        vocabulary.requires_grad_(False)
    learning = [weights for weights in trained.parameters() if weights.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=config.learning_rate, weight_decay=0.0, fused=True)
    warm = max(1, config.steps // 10)
    for step, (tokens, mask, labels) in enumerate(_batches(config, tokenizer, stories)):
        share = min((step + 1) / warm, (config.steps - step) / max(1, config.steps - warm))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * share
        loss = trained(tokens.to(device), attention_mask=mask.to(device), labels=labels.to(device)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
    trained.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(
    config: TunedConfig, tokenizer: Any, stories: Sequence[str]
) -> Iterator[tuple[Int[Tensor, "chats tokens"], Int[Tensor, "chats tokens"], Int[Tensor, "chats tokens"]]]:
    """Token ids, which of them are there, and which of them are learnt (those of the story)."""
    import numpy as np
    import torch

    generator = np.random.default_rng(config.seed)
    order: list[int] = []
    for _ in range(config.steps):
        while len(order) < config.batch:
            order.extend(generator.permutation(len(stories)).tolist())
        chosen, order = order[: config.batch], order[config.batch :]
        chats = [_chat(tokenizer, PROMPTS[generator.integers(len(PROMPTS))], stories[index]) for index in chosen]
        width = min(config.length, max(len(tokens) for tokens, _ in chats))
        shape = (config.batch, width)
        tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, UNSEEN)
        for row, (ids, start) in enumerate(chats):
            kept = torch.tensor(ids[:width])
            tokens[row, : len(kept)] = kept
            mask[row, : len(kept)] = 1
            labels[row, start : len(kept)] = kept[start:]
        yield tokens, mask, labels


def _chat(tokenizer: Any, prompt: str, story: str) -> tuple[list[int], int]:
    """Token ids of a chat in which the assistant tells the story, and where the story begins."""
    from affectlens.model.tokens import encode

    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        opened = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    else:
        opened = f"{tokenizer.bos_token or ''}{prompt}\n\n"
    before = tokenizer(opened, add_special_tokens=False)["input_ids"]
    return before + encode(tokenizer, story), len(before)
