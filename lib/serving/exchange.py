"""One request and its response: bodies read within limits, JSON, events that a client reads, and clients that leave."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lib.serving.limits import Limits
from lib.serving.problems import Problem, invalid

QUIET = 15.0  # seconds without an event, after which a comment keeps proxies from closing the connection


class Json(Response):
    """A JSON response; half a character that a client sent is written as "?"."""

    media_type = "application/json"

    def render(self, content) -> bytes:
        return encoded(content)


def encoded(content) -> bytes:
    """UTF-8 JSON without spaces; numbers that JSON lacks are written as null."""
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _finite(content):
    if isinstance(content, dict):
        return {name: _finite(each) for name, each in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(each) for each in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


async def read_json(request: Request, limits: Limits):
    """The JSON body. Raises a `Problem` for another type, and for one that is too large, too slow or no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site can send the other types without being asked for leave
        raise Problem("media_type", "Expected request with `Content-Type: application/json`")
    try:
        async with asyncio.timeout(limits.body_seconds):
            body = await _body(request, limits.body_bytes)
    except TimeoutError:
        raise Problem("timeout", f"the body did not come within {limits.body_seconds:g} seconds") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise invalid("Failed to parse the request body as JSON") from None


async def _body(request: Request, most: int) -> bytes:
    said = request.headers.get("content-length", "")
    parts, length = [], int(said) if said.isascii() and said.isdigit() and len(said) < 19 else 0
    too_large = Problem("too_large", f"the body is larger than the {most} bytes that are allowed")
    if length > most:
        raise too_large
    length = 0
    async for part in request.stream():
        length += len(part)
        if length > most:
            raise too_large
        parts.append(part)
    return b"".join(parts)


async def while_connected(request: Request, work: Awaitable):
    """What `work` gives; it is cancelled where the client leaves, which raises `ClientDisconnect`."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect()
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Response):
    """Server-sent events from an iterator of JSON objects and strings; it is closed where the client leaves.

    The status is sent with the first event, so that what goes wrong before it has a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator, headers: dict[str, str] | None = None):
        told = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(headers=told)
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope, receive, send) -> None:
        task, gone = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            for each in (task, gone):
                each.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)
            await self.events.aclose()

    async def _send(self, send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pending = asyncio.ensure_future(anext(self.events, None))
        try:
            while True:
                done, _ = await asyncio.wait({pending}, timeout=QUIET)
                event = pending.result() if done else ...
                if event is None:
                    break
                await send({"type": "http.response.body", "body": _line(event), "more_body": True})
                if done:
                    pending = asyncio.ensure_future(anext(self.events, None))
        finally:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _line(event) -> bytes:
    if event is ...:
        return b": waiting\n\n"
    return b"data: " + (event.encode() if isinstance(event, str) else encoded(event)) + b"\n\n"
