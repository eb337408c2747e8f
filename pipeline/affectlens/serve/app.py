"""The HTTP side: OpenAI's endpoints and the live page.

Bodies are read up to a limit and within a time. A client that goes away ends its generation. Nothing that a client
writes is logged. Requests of other web pages are refused: a body has to be declared as JSON, which a browser asks about
first, and the answer to that question is no.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import logging
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from affectlens.errors import UserError, is_out_of_memory
from affectlens.report.palette import stylesheet
from affectlens.report.policy import checksums
from affectlens.serve.generation import End, Event, Failure
from affectlens.serve.protocol import ChatRequest, CompletionRequest, Refused, parse
from affectlens.serve.replies import Replies
from affectlens.serve.service import Asked, Service

log = logging.getLogger(__name__)
GONE = 499
"""Status for a client that has left; nobody reads it."""


def build(service: Service, hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]")) -> Starlette:
    """The application.

    Args:
        service: what is served.
        hosts: names under which it may be asked for, so that no name of another site's can be made to point here; ``*``
            for any.
    """
    page, policy = _page()

    async def live(request: Request) -> Response:
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(page, headers=headers)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", **service.engine.load})

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [service.card()]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != service.name:
            raise Refused(f"there is no such model; this is `{service.name}`", status=404, code="model_not_found")
        return JSONResponse(service.card())

    async def chat(request: Request) -> Response:
        asked = parse(await _body(request, service), ChatRequest)
        return await _answer(request, service, asked, service.chat(asked))

    async def completion(request: Request) -> Response:
        asked = parse(await _body(request, service), CompletionRequest)
        return await _answer(request, service, asked, service.completion(asked))

    return Starlette(
        routes=[
            Route("/", live),
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completion, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={Refused: _refused, HTTPException: _no_route, Exception: _failed},
    )


def _page() -> tuple[str, str]:
    """The live page, and the policy that lets its own script and style run and nothing else."""
    text = importlib.resources.files("affectlens.serve").joinpath("page.html").read_text(encoding="utf-8")
    text = text.replace("<style>", f"<style>\n{stylesheet('paper')}", 1)
    allowed = {tag: checksums(*re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src {allowed['script']}; style-src {allowed['style']}; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


async def _body(request: Request, service: Service) -> bytes:
    """The body of a POST.

    Raises:
        Refused: it is no JSON, too large or too slow.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("send `Content-Type: application/json`", status=415, code="invalid_content_type")
    limit, body = service.limits.body, bytearray()
    too_large = Refused(f"the body is larger than {limit} bytes", status=413, code="request_too_large")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > limit:
        raise too_large
    try:
        async with asyncio.timeout(service.limits.seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        message = f"the body took longer than {service.limits.seconds:g} seconds"
        raise Refused(message, status=408, code="request_timeout") from None
    except ClientDisconnect:
        raise Refused("the client has gone away", status=GONE) from None
    return bytes(body)


class _Listening:
    """The events of a request's generations, from the engine's thread into the loop."""

    def __init__(self, service: Service, asked: Sequence[Asked]) -> None:
        """Begin all of them, or none.

        Raises:
            Refused: too many wait.
        """
        loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._left = sum(each.job.samples for each in asked)
        self._generations = []
        try:
            for number, each in enumerate(asked):

                def sink(event: Event, number: int = number) -> None:
                    loop.call_soon_threadsafe(self._told.put_nowait, (number, event))

                self._generations.append(service.submit(each, sink))
        except Refused:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Nobody listens any more."""
        for generation in self._generations:
            generation.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Which prompt, and what happened; leaving early cancels all.

        Raises:
            Refused: a generation failed.
        """
        try:
            while self._left:
                number, event = await self._told.get()
                if isinstance(event, Failure):
                    raise _failure(event.error)
                self._left -= isinstance(event, End)
                yield number, event
        finally:
            self.cancel()


def _failure(error: BaseException) -> Refused:
    if is_out_of_memory(error):
        return Refused("memory ran out; ask for less", status=503, kind="server_error", code="out_of_memory")
    said = str(error) if isinstance(error, UserError) else "the server failed; its log says why"
    return Refused(said, status=500, kind="server_error", code="server_error")


async def _answer(request: Request, service: Service, wanted: Any, asked: Sequence[Asked]) -> Response:
    replies, listening = Replies(service, wanted, asked), _Listening(service, asked)
    if wanted.stream:
        stream = _stream(replies, listening, usage=wanted.stream_options.include_usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    work, gone = asyncio.create_task(_collect(listening, len(asked))), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=GONE)
        return JSONResponse(replies.whole(work.result()))
    finally:
        for task in (work, gone):
            task.cancel()
        listening.cancel()


async def _collect(listening: _Listening, prompts: int) -> list[list[Event]]:
    events: list[list[Event]] = [[] for _ in range(prompts)]
    async for number, event in listening.events():
        events[number].append(event)
    return events


async def _stream(replies: Replies, listening: _Listening, *, usage: bool) -> AsyncIterator[str]:
    """Server-sent events; one that failed ends with the error."""
    try:
        async for number, event in listening.events():
            for chunk in replies.chunks(number, event):
                yield _sent(chunk)
        if usage:
            yield _sent(replies.usage_chunk())
        yield "data: [DONE]\n\n"
    except Refused as error:
        yield _sent(error.body)
    finally:
        listening.cancel()


def _sent(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body, status_code=error.status)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "there is nothing here", 405: "this path does not take the method"}.get(
        error.status_code, error.detail
    )
    return JSONResponse(Refused(what, code="not_found").body, status_code=error.status_code, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    refused = _failure(error)
    return JSONResponse(refused.body, status_code=refused.status)
