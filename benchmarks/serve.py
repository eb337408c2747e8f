"""Serving: tokens a second and time to the first token, against transformers' own ``generate`` without a server.

Ours is all of it: HTTP on loopback, JSON, server-sent events, sampling; in further rows steering and the readings of
one concept at every token. The server has a process of its own, as ``affectlens serve`` has; the clients are threads of
this one. The peer is ``generate`` on the same weights in this process, greedy, unsteered and unread, with the prompts
of all clients as one padded batch; it runs while the server rests. The first token of the peer is a ``generate`` of one
token. All compute with one torch thread. The study is the quickstart; what it lacks up to its directions is computed
first. Some three minutes on two cores on which little else runs.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import affectlens
import harness
import httpx
import torch
import uvicorn
from affectlens.model.loading import load_weights
from affectlens.serve.app import build
from affectlens.serve.service import Service
from harness import Row

CLIENTS = 8
TEXTS = [
    "Nobody came, and the lamp is still on. What should I do?", "Tell me about your day.", "Why is the sea salty?",
    "My sister has won the race!", "The letter that I waited for has come at last. Read it with me, please.",
    "How do I ask for more time?", "Write two lines about rain.", "They have sold the house in which I grew up.",
]  # fmt: skip
STEERED = {"vectors": {"desperate": 0.1}, "readings": ["desperate"]}


def serve(listening: socket.socket, ready: Connection) -> None:
    """What the server's process does, until it is ended."""
    torch.set_num_threads(1)
    service = Service(affectlens.open_study("quickstart"))
    # Both contenders say all their tokens, whatever the model would end at.
    service.engine.ending = frozenset()
    config = uvicorn.Config(build(service), log_level="error", access_log=False, ws="none", lifespan="off")
    ready.send(True)
    uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = context.Process(target=serve, args=(listening, there), daemon=True)
        process.start()
        there.close()
        here.recv()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"
        process.terminate()
        process.join()


def ask(client: httpx.Client, address: str, own: dict[str, Any], steps: int, text: str) -> None:
    """One greedy answer, streamed to its end."""
    body = {
        "model": "quickstart", "messages": [{"role": "user", "content": text}], "max_tokens": steps, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True}, "affectlens": own,
    }  # fmt: skip
    with client.stream("POST", address, json=body, timeout=600) as reply:
        *_, last, _, done, _ = reply.iter_lines()
    if done != "data: [DONE]" or json.loads(last[6:])["usage"]["completion_tokens"] != steps:
        raise SystemExit("an answer has not all its tokens; nothing was timed")


def measure(quick: bool) -> list[Row]:
    """All rows, contenders taken in turns."""
    steps, repeats = (12, 2) if quick else (48, 4)
    study = affectlens.run_study("quickstart", stages=["directions"])
    tokenizer = study.tokenizer
    assert study.study is not None
    setting = study.study.setting("cpu")
    model = load_weights(setting.model, device="cpu", models=setting.models)
    tokenizer.padding_side = "left"

    def generate(texts: list[str], count: int) -> None:
        chats = [[{"role": "user", "content": text}] for text in texts]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            model.generate(**batch, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)

    with serving() as address, httpx.Client() as client, ThreadPoolExecutor(CLIENTS) as pool:

        def served(clients: int, own: dict[str, Any], count: int) -> None:
            texts = TEXTS[:clients]
            list(pool.map(lambda text: ask(client, address, own, count, text), texts))

        contenders: dict[str, Callable[[], Any]] = {}
        for clients in (1, CLIENTS):
            contenders |= {
                f"plain {clients}": partial(served, clients, {}, steps),
                f"steered {clients}": partial(served, clients, STEERED, steps),
                f"peer {clients}": partial(generate, TEXTS[:clients], steps),
            }
        contenders |= {
            "first": partial(served, 1, {}, 1), "first read": partial(served, 1, STEERED, 1),
            "first peer": partial(generate, TEXTS[:1], 1),
        }  # fmt: skip
        seconds = harness.medians(contenders, repeats)
    rows = []
    for clients in (1, CLIENTS):
        rate = {name: clients * steps / seconds[f"{name} {clients}"] for name in ("plain", "steered", "peer")}
        many = f"{clients} client{'s' * (clients > 1)}, answers of {steps} tokens"
        rows.append(Row(f"{many}; peer: transformers' generate", rate["plain"], rate["peer"], "tokens/s", more=True))
        rows.append(Row(f"{many}, steered and read; same peer", rate["steered"], rate["peer"], "tokens/s", more=True))
    rows.append(Row("first token, 1 client; peer: generate of one token", seconds["first"], seconds["first peer"], "s"))
    rows.append(Row("first token, steered and read", seconds["first read"], seconds["first peer"], "s"))
    return rows


def main() -> None:
    """Run and print one table."""
    chosen = harness.options(__doc__)
    torch.set_num_threads(1)
    rows = measure(chosen.quick)
    harness.print_table(rows)
    if chosen.json:
        described = harness.machine("torch", "transformers", "uvicorn", "starlette") | {"threads": 1}
        harness.write_json(chosen.json, rows, described)


if __name__ == "__main__":
    main()
