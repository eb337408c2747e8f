"""What may be asked in OpenAI's words, checked before anything is computed, and errors in OpenAI's form.

A parameter that cannot be honoured is refused, never ignored. One that says what happens anyway (``n: 1``,
``frequency_penalty: 0``) is taken, as is null, which stands for leaving it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field

MOST_NAMES = 256
"""Vectors, caps and readings of one request."""
LARGEST = 4.0
"""Strengths and values, as shares of the mean residual norm; at 1 texts have long fallen apart."""
LARGEST_CODE = 10_000.0
"""Values of features, in activations of the SAE."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (), "best_of": (1,), "frequency_penalty": (0,), "function_call": ("none",), "functions": ([],),
    "logit_bias": ({},), "metadata": ({},), "min_p": (0,), "modalities": (["text"],),
    "parallel_tool_calls": (True, False), "prediction": (), "presence_penalty": (0,), "prompt_cache_key": (),
    "reasoning_effort": ("none",), "repetition_penalty": (1,), "response_format": ({"type": "text"},),
    "safety_identifier": (), "service_tier": ("auto", "default"), "store": (False,), "suffix": ("",),
    "tool_choice": ("none", "auto"), "tools": ([],), "top_k": (0, -1), "use_beam_search": (False,), "verbosity": (),
    "web_search_options": (),
}  # fmt: skip
"""Parameters of OpenAI's and its kin that are not offered, and the values at which they change nothing."""


class Refused(Exception):
    """A request that is answered with an error in OpenAI's form.

    Attributes:
        status: of HTTP.
        body: ``{"error": {"message", "type", "param", "code"}}``.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Strength = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


def _within_reach(values: dict[str, float]) -> dict[str, float]:
    """Values that something may be held at; a feature's is an activation."""
    for name, value in values.items():
        most = LARGEST_CODE if name.startswith("feature:") else LARGEST
        if not -most <= value <= most:
            raise ValueError(f"{name}: between {-most:g} and {most:g}")
    return values


Values = Annotated[dict[Name, float], Field(max_length=MOST_NAMES), AfterValidator(_within_reach)]


class Steering(_Strict):
    """The request's ``affectlens`` object.

    Attributes:
        vectors: strength of each named vector of the study, as a share of the mean residual norm.
        out: what is taken away.
        clamp: what is held at a value: a share of the mean residual norm; of a feature, its activation.
        cap: what is held at most at a value, likewise.
        readings: what every token of the answer is read for.
        prompt: the prompt's tokens, too.
        monitor: rows of the server's monitor that may raise an alarm; none watches nothing.
    """

    vectors: dict[Name, Strength] = Field(default={}, max_length=MOST_NAMES)
    out: list[Name] = Field(default=[], max_length=MOST_NAMES)
    clamp: Values = {}
    cap: Values = {}
    readings: list[Name] = Field(default=[], max_length=MOST_NAMES)
    prompt: bool = False
    monitor: list[Name] = Field(default=[], max_length=MOST_NAMES)

    @property
    def done(self) -> dict[str, Any]:
        """What is done to the model."""
        return {name: getattr(self, name) for name in ("vectors", "out", "clamp", "cap")}


def strengths(given: str | Mapping[str, float] | None) -> dict[str, float]:
    """Names with numbers: a mapping, or ``desperate:0.1+calm:-0.05``.

    Raises:
        ValueError: one has no number.
    """
    if given is None or isinstance(given, Mapping):
        return {name: float(value) for name, value in (given or {}).items()}
    pairs = [each.rpartition(":") for each in given.split("+") if each]
    try:
        return {name: float(value) for name, _, value in pairs}
    except ValueError:
        raise ValueError(f"`{given}`: write vectors as desperate:0.1+calm:-0.05") from None


class StreamOptions(_Strict):
    """What a stream has besides."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Sampled(_Strict):
    """What both sorts of request have."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=128)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=16)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: Annotated[str, Field(max_length=1000)] = ""
    affectlens: Steering = Steering()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop
        return tuple(stop for stop in given if stop)


class Part(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]

    @property
    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(_Sampled):
    """POST /v1/completions."""

    prompt: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return self.prompt if isinstance(self.prompt[0], str | list) else [self.prompt]  # pyright: ignore[reportReturnType]


def parse(body: bytes, kind: type[_Sampled]) -> Any:
    """A request out of the body of a POST.

    Raises:
        Refused: it is no JSON, or asks for what is not offered; names the parameter.
    """
    try:
        values = json.loads(body.decode(), parse_constant=_no_number, object_pairs_hook=_once)
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "cannot be read"
        raise Refused(f"the body is not JSON in UTF-8 ({reason[:120]})", code="invalid_json") from None
    if not isinstance(values, dict):
        raise Refused("the body is no JSON object", code="invalid_json")
    return parse_values(values, kind)


def parse_values(values: dict[str, Any], kind: type[_Sampled]) -> Any:
    """A request out of its values.

    Raises:
        Refused: as :func:`parse`.
    """
    values = {name: value for name, value in values.items() if value is not None}
    for name, neutral in NEUTRAL.items():
        if name in values and name not in kind.model_fields:
            if not any(
                values[name] == each and isinstance(each, bool) == isinstance(values[name], bool) for each in neutral
            ):
                raise Refused(f"`{name}` is not offered; leave it out", param=name, code="unsupported_parameter")
            del values[name]
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise _refusal(error, values) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _refusal(error: pydantic.ValidationError, values: Any) -> Refused:
    """The first fault, in OpenAI's form: the parameter as a dotted path."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    steps: list[str] = []
    for step in fault["loc"]:
        # A union names its members in the path, too; what a client wrote are keys and indices.
        inside = step in values if isinstance(values, dict) else isinstance(values, list) and isinstance(step, int)
        if inside:
            steps, values = [*steps, str(step)], values[step]  # pyright: ignore[reportArgumentType, reportCallIssue]
        elif fault["type"] == "missing":
            steps.append(str(step))
    path = ".".join(steps)[:100]
    if fault["type"] == "extra_forbidden":
        return Refused(f"`{path}` is not known; leave it out", param=path, code="unknown_parameter")
    code = "missing_required_parameter" if fault["type"] == "missing" else "invalid_value"
    return Refused(f"`{path}`: {fault['msg']}", param=path, code=code)
