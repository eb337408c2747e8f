"""Connections that have to say within a time what they want.

uvicorn limits how long an answered connection may idle, but not how long a client may take to send the head of a
request. 256 clients that send a letter a minute would take every connection there is.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 256
"""At once; more are told to come back."""
HEAD_S = 20.0
"""Seconds in which the head of a request has to be there, from the connection or from the last answer on."""


class Connection(H11Protocol):
    """uvicorn's connection, closed if no request begins in time; a head is no longer than h11 takes, 64 KiB."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head is not None:
            self._head.cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        """A head within the time from now."""
        if self._head is not None:
            self._head.cancel()
        self._head = self.loop.call_later(HEAD_S, self._late)

    def _late(self) -> None:
        # A request that is being answered began in time; its body has a limit of its own.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def settings(app: Any, **options: Any) -> uvicorn.Config:
    """uvicorn's settings: nothing is logged of what a client writes, and connections are limited in number and time."""
    return uvicorn.Config(
        app, http=Connection, access_log=False, server_header=False, ws="none", lifespan="off",
        limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=2, **options,
    )  # fmt: skip
