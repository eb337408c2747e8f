"""Events of the engine in OpenAI's words: whole replies and chunks of a stream.

Whatever is ours stands under ``affectlens``: in a reply or chunk what was done to the model, in a choice the tokens of
the answer with their readings, and those of the prompt.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from affectlens.serve.generation import Answer, End, Event, Prompt, Scored, Token
from affectlens.serve.protocol import ChatRequest, CompletionRequest
from affectlens.serve.service import Asked, Service, readings_of
from affectlens.use.readings import SHARE


class Replies:
    """The replies to one request.

    Attributes:
        asked: its prompts.
    """

    def __init__(self, service: Service, request: ChatRequest | CompletionRequest, asked: Sequence[Asked]) -> None:
        self.asked, self._service, self._request = asked, service, request
        self._chat = isinstance(request, ChatRequest)
        self._id = ("chatcmpl-" if self._chat else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())
        self._offsets: dict[int, int] = {}
        self._made = 0

    def whole(self, events: Sequence[Sequence[Event]]) -> dict[str, Any]:
        """One reply out of all events of each prompt."""
        choices, made, own = [], 0, self._own()
        for number, (asked, mine) in enumerate(zip(self.asked, events, strict=True)):
            answers = [Answer() for _ in range(asked.job.samples)]
            prompt = next(event for event in mine if isinstance(event, Prompt))
            for event in mine:
                if isinstance(event, Token | End):
                    answers[event.sample].add(event)
            for sample, answer in enumerate(answers):
                made += len(answer.tokens)
                choices.append(self._choice(number, sample, answer, prompt))
        reply = self._frame("" if self._chat else None, choices)
        return {**reply, "usage": self._usage(made), **({"affectlens": own} if own else {})}

    def chunks(self, number: int, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks that an event of a prompt makes."""
        asked = self.asked[number]
        if isinstance(event, Prompt):
            own = self._own()
            if not (self._chat or self._echoes or own):
                return
            for sample in range(asked.job.samples):
                choice = self._choice(number, sample, Answer(), event)
                if self._chat:
                    del choice["message"]
                    choice["delta"] = {"role": "assistant", "content": ""}
                yield self._frame(".chunk", [choice]) | ({"affectlens": own} if own else {})
        elif isinstance(event, Token | End):
            answer = Answer()
            answer.add(event)
            self._made += len(answer.tokens)
            choice = self._choice(number, event.sample, answer, None)
            if self._chat:
                said = choice.pop("message")["content"]
                choice["delta"] = {"content": said} if said or isinstance(event, Token) else {}
            yield self._frame(".chunk", [choice])

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk, for those who asked for it."""
        return self._frame(".chunk", []) | {"usage": self._usage(self._made)}

    @property
    def _echoes(self) -> bool:
        return isinstance(self._request, CompletionRequest) and self._request.echo

    def _index(self, number: int, sample: int) -> int:
        return number * self._request.n + sample

    def _frame(self, form: str | None, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "text_completion" if not self._chat else f"chat.completion{form or ''}"
        name = self._service.name
        return {"id": self._id, "object": kind, "created": self._created, "model": name, "choices": choices}

    def _usage(self, made: int) -> dict[str, int]:
        read = sum(len(asked.job.prompt) for asked in self.asked)
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    def _own(self) -> dict[str, Any]:
        own = self._request.affectlens
        if not (own.readings or own.monitor or any(own.done.values())):
            return {}
        done = {"layer": self._service.readings.layer, "unit": SHARE, **own.done}
        return done | ({"monitor": {"thresholds": self._service.limits_of(self.asked[0])}} if own.monitor else {})

    def _prompt_readings(self, asked: Asked, event: Prompt | None) -> dict[str, Any]:
        if event is None or event.values is None:
            return {}
        tokens = self._service.spelled(asked)
        kept = [tokens[index - asked.lead] for index in asked.job.kept]
        return {"prompt": {"tokens": kept, "readings": readings_of(asked.names, event.values)}}

    def _choice(self, number: int, sample: int, answer: Answer, prompt: Prompt | None) -> dict[str, Any]:
        """A choice of a reply, or what a chunk adds to it; ``prompt`` where the prompt belongs to it, too."""
        asked = self.asked[number]
        choice: dict[str, Any] = {"index": self._index(number, sample), "finish_reason": answer.reason or None}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
            choice["logprobs"] = self._chat_scores(answer.tokens) if asked.job.logprobs is not None else None
        else:
            shown = prompt if self._echoes else None
            head = "" if shown is None else asked.written
            head = self._service.decode(asked.job.prompt) if head is None else head
            choice["text"] = head + answer.text
            choice["logprobs"] = None
            if asked.job.logprobs is not None:
                choice["logprobs"] = self._scores(choice["index"], asked, answer.tokens, shown)
        own = self._prompt_readings(asked, prompt)
        if asked.names and (answer.tokens or answer.reason):
            stacked = np.array([token.values for token in answer.tokens]).reshape(-1, len(asked.names))
            own |= {"tokens": [token.piece for token in answer.tokens], "readings": readings_of(asked.names, stacked)}
        if asked.watched and answer.tokens:
            own |= {"tokens": [token.piece for token in answer.tokens], "monitor": self._watched(asked, answer)}
        return choice | ({"affectlens": own} if own else {})

    def _watched(self, asked: Asked, answer: Answer) -> dict[str, Any]:
        """The statistic of the rows that may raise an alarm, and the alarms: token, counted from 1, and row."""
        assert self._service.monitor is not None
        names = self._service.monitor.names
        values = np.array([token.seen[-1].values for token in answer.tokens])
        columns = values[:, [names.index(name) for name in asked.watched]]
        begun = [[seen.token, names[row]] for token in answer.tokens for seen in token.seen for row in seen.alarms]
        return {"values": readings_of(asked.watched, columns), "alarms": begun}

    def _chat_scores(self, tokens: Sequence[Token]) -> dict[str, Any]:
        def one(number: int, value: float) -> dict[str, Any]:
            spelled = self._service.token(number)
            return {"token": spelled, "logprob": value, "bytes": list(spelled.encode())}

        content = [
            one(token.id, token.score[0]) | {"top_logprobs": [one(*best) for best in token.score[1]]}
            for token in tokens
            if token.score is not None
        ]
        return {"content": content, "refusal": None}

    def _scores(self, index: int, asked: Asked, tokens: Sequence[Token], prompt: Prompt | None) -> dict[str, list[Any]]:
        """OpenAI's older form, the prompt's tokens first where they are echoed; the very first has no probability."""
        pieces, scores = [], []
        if prompt is not None and prompt.scores is not None:
            pieces = self._service.spelled(asked)
            scores += [None, *prompt.scores][asked.lead :]
        pieces = [*pieces, *(token.piece for token in tokens)]
        scores: list[Scored | None] = [*scores, *(token.score for token in tokens)]
        start, offsets = self._offsets.get(index, 0), []
        for piece in pieces:
            offsets.append(start)
            start += len(piece)
        self._offsets[index] = start
        return {
            "tokens": pieces,
            "token_logprobs": [None if score is None else score[0] for score in scores],
            "top_logprobs": [None if score is None else self._best(score) for score in scores],
            "text_offset": offsets,
        }

    def _best(self, score: Scored) -> dict[str, float]:
        """By spelling; of tokens that are spelled alike, the likeliest."""
        found: dict[str, float] = {}
        for number, value in score[1]:
            found.setdefault(self._service.token(number), value)
        return found
