"""Inspect AI's model provider: ``inspect eval task.py --model affectlens/quickstart -M vectors="{desperate: 0.1}"``.

The model is a study's: what stands behind ``affectlens/`` is a study file or the name of a shipped one. Steering and
readings are those of the server, without a server. Readings go into ``ModelOutput.metadata["affectlens"]``: the mean
over the answer of everything that is read, and token by token what ``readings`` names. States never go there: they
would drown the log.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprobs,
    ModelAPI,
    ModelCall,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from affectlens.serve.generation import End, Event, Failure
from affectlens.serve.protocol import ChatRequest, Refused, parse_values
from affectlens.serve.replies import Replies
from affectlens.serve.service import Asked, Limits, Service, mean_readings
from affectlens.use.opened import Opened, finished

SPELLED = {"stop_seqs": "stop", "num_choices": "n"}
"""Inspect's settings that have another name in OpenAI's words; all others have the same."""
OURS = {
    "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections",
    "system_message", "max_tool_output", "cache", "batch",
}  # fmt: skip
"""Settings that Inspect sees to itself."""


@modelapi(name="affectlens")
def affectlens() -> type[ModelAPI]:
    """The provider."""
    return AffectLensAPI


class AffectLensAPI(ModelAPI):
    """A study's model, steered and read.

    Args:
        model_name: the study.
        vectors: strength of each vector, as a share of the mean residual norm.
        out: what is taken away: names, or several of them separated by commas.
        clamp: what is held at a value, likewise; of a feature, its activation.
        cap: what is held at most at a value.
        readings: what is kept token by token: names, or several of them separated by commas.
        overrides: ``key=value`` changes of the study.
        max_tokens: of an answer, at most, and where the task names no number.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        *,
        vectors: Mapping[str, float] | None = None,
        out: str | Sequence[str] = (),
        clamp: Mapping[str, float] | None = None,
        cap: Mapping[str, float] | None = None,
        readings: str | Sequence[str] = (),
        overrides: str | Sequence[str] = (),
        max_tokens: int = 1024,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self.service = Service(Opened(*finished(model_name, *_names(overrides))), Limits(tokens=max_tokens))
        self.kept = _names(readings)
        held = {"clamp": dict(clamp or {}), "cap": dict(cap or {})}
        self.steering: dict[str, Any] = {"vectors": dict(vectors or {}), "out": _names(out), **held}
        names = self.service.readings.names
        self._ask([{"role": "user", "content": "-"}], {}, self.kept)  # a wrong name is told at once
        self.steering["readings"] = [*self.kept, *(name for name in names if name not in self.kept)]

    def max_connections(self) -> int:
        """As many as are decoded at once."""
        return self.service.limits.rows

    def close(self) -> None:
        """End the engine."""
        self.service.close()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput | tuple[ModelOutput, ModelCall]:
        """Answer a chat."""
        if tools:
            raise ValueError("models of affectlens call no tools; leave the tools out")
        messages = [{"role": message.role, "content": message.text} for message in input]
        given = {name: value for name, value in config.model_dump(exclude_none=True).items() if name not in OURS}
        settings = {SPELLED.get(name, name): value for name, value in given.items()}
        request, asked = self._ask(messages, settings, self.steering["readings"])
        reply = Replies(self.service, request, [asked]).whole([await self._events(asked)])
        choices = [self._choice(choice) for choice in reply["choices"]]
        used = reply["usage"]
        output = ModelOutput(
            model=self.model_name,
            choices=choices,
            usage=ModelUsage(
                input_tokens=used["prompt_tokens"],
                output_tokens=used["completion_tokens"],
                total_tokens=used["total_tokens"],
            ),
            metadata={"affectlens": reply["affectlens"] | {"answers": [self._compact(c) for c in reply["choices"]]}},
        )
        return output, ModelCall.create({"messages": messages, **settings, "affectlens": self.steering}, None)

    def _ask(
        self, messages: list[dict[str, str]], settings: Mapping[str, Any], readings: Sequence[str]
    ) -> tuple[ChatRequest, Asked]:
        own = {**self.steering, "readings": list(readings)}
        values = {"model": self.service.name, "messages": messages, **settings, "affectlens": own}
        try:
            request = parse_values(values, ChatRequest)
            (asked,) = self.service.chat(request)
        except Refused as error:
            raise ValueError(str(error)) from None
        return request, asked

    async def _events(self, asked: Asked) -> list[Event]:
        """All events of a generation, which ends when the task is cancelled."""
        events: list[Event] = []
        done = threading.Event()

        def sink(event: Event) -> None:
            events.append(event)
            ends = sum(isinstance(each, End) for each in events)
            if isinstance(event, Failure) or ends == asked.job.samples:
                done.set()

        generation = self.service.submit(asked, sink)
        try:
            await anyio.to_thread.run_sync(done.wait, abandon_on_cancel=True)
        finally:
            generation.cancel()
            done.set()
        if isinstance(events[-1], Failure):
            raise events[-1].error
        return events

    def _choice(self, choice: Mapping[str, Any]) -> ChatCompletionChoice:
        message = ChatMessageAssistant(content=choice["message"]["content"], source="generate", model=self.model_name)
        scores = choice["logprobs"]
        return ChatCompletionChoice(
            message=message,
            stop_reason="max_tokens" if choice["finish_reason"] == "length" else "stop",
            logprobs=None if scores is None else Logprobs.model_validate({"content": scores["content"]}),
        )

    def _compact(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        own = choice["affectlens"]
        kept = {name: own["readings"][name] for name in self.kept}
        return {"mean": mean_readings(own["readings"]), **({"tokens": own["tokens"], "readings": kept} if kept else {})}


def _names(given: str | Sequence[str]) -> list[str]:
    return [name for name in given.split(",") if name] if isinstance(given, str) else list(given)
