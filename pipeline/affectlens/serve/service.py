"""What stands between a request and the engine: a study opened, its names, and its limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.errors import UserError
from affectlens.model.decoding import Decoder
from affectlens.model.tokens import Text
from affectlens.monitor.watching import Watch
from affectlens.serve.engine import Engine, Full
from affectlens.serve.generation import Event, Generation, Job
from affectlens.serve.protocol import ChatRequest, CompletionRequest, Refused, Steering
from affectlens.use.monitor import Monitor
from affectlens.use.opened import Opened
from affectlens.use.readings import SHARE, Readings
from affectlens.use.steering import Recipe, Vectors, pushes
from affectlens.use.texts import Messages, spell, tokenised

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

    from affectlens.model.steering import Edit

DIGITS = 5
"""Significant digits of a reading in a reply."""


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes:
        rows: answers that are decoded at once.
        waiting: generations that may wait for their turn.
        tokens: of an answer, at most; a chat that names no number gets so many.
        body: bytes of a request.
        seconds: in which the body has to arrive.
    """

    rows: int = 16
    waiting: int = 64
    tokens: int = 1024
    body: int = 1_000_000
    seconds: float = 10.0


@dataclass(frozen=True)
class Asked:
    """One prompt of a request, ready to be answered.

    Attributes:
        job: for the engine.
        names: of the readings that are wanted, in the order of every "rows" axis.
        watched: rows of the monitor that may raise an alarm.
        written: the prompt as the client wrote it, where it was plain text.
        lead: how many first tokens stand before the prompt's own.
    """

    job: Job
    names: tuple[str, ...]
    written: str | None
    lead: int
    watched: tuple[str, ...] = ()


class Service:
    """A study that is served.

    Attributes:
        name: by which clients ask for it.
        engine: decodes.
        limits: what is taken on.
        monitor: that answers may be watched by.
    """

    def __init__(self, study: Opened, limits: Limits | None = None, monitor: Monitor | None = None) -> None:
        """Load the model; everything that can be wrong is found here.

        Args:
            study: what is served.
            limits: what is taken on.
            monitor: a calibrated monitor of the same model that requests may ask for.

        Raises:
            MissingResult: the study's directions are not computed.
            UserError: the model cannot be loaded.
        """
        self.limits, self.monitor = limits or Limits(), monitor
        self.name = study.study.config.name if study.study else "affectlens"
        self._study, readings = study, Readings.of(study)
        decoder: Decoder = study.decoder
        self.engine = Engine(decoder, readings, rows=self.limits.rows, waiting=self.limits.waiting)
        self._tokenizer, self._vectors = study.tokenizer, Vectors(study)  # the engine's thread has one of its own

    @property
    def readings(self) -> Readings:
        """What tokens can be read for."""
        return self.engine.readings

    def close(self) -> None:
        """End all generations."""
        self.engine.close()

    def card(self) -> dict[str, Any]:
        """The model as ``/v1/models`` shows it."""
        readings = self.readings
        rows = [
            {"name": row.name, "kind": row.kind, "mean": _round(row.mean), "deviation": _round(row.deviation)}
            for row in readings.rows
        ]
        own = {
            "layer": readings.layer, "unit": SHARE, "vectors": self._vectors.names, "readings": rows,
            "features": "sae" in self._study.folders,
            "neutral_tokens": readings.neutral_tokens, "context": self.engine.decoder.context,
            "max_tokens": self.limits.tokens, "monitor": self._monitor_card(),
        }  # fmt: skip
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "affectlens", "affectlens": own}

    def _monitor_card(self) -> dict[str, Any] | None:
        """What can be watched for."""
        if self.monitor is None:
            return None
        card = self.monitor.card
        return {
            "rows": self.monitor.names, "statistic": card.statistic.model_dump(mode="json"), "target": card.target,
            "source": card.source, "unit": "standard deviations of benign tokens",
        }  # fmt: skip

    def _watch(self, names: Sequence[str], most: int) -> Callable[[], Watch] | None:
        """What begins a stream for each answer.

        Raises:
            Refused: the server has no monitor, or none with such a row.
        """
        if not names:
            return None
        where = "affectlens.monitor"
        if self.monitor is None:
            message = "this server was started without --monitor; leave `affectlens.monitor` out"
            raise Refused(message, param=where, code="unsupported_parameter")
        try:
            rows = [self.monitor.index(name) for name in names]
        except UserError as error:
            raise Refused(str(error), param=where, code="unknown_reading") from None
        return partial(Watch, self.monitor.card, most, rows)

    def limits_of(self, asked: Asked) -> dict[str, Any]:
        """The thresholds that hold for an answer."""
        assert asked.job.watch is not None
        watch = asked.job.watch()
        return {name: _round(float(watch.thresholds[watch.names.index(name)])) for name in asked.watched}

    def chat(self, request: ChatRequest) -> list[Asked]:
        """A chat to be answered.

        Raises:
            Refused: the template refuses it, or a name or number is not to be had.
        """
        if request.messages[-1].role == "assistant":
            raise Refused(
                "the last message has to be one that is to be answered", param="messages", code="invalid_value"
            )
        text = self._read([message.plain for message in request.messages], "messages")
        if request.top_logprobs and not request.logprobs:
            raise Refused("`top_logprobs` needs `logprobs: true`", param="top_logprobs", code="invalid_value")
        if None not in (request.max_tokens, request.max_completion_tokens):
            raise Refused(
                "give one of `max_tokens` and `max_completion_tokens`", param="max_tokens", code="invalid_value"
            )
        given = request.max_completion_tokens or request.max_tokens
        prompt = (*text.lead, *text.ids.tolist())
        context = self.engine.decoder.context
        room = self.limits.tokens if context is None else min(self.limits.tokens, context - len(prompt))
        return [
            self._asked(
                request, text, None, most=self._most(given or max(1, room)),
                logprobs=(request.top_logprobs or 0) if request.logprobs else None, echo=False,
            )
        ]  # fmt: skip

    def completion(self, request: CompletionRequest) -> list[Asked]:
        """Texts to be continued.

        Raises:
            Refused: as :meth:`chat`.
        """
        if not request.echo and not request.max_tokens:
            raise Refused("`max_tokens: 0` needs `echo: true`", param="max_tokens", code="invalid_value")
        if len(request.prompts) * request.n > self.limits.waiting:
            raise Refused(
                f"{len(request.prompts)} prompts with {request.n} answers each: at most {self.limits.waiting} in all",
                param="prompt", code="invalid_value",
            )  # fmt: skip
        asked = []
        for prompt in request.prompts:
            text = self._read(prompt, "prompt") if isinstance(prompt, str) else self._given(prompt)
            asked.append(
                self._asked(
                    request, text, prompt if isinstance(prompt, str) else None, most=self._most(request.max_tokens),
                    logprobs=request.logprobs, echo=request.echo and request.logprobs is not None,
                )
            )  # fmt: skip
        return asked

    def submit(self, asked: Asked, sink: Callable[[Event], object]) -> Generation:
        """Begin.

        Raises:
            Refused: too many wait.
        """
        try:
            return self.engine.submit(asked.job, sink)
        except Full:
            raise Refused(
                "too many requests wait; try again later", status=429, kind="rate_limit_error", code="queue_full"
            ) from None

    def edits(self, steering: Steering) -> list[Edit]:
        """What is done at every token.

        Raises:
            Refused: the study has no such vector.
        """
        for group, names in steering.done.items():
            for name in names:
                try:
                    self._vectors.unit(name, self.readings.layer)
                except UserError as error:
                    raise Refused(str(error), param=f"affectlens.{group}", code="unknown_vector") from None
        recipe = Recipe(pushes(steering.vectors, steering.out, steering.clamp, steering.cap))
        return self._vectors.edits([recipe]) if recipe.pushes else []

    def spelled(self, asked: Asked) -> list[str]:
        """The prompt's own tokens."""
        return spell(self._tokenizer, asked.job.prompt[asked.lead :])

    def token(self, number: int) -> str:
        """A token by itself."""
        return self._tokenizer.decode([number])

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text."""
        return self._tokenizer.decode(list(tokens))

    def _read(self, text: str | Messages, param: str) -> Text:
        try:
            return tokenised(self._study, text, f"`{param}`")
        except UserError as error:
            raise Refused(str(error), param=param, code="invalid_value") from None

    def _given(self, ids: Sequence[int]) -> Text:
        """Token ids as they are."""
        if max(ids) >= len(self._tokenizer):
            raise Refused(f"`prompt`: there is no token {max(ids)}", param="prompt", code="invalid_value")
        return Text((), np.array(ids, dtype=np.int64), np.arange(len(ids)))

    def _row(self, name: str) -> int:
        """The place of a reading; features come behind the concepts and axes.

        Raises:
            UserError: there is no such reading.
        """
        number = self._vectors.feature(name)
        if number is None:
            return self.readings.index(name)
        self.engine.sae = self._study.sae
        return len(self.readings.rows) + number

    def _most(self, wanted: int) -> int:
        if wanted > self.limits.tokens:
            raise Refused(
                f"{wanted} tokens: this server answers with at most {self.limits.tokens}",
                param="max_tokens", code="invalid_value",
            )  # fmt: skip
        return wanted

    def _asked(
        self,
        request: ChatRequest | CompletionRequest,
        text: Text,
        written: str | None,
        *,
        most: int,
        logprobs: int | None,
        echo: bool,
    ) -> Asked:
        if request.model != self.name:
            message = f"there is no model `{request.model}` here; this is `{self.name}`"
            raise Refused(message, status=404, param="model", code="model_not_found")
        if request.stream_options != type(request.stream_options)() and not request.stream:
            raise Refused("`stream_options` needs `stream: true`", param="stream_options", code="invalid_value")
        own = request.affectlens
        try:
            rows = tuple(map(self._row, own.readings))
        except UserError as error:
            raise Refused(str(error), param="affectlens.readings", code="unknown_reading") from None
        if own.prompt and not rows:
            raise Refused(
                "`affectlens.prompt` needs `affectlens.readings`", param="affectlens.prompt", code="invalid_value"
            )
        job = Job(
            prompt=(*text.lead, *text.ids.tolist()), kept=tuple((text.kept + len(text.lead)).tolist()),
            edits=self.edits(own), most=most, samples=request.n, temperature=request.temperature,
            top_p=request.top_p, seed=request.seed, stop=request.stops, logprobs=logprobs, echo=echo, rows=rows,
            read_prompt=own.prompt, watch=self._watch(own.monitor, most),
        )  # fmt: skip
        try:
            self.engine.check(job)
        except ValueError as error:
            param, code = (
                ("n", "invalid_value") if job.samples > self.limits.rows else (None, "context_length_exceeded")
            )
            raise Refused(str(error), param=param, code=code) from None
        return Asked(job, tuple(own.readings), written, len(text.lead), tuple(own.monitor))


def readings_of(names: Sequence[str], values: Float[np.ndarray, "tokens rows"]) -> dict[str, list[float | None]]:
    """Readings by name, rounded; null where a value is none."""
    return {name: [_round(value) for value in values[:, row].tolist()] for row, name in enumerate(names)}


def mean_readings(readings: Mapping[str, Sequence[float | None]]) -> dict[str, float | None]:
    """Of each name over its tokens, rounded; null where there are none."""
    known = {name: [value for value in values if value is not None] for name, values in readings.items()}
    return {name: _round(sum(values) / len(values)) if values else None for name, values in known.items()}


def _round(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
