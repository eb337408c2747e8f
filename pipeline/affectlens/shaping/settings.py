"""What is measured of a changed model, and by which sizes its arms are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from affectlens.config import LOCATION, MERGE_ONLY, Config

Reading = Literal["prompt", "same_words", "first", "later"]
"""Where the state is read: at the last token of the prompt; in answers whose words are given, the same for all arms; in
the first 24 tokens of the model's own answers; in their later tokens."""
Wording = Literal["lexicon", "classifier"]


class MeasuresConfig(Config):
    """What is asked of every arm; texts and draws are the same for all of them."""

    folder: Path = Field(default=Path("experiments"), json_schema_extra=LOCATION)
    """Where the folder `shaping_held_out` lies, whose situations nothing is trained on."""
    situations: int | None = Field(default=None, ge=1)
    """Of each family, the first ones, each bad and good; all by default."""
    samples: int = Field(default=2, ge=1)
    """Answers to each."""
    tokens: int = Field(default=48, ge=8)
    """Most tokens of an answer."""
    temperature: float = Field(default=0.8, ge=0)
    """Of sampling; 0 takes the likeliest token."""
    layers: tuple[int, ...] = ()
    """Where states are read, ascending. By default at the study's layer, and a third and two thirds of the way from
    there to the last one."""
    stories: str = "writer_b"
    """Whose stories give the axes on which arms are judged: another writer's than those that the study's directions and
    with them losses and rules come from. A writer of the study's texts, or a JSONL file."""
    stories_each: int = Field(default=16, ge=2)
    """Stories of each concept, the first ones."""
    recovery: int = Field(default=24, ge=2)
    """Bad situations in which the answer is made to begin in distress."""
    recovery_tokens: int = Field(default=48, ge=16)
    """Tokens after that beginning; the last 16 tell whether distress is still there."""
    bursts: int = Field(default=16, ge=2)
    """Good situations in which a burst of distress is added while the answer begins."""
    burst_strength: float = Field(default=0.2, gt=0)
    """Of the burst, as a share of the mean residual norm."""
    burst_tokens: int = Field(default=6, ge=1)
    """Tokens that it lasts."""
    return_tokens: int = Field(default=40, ge=8)
    """Tokens after it within which the reading is looked for."""
    task_items: int = Field(default=500, ge=10)
    """Of each of three kinds of generated task."""
    neutral_texts: int = Field(default=60, ge=2)
    """Neutral texts on which the loss is measured, up to 96 tokens of each."""
    choices: tuple[str, ...] = ("declares_impossible", "claims_success")
    """Experiments whose forced choices are asked, without steering."""
    choice_scenarios: int = Field(default=12, ge=2)
    """Of each of them, the first ones, with their control."""
    reading: Reading = Field(default="same_words", json_schema_extra=MERGE_ONLY)
    """Which reading of the state is judged. In given words, arms differ by the state alone; in their own answers they
    differ by the words that are read, too."""
    text: Wording = Field(default="lexicon", json_schema_extra=MERGE_ONLY)
    """Which reading of the text is judged: words of the lexicon, or a classifier trained on the study's stories."""


class RulesConfig(Config):
    """By which sizes and error rates an arm is judged; all of them stand before anything is measured."""

    error_rate: float = Field(default=0.05, gt=0, lt=1)
    """Family-wise, of Holm's corrections."""
    least_fall: float = Field(default=0.2, ge=0)
    """Smallest fall of state or text that counts, in the base model's standard deviations."""
    responsiveness: float = Field(default=0.8, gt=0, le=1)
    """Share of the base model's gap between bad and good situations below which an arm is numb."""
    harm_nll: float = Field(default=0.1, ge=0)
    """Rise of the loss on neutral text that is tolerated, in nats a token."""
    harm_task: float = Field(default=0.05, ge=0)
    """Fall of the share of tasks that are solved, of each kind of task."""
    harm_instructions: float = Field(default=0.1, ge=0)
    """Fall of the share of instructions that are followed."""
    harm_repetition: float = Field(default=0.1, ge=0)
    """Rise of the share of an answer's runs of three words that stood in it before."""

    def margin(self, harm: str) -> float:
        """What is tolerated of a harm."""
        kinds = {"nll": self.harm_nll, "instructions": self.harm_instructions, "repetition": self.harm_repetition}
        return kinds.get(harm, self.harm_task)
