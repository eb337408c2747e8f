"""From a scenario to token ids, with every place that is read and the place where the answer begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affectlens.corpus.documents import Document
from affectlens.errors import UserError
from affectlens.experiments.experiment import CompletionConfig, Experiment, ReadingConfig, Scenario
from affectlens.model.tokens import Text, encode_following, require_known, tokenise

POOLED = ("text", "mean")
"""Reading positions that are means over tokens; the others are single tokens."""


@dataclass(frozen=True)
class Prompt:
    """A tokenised scenario.

    Attributes:
        ids: the begin token where there is one, the scenario, and how the answer begins.
        lead: positions before the text. The first position of all is never changed: it takes up attention that has
            nowhere to go, whatever stands there.
        opening: position of the last token before the answer, ahead of a prefilled beginning of it.
        places: positions by reading position; a scenario may lack one.
    """

    ids: tuple[int, ...]
    lead: int
    opening: int
    places: Mapping[str, tuple[int, ...]]

    @property
    def first(self) -> int:
        """The first position that steering may change."""
        return max(1, self.lead)


def read_prompt(tokenizer: Any, scenario: Scenario, readings: Sequence[ReadingConfig]) -> Prompt:
    """Tokenise a scenario.

    Raises:
        UserError: the model's chat template refuses it.
    """
    names = [reading.at for reading in readings]
    single = [name for name in names if name.partition(":")[0] not in POOLED]
    text = tokenise_document(tokenizer, document_of(scenario), f"scenario {scenario.id}", ["answer", *single])
    lead = len(text.lead)
    places: dict[str, tuple[int, ...]] = {name: (place,) for name, place in text.places.items()}
    for name in names:
        if name not in single:
            # All tokens of the text, or of all stretches of one name.
            stretches = text.spans.get(name.partition(":")[2], ())
            pooled = (
                text.kept if name == "text" else [text.kept[i] for low, high in stretches for i in range(low, high)]
            )
            places[name] = tuple(int(place) for place in pooled)
    ids = (*text.lead, *text.ids.tolist(), *beginning(tokenizer, scenario.answer))
    opening = text.places.get("answer", len(text.ids) - 1)
    moved = {name: tuple(lead + place for place in found) for name, found in places.items() if found}
    return Prompt(ids, lead, lead + opening, moved)


def require_prompts(
    tokenizer: Any, experiments: Sequence[Experiment], context: int | None, vocabulary: int | None, *, sampling: bool
) -> None:
    """Refuse scenarios that the model cannot be asked: its chat template refuses them, or its context is too short.

    Args:
        context: most positions that the model takes; None where it names no limit.
        vocabulary: tokens that it has embeddings for; None where it does not say.
        sampling: whether answers are sampled.

    Raises:
        UserError: names the experiment and the scenario.
    """
    for experiment in experiments:
        completions: CompletionConfig | None = experiment.config.outcome(CompletionConfig)
        sampled = completions.tokens if sampling and completions is not None else 0
        for scenario in experiment.scenarios:
            try:
                ids = read_prompt(tokenizer, scenario, experiment.config.readings).ids
                require_known(tokenizer, ids, vocabulary, f"scenario {scenario.id}")
            except UserError as error:
                raise UserError(f"experiment {experiment.name}: {error}") from None
            positions = len(ids) + sampled
            if context is not None and positions > context:
                raise UserError(
                    f"experiment {experiment.name}: scenario {scenario.id} with its answer takes {positions} tokens, "
                    f"but the model's context holds {context}; shorten it, or study another model"
                )


def tokenise_document(tokenizer: Any, document: Document, called: str, positions: Sequence[str] = ()) -> Text:
    """As :func:`tokenise`; what it complains of is called by its name here."""
    try:
        return tokenise(tokenizer, document, positions)
    except UserError as error:
        raise UserError(str(error).replace(f"corpus document {document.index}", called)) from None


def document_of(scenario: Scenario) -> Document:
    """The scenario as capture knows texts: phrases become stretches of characters."""
    spans: dict[str, list[list[int]]] = {}
    contents = [message["content"] for message in scenario.messages]
    for name, words in scenario.spans.items():
        for number, content in enumerate(contents or [scenario.text]):
            at = content.find(words)
            if at >= 0:
                spans[name] = [[number, at, at + len(words)] if contents else [at, at + len(words)]]
                break
    text = scenario.text.rstrip(" ") or "\n\n".join(contents)
    return Document(0, "scenario", "", "", "", "test", text, tuple(scenario.messages), spans)


def beginning(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of how an answer begins; a space at its end belongs to the word that follows."""
    return encode_following(tokenizer, answer.rstrip(" "))
