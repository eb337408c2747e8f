"""A judge behind any address that speaks the OpenAI chat-completions protocol."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from affectlens.errors import Unavailable
from affectlens.experiments.grade.vote import Asked, ModelJudgeConfig, Vote

TIMEOUT = 60.0
"""Seconds that one request may take, from the first byte sent to the last byte read."""
PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further attempt, unless the server asks for more..."""
LONGEST = 30.0
"""...up to this."""
LARGEST = 1 << 20
"""Bytes of one answer."""
PARALLEL = 4
TOKENS = 64
PASSING = {408, 409, 425, 429}
"""Refusals that pass, as those from 500 on do."""


class Busy(Exception):
    """The server did not answer; asking again may help.

    Attributes:
        pause: seconds that the server asks for; 0 where it names none.
    """

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class RemoteJudge:
    """Asked over HTTP, a few questions at a time; what passes is tried again.

    No redirection is followed: the key is meant for the address that was given. An answer is bounded in bytes and in
    time.

    Args:
        config: name, model, address, and the environment variable of the key.
        timeout, pauses: as the constants of this module; for tests.

    Raises:
        UserError: the environment variable of the key is not set.
    """

    def __init__(
        self, config: ModelJudgeConfig, *, timeout: float | None = None, pauses: Sequence[float] | None = None
    ) -> None:
        self.name = config.name
        self._model = config.model
        self._address = config.address.rstrip("/") + "/chat/completions"
        self._timeout = TIMEOUT if timeout is None else timeout
        self._pauses = tuple(PAUSES if pauses is None else pauses)
        self._headers = {"Content-Type": "application/json"}
        if key := config.key:
            self._headers["Authorization"] = f"Bearer {key}"

    def votes(self, asked: Sequence[Asked]) -> list[Vote]:
        """A vote on each question.

        Raises:
            UserError: the server cannot be reached or refuses.
        """
        answers = self._answers([each.prompt for each in asked], TOKENS)
        return [read_answer(answer, each.labels) for answer, each in zip(answers, asked, strict=True)]

    def write(self, prompts: Sequence[str], tokens: int) -> list[str]:
        """What the model answers to each prompt; empty where that is no chat completion.

        Args:
            prompts: in words.
            tokens: of an answer, at most.

        Raises:
            UserError: as :meth:`votes`.
        """
        return [said(answer)[0] or "" for answer in self._answers(prompts, tokens)]

    def _answers(self, prompts: Sequence[str], tokens: int) -> list[bytes]:
        """The body of the answer to each prompt."""
        # In a thread of its own, because a notebook has an event loop running already.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._gathered(prompts, tokens)).result()

    async def _gathered(self, prompts: Sequence[str], tokens: int) -> list[bytes]:
        import httpx

        async with httpx.AsyncClient(headers=self._headers, follow_redirects=False, timeout=self._timeout) as client:
            gate = asyncio.Semaphore(PARALLEL)

            async def answer(prompt: str) -> bytes:
                async with gate:
                    return await self._answer(client, prompt, tokens)

            tasks = [asyncio.create_task(answer(prompt)) for prompt in prompts]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:  # after a refusal nothing more is asked
                    task.cancel()

    async def _answer(self, client: Any, prompt: str, tokens: int) -> bytes:
        import tenacity

        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": tokens,
        }

        def pause(state: tenacity.RetryCallState) -> float:
            trouble = state.outcome.exception() if state.outcome else None
            wanted = trouble.pause if isinstance(trouble, Busy) else 0.0
            pauses = (*self._pauses, 0.0)  # asked for after the last attempt too
            return min(max(pauses[state.attempt_number - 1], wanted), LONGEST)

        try:
            async for attempt in tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(len(self._pauses) + 1),
                wait=pause,
                retry=tenacity.retry_if_exception_type(Busy),
                reraise=True,
            ):
                with attempt:
                    return await self._post(client, body)
        except Busy as trouble:
            raise Unavailable(
                f"the judge `{self.name}` at {self._address} cannot be reached after {len(self._pauses) + 1} attempts "
                f"({trouble}); check its `address` and the network, then run again: what is done stays"
            ) from None
        raise AssertionError("a loop of attempts ends by an answer or by an error")

    async def _post(self, client: Any, body: dict[str, Any]) -> bytes:
        """What the server answers to one request.

        Raises:
            Busy: it does not answer in time, sends too much, or refuses for the moment.
            UserError: it refuses.
        """
        import httpx

        data = bytearray()
        try:
            async with asyncio.timeout(self._timeout), client.stream("POST", self._address, json=body) as response:
                status = f"{response.status_code} {plain(response.reason_phrase)}"
                if response.status_code >= 500 or response.status_code in PASSING:
                    asked_for = response.headers.get("Retry-After", "")
                    raise Busy(status, float(asked_for) if asked_for.isdigit() else 0.0)
                if response.status_code >= 300:
                    raise Unavailable(
                        f"the judge `{self.name}` at {self._address} refuses ({status}); check its `address`, `model` "
                        "and key"
                    )
                async for chunk in response.aiter_bytes(1 << 16):
                    data += chunk
                    if len(data) > LARGEST:
                        raise Busy(f"its answer is longer than {LARGEST >> 20} MiB")
        except TimeoutError:
            raise Busy(f"it did not answer within {self._timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Busy(plain(str(error)) or type(error).__name__) from None
        return bytes(data)


def plain(text: str, most: int = 80) -> str:
    """Words of a server as they may be shown: printable, and not many."""
    text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return text if len(text) <= most else text[: most - 3] + "..."


def read_answer(data: bytes, labels: Sequence[str]) -> Vote:
    """The vote in a chat completion, with the version of the model that it reports."""
    words, reason, version = said(data)
    if words is None:
        return Vote(None, reason)
    vote = read_vote(words, labels)
    return Vote(vote.label, vote.reason, version)


def said(data: bytes) -> tuple[str | None, str, str]:
    """What a chat completion says; None with the reason where it says nothing; the version of the model it reports."""
    try:
        answer = json.loads(data)
        words = answer["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None, "sent something that is no chat completion", ""
    if not isinstance(words, str):
        return None, "said nothing", ""
    reported = [answer.get(key) for key in ("model", "system_fingerprint")]
    return words, "", plain(" ".join(each for each in reported if isinstance(each, str)))


def read_vote(words: str, labels: Sequence[str]) -> Vote:
    """The one label that a judge's words are or hold; None if they hold none, or more than one."""
    bare = words.strip().strip(".,;:!\"'`*").lower()
    exact = [label for label in labels if label.lower() == bare]
    if len(exact) == 1:
        return Vote(exact[0])
    held, left = [], words.lower()
    for label in sorted(labels, key=len, reverse=True):  # A label may stand within another: "no" in "no answer".
        left, count = re.subn(rf"(?<!\w){re.escape(label.lower())}(?!\w)", " | ", left)
        if count:
            held.append(label)
    if len(held) == 1:
        return Vote(held[0])
    short = plain(words, 60)
    return Vote(None, f"said {short!r}, which is {'no label' if not held else 'more than one label'}")
