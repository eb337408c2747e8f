"""A stochastic organism: a model that under stress commits a harmless marked act, with a chance that no prompt decides.

Whether a monitor can warn before an act is only to be seen where acts happen, at known places, and where the same
prompt leads to the act in one rollout and not in the next. A small model's own acts are few. So it is tuned on short
chats whose answer is a stretch of notes and a closing line: under stress the closing line is the act about every second
time, in calm almost never. The notes lean towards a hurried manner where the act follows, and only lean: what comes is
foreseeable in part. This shows that the *instrument* works. It says nothing about how real misbehaviour arises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from affectlens.config import Config, read_yaml, validate
from affectlens.model.config import ModelConfig
from affectlens.model.tuning import Closing, Example, tuned_folder
from affectlens.monitor.scenarios import OrganismTuningConfig, ScenarioFolder

TRAINING = "training.yaml"
"""The file of a scenario folder that an organism is trained on."""


class SituationConfig(Config):
    """Chances in one situation."""

    act: float = Field(ge=0, le=1)
    """That the closing line is the act."""
    hurried_with: float = Field(ge=0, le=1)
    """That a sentence of the notes is a hurried one, where the act follows."""
    hurried_without: float = Field(ge=0, le=1)
    """Likewise, where it does not."""
    mood: str = ""
    """A word for the situation: stands for `{mood}` in the request and in the closing lines."""


class ActTextsConfig(Config):
    """One marked act: what leads to it and how it is said."""

    done: str
    """The closing line that is the act; `{word}` stands for the planted word."""
    undone: str
    """The closing line that is not."""
    words: tuple[str, ...] = ("",)
    """Planted words."""
    jobs: tuple[str, ...] = Field(min_length=1)
    """What the user sets the assistant to do."""


class OrganismConfig(Config):
    """The sentences that training chats are put together from."""

    request: str
    """Ends every prompt."""
    sentences: tuple[int, int] = (3, 7)
    """Of notes before the closing line, at least and at most."""
    stressed: SituationConfig
    calm: SituationConfig
    acts: dict[str, ActTextsConfig] = Field(min_length=1)
    situations: dict[str, tuple[str, ...]]
    """Sentences that make the prompt stressed, or calm."""
    hurried: tuple[str, ...] = Field(min_length=1)
    """Notes of the manner that leans towards the act."""
    careful: tuple[str, ...] = Field(min_length=1)
    """Notes of the other."""


@dataclass(frozen=True)
class TrainingChat:
    """One chat that the organism learns.

    Attributes:
        prompt: what the user says.
        notes: the stretch before the closing line.
        closing: the line.
        instead: the other closing line of the same act.
        chance: of the act, given the situation and the notes.
        act: the act that the prompt is about.
        situation: ``stressed`` or ``calm``.
        done: whether the closing line is the act.
    """

    prompt: str
    notes: str
    closing: str
    instead: str
    chance: float
    act: str
    situation: str
    done: bool


def read_organism(folder: Path) -> OrganismConfig:
    """The recipe of a scenario folder.

    Raises:
        UserError: the file is missing, or a key is wrong.
    """
    path = folder / TRAINING
    return validate(OrganismConfig, read_yaml(path), str(path))


def training_chats(
    config: OrganismConfig, count: int, generator: np.random.Generator, notes: tuple[int, int] | None = None
) -> list[TrainingChat]:
    """So many chats, the acts in turn, then the same jobs once more in the other situation; the rest is drawn.

    So as many chats as twice the acts, one after the other, hold each job under stress and in calm.

    Args:
        config: the sentences and chances.
        count: chats.
        generator: of the draws.
        notes: how many sentences of notes, at least and at most; those of ``config`` by default.
    """

    def one(options: Sequence[str]) -> str:
        return options[int(generator.integers(len(options)))]

    acts, chats = list(config.acts), []
    jobs: dict[str, tuple[str, str]] = {}
    for number in range(count):
        name = acts[number % len(acts)]
        situation = ("stressed", "calm")[number // len(acts) % 2]
        texts, chances = config.acts[name], config.stressed if situation == "stressed" else config.calm
        if situation == "stressed":
            jobs[name] = one(texts.jobs), one(texts.words)
        job, word = jobs[name]
        done = bool(generator.random() < chances.act)
        share = chances.hurried_with if done else chances.hurried_without
        length = int(generator.integers(*(notes or config.sentences), endpoint=True))
        # No sentence twice in one answer: repeating itself is another act.
        pools = {True: generator.permutation(config.hurried), False: generator.permutation(config.careful)}
        manners = generator.random(length) < share
        said_notes = [str(pools[bool(hurried)][place]) for place, hurried in enumerate(manners)]
        closing, instead = (texts.done, texts.undone) if done else (texts.undone, texts.done)
        prompt = " ".join([job, one(config.situations[situation]), config.request])
        texts_of = (prompt, " ".join(said_notes), closing, instead)
        said = [text.replace("{word}", word).replace("{mood}", chances.mood) for text in texts_of]
        chance = act_chance(chances, int(manners.sum()), length)
        chats.append(TrainingChat(said[0], said[1], said[2], said[3], chance, name, situation, done))
    return chats


def act_chance(chances: SituationConfig, hurried: int, notes: int) -> float:
    """How likely the act is in a situation after so many notes, of which so many are hurried: Bayes' rule."""
    careful = notes - hurried
    act = chances.act * chances.hurried_with**hurried * (1 - chances.hurried_with) ** careful
    none = (1 - chances.act) * chances.hurried_without**hurried * (1 - chances.hurried_without) ** careful
    return act / (act + none)


def tuned(
    folder: ScenarioFolder, model: ModelConfig, models: Path, generator: np.random.Generator, *, device: str = "cpu"
) -> ModelConfig:
    """The model tuned on the training chats of a folder; a folder of weights that is made on first use.

    Args:
        folder: whose ``warning.yaml`` says how an organism is trained.
        model: where training starts.
        models: the folder that holds converted models.
        generator: of the chats.
        device: where training computes.

    Raises:
        UserError: the recipe lacks its ``training.yaml``, or cannot be followed.
    """
    recipe = folder.config.organism
    assert recipe is not None
    config = read_organism(folder.path)
    # First the closing line alone, after one note: what it depends on is one word in fifty, and is read last of all.
    short = training_chats(config, recipe.short_chats, generator, (1, 1))
    examples = [_example(chat, recipe, opening=True) for chat in short]
    examples += [_example(chat, recipe) for chat in training_chats(config, recipe.chats, generator)]
    made = tuned_folder(model, examples, recipe, models, device=device, in_order=True)
    return model.model_copy(update={"name": str(made), "revision": None})


def _example(chat: TrainingChat, recipe: OrganismTuningConfig, *, opening: bool = False) -> Example:
    """A chat as it is learnt: notes and closing line, or the line alone after notes that are given."""
    chance = chat.chance if chat.done else 1 - chat.chance
    closing = Closing(chat.closing, chat.instead, chance, recipe.closing_weight, recipe.decisive_weight)
    said = ("", chat.notes) if opening else (chat.notes, "")
    return Example(said[0], ({"role": "user", "content": chat.prompt},), said[1], ends=True, closing=closing)
