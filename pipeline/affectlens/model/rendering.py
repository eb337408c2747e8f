"""The program that writes chats by a model's template, for :mod:`.templates`, which starts it by this file's path.

It reads one JSON line for each chat and answers with one. transformers' own function runs the template; the system ends
this process when a chat takes more processor time than it may, in Python or in C.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

LETTERS = 1 << 26
"""Of a written chat, at most."""
READY = "ready\n"


def serve(seconds: float, memory: int) -> None:
    """Write the chats that are asked for on standard input until it ends.

    Args:
        seconds: of processor time for each.
        memory: bytes beyond what the process has when it is ready.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for who asks; the end of the input ends this
    if sys.platform == "linux":
        import resource

        size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = size + memory if hard == resource.RLIM_INFINITY else min(hard, size + memory)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    timed = hasattr(signal, "setitimer")
    answers.write(READY)
    answers.flush()
    for line in sys.stdin:
        job = json.loads(line)
        if timed:
            signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal is not handled, so it ends the process
        try:
            ((text,), _) = render_jinja_template([job["messages"]], chat_template=job["template"], **job["options"])
            answer = {"text": text} if len(text) <= LETTERS else {"fault": f"it writes {len(text):,} letters"}
        except MemoryError:
            answer = {"fault": f"it takes more than {memory >> 20} MiB of memory"}
        except Exception as error:  # templates are programs: they raise anything
            answer = {"fault": " ".join(str(error).split())[:300] or type(error).__name__}
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
