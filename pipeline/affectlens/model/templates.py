"""Chat templates are programs that came with a model: they run in a process of their own, with bounded time and memory.

transformers runs them in Jinja's sandbox, from which nothing gets out. But a template may loop for years (a loop has at
most 100,000 turns, loops within loops as many as they like) or fill the memory by one multiplication. So the function
that runs them runs in a child (:mod:`.rendering`), which the system ends when its time is used up.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from affectlens.errors import UserError
from affectlens.model import rendering

SECONDS = 10.0
"""Of processor time for one chat; templates of public models take milliseconds."""
MEMORY = 1 << 30
"""Bytes for one chat."""
REMEMBERED, KEPT = 8_000, 512
"""Letters of a chat that is not written twice, and how many of them are kept: one of marks alone is asked for again and
again."""


class TemplateFault(UserError):
    """A chat template raised, or was ended; the message says why, as a clause."""


class Writer:
    """The child, started when the first chat is written; a process has one of its own, also after a fork.

    Args:
        seconds: of processor time for one chat.
        memory: bytes for one chat.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds = seconds
        self.memory = memory
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._lock = threading.Lock()
        self._written: dict[str, str] = {}

    def write(self, template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """A chat as a template writes it.

        Raises:
            TemplateFault: the template raised, or took too much time or memory.
        """
        job = json.dumps({"template": template, "messages": messages, "options": options})
        with self._lock:
            if job in self._written:
                return self._written[job]
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                self._process, self._owner = self._started(), os.getpid()
            answer = _asked(self._process, job)
            if not answer.endswith("\n"):
                status, process = self._process.wait(), self._process
                self._process = None
                process.communicate()
                raise TemplateFault(self._ended(status))
        said = json.loads(answer)
        if "fault" in said:
            raise TemplateFault(said["fault"])
        if len(job) + len(said["text"]) <= REMEMBERED:
            if len(self._written) >= KEPT:
                self._written.clear()
            self._written[job] = said["text"]
        return said["text"]

    def close(self) -> None:
        """End the child, if it is this process's."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[str]:
        # By its path: what the package imports is not needed there. -P: the modules beside it hide no others.
        command = [sys.executable, "-P", rendering.__file__, str(self.seconds), str(self.memory)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        assert process.stdout is not None
        if process.stdout.readline() != rendering.READY:
            process.communicate()
            raise TemplateFault(f"the process that writes chats did not start, but ended with {process.returncode}")
        atexit.register(self.close)
        return process

    def _ended(self, status: int) -> str:
        if status == -getattr(signal, "SIGPROF", 0):
            return f"it takes more than {self.seconds:g} s"
        return f"it ended the process that ran it, with {status}; it may have taken more than {self.memory >> 20} MiB"


def _asked(process: subprocess.Popen[str], job: str) -> str:
    """The answer to a job; none where the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(job + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return ""


WRITER = Writer()
"""Of this process."""


def written(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """A chat as the tokenizer's template writes it: the same as ``apply_chat_template(..., tokenize=False)``.

    Args:
        tokenizer: transformers' own. One that has a method of its own in place of a template is asked directly.
        messages: with a role and a content each.
        options: ``add_generation_prompt`` or ``continue_final_message``, and whatever else the template reads.

    Raises:
        TemplateFault: the template raised, or took too much time or memory.
    """
    from transformers import PreTrainedTokenizerBase

    if getattr(type(tokenizer), "apply_chat_template", None) is not PreTrainedTokenizerBase.apply_chat_template:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TemplateFault(str(error)) from None
    kept = [{name: value for name, value in message.items() if value is not None} for message in messages]
    return WRITER.write(template, kept, {**tokenizer.special_tokens_map, **options})
