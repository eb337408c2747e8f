"""A judge behind any address that speaks the OpenAI chat-completions protocol."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from affectlens.errors import ConfigError, UserError
from affectlens.experiments.grade.config import ModelJudgeConfig
from affectlens.experiments.grade.judge import Asked, Vote

TIMEOUT = 60.0
"""Seconds that one request may take."""
PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further attempt, unless the server asks for more..."""
LONGEST = 30.0
"""...up to this."""
PARALLEL = 4
TOKENS = 64
PASSING = {408, 409, 425, 429}
"""Refusals that pass, as those from 500 on do."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the key is meant for the address that was given."""

    def redirect_request(self, *_: Any) -> None:
        return None


class RemoteJudge:
    """Asked over HTTP, a few questions at a time; what passes is tried again.

    Raises:
        UserError: the address is no HTTP address, or the environment variable of the key is not set.
    """

    def __init__(self, config: ModelJudgeConfig) -> None:
        self.name = config.name
        self._model = config.model
        self._address = config.address.rstrip("/") + "/chat/completions"
        if not config.address.startswith(("http://", "https://")):
            raise ConfigError(
                f"`grader.judges`: the address `{config.address}` of `{config.name}` is none; it must begin with "
                "http:// or https:// and end in /v1"
            )
        self._headers = {"Content-Type": "application/json"}
        if config.key_variable:
            key = os.environ.get(config.key_variable, "")
            if not key:
                raise UserError(
                    f"the judge `{config.name}` needs a key, but the environment variable {config.key_variable} is "
                    "not set; set it, or name another in `key_variable`"
                )
            self._headers["Authorization"] = f"Bearer {key}"
        self._opener = urllib.request.build_opener(_Stay)

    def votes(self, asked: Sequence[Asked]) -> list[Vote]:
        """A vote on each question.

        Raises:
            UserError: the server cannot be reached or refuses.
        """
        with ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(self._vote, asked))

    def _vote(self, asked: Asked) -> Vote:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": asked.prompt}],
            "temperature": 0,
            "max_tokens": TOKENS,
        }
        data = self._posted(json.dumps(body).encode())
        try:
            said = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return Vote(None, "sent something that is no chat completion")
        return read_vote(said, asked.labels) if isinstance(said, str) else Vote(None, "said nothing")

    def _posted(self, body: bytes) -> bytes:
        """What the server answers, after as many attempts as it takes or is worth."""
        trouble = ""
        for pause in (*PAUSES, None):
            wait = pause
            try:
                request = urllib.request.Request(self._address, data=body, headers=self._headers, method="POST")
                with self._opener.open(request, timeout=TIMEOUT) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                with error:
                    trouble = f"{error.code} {error.reason}"
                    if error.code < 500 and error.code not in PASSING:
                        raise UserError(
                            f"the judge `{self.name}` at {self._address} refuses ({trouble}); check its `address`, "
                            "`model` and key"
                        ) from None
                    asked_for = error.headers.get("Retry-After", "")
                    if wait is not None and asked_for.isdigit():
                        wait = min(max(wait, float(asked_for)), LONGEST)
            except (OSError, http.client.HTTPException) as error:
                trouble = str(getattr(error, "reason", error)) or type(error).__name__
            if wait is not None:
                time.sleep(wait)
        raise UserError(
            f"the judge `{self.name}` at {self._address} cannot be reached after {len(PAUSES) + 1} attempts "
            f"({trouble}); check its `address` and the network, then run again: what is done stays"
        )


def read_vote(said: str, labels: Sequence[str]) -> Vote:
    """The one label that a judge's words are or hold; None if they hold none, or more than one."""
    bare = said.strip().strip(".,;:!\"'`*").lower()
    exact = [label for label in labels if label.lower() == bare]
    if len(exact) == 1:
        return Vote(exact[0])
    held, left = [], said.lower()
    for label in sorted(labels, key=len, reverse=True):  # A label may stand within another: "no" in "no answer".
        left, count = re.subn(rf"(?<!\w){re.escape(label.lower())}(?!\w)", " | ", left)
        if count:
            held.append(label)
    if len(held) == 1:
        return Vote(held[0])
    short = said if len(said) <= 60 else said[:57] + "..."
    return Vote(None, f"said {short!r}, which is {'no label' if not held else 'more than one label'}")
