"""The server as an ASGI application: routes, who may ask, how often, and what every response carries."""

import asyncio
import contextlib
import hmac
import re
import traceback
import uuid
from collections import OrderedDict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from lib import timing
from lib.serving import openapi, page, problems
from lib.serving.exchange import Json
from lib.serving.hall import Hall
from lib.serving.metrics import Metrics
from lib.serving.openai_routes import OpenAI
from lib.serving.problems import Problem
from lib.serving.tgi import TextGeneration

OPEN = ("/health", "/ping")  # without a key
ASKING = ("/", "/generate", "/generate_stream", "/v1/completions", "/v1/chat/completions")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KINDS = {404: "not_found", 405: "method", 413: "too_large"}
_MOST_ADDRESSES = 10_000  # whose requests are counted


def build(hall: Hall, *, key: str | None = None, hosts: tuple[str, ...] = ()) -> Starlette:
    """The application over the models of `hall`.

    key: what clients must send as a bearer token. hosts: names by which they may call the server; none allows all. A
    server that listens on this machine alone should allow its own names alone: a page of another site could reach it
    under a name of that site's (DNS rebinding).
    """
    metrics = Metrics(hall)
    tgi, openai = TextGeneration(hall, metrics), OpenAI(hall, metrics)

    async def root(request: Request) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "")
        return page.response() if wants_page else await tgi.health(request)

    async def shown(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def described(request: Request) -> Response:
        return Json(openapi.document(hall))

    routes = [
        ("/", root, "GET"), ("/", tgi.root, "POST"), ("/generate", tgi.generate, "POST"),
        ("/generate_stream", tgi.generate_stream, "POST"), ("/tokenize", tgi.tokenize, "POST"),
        ("/info", tgi.info, "GET"), ("/health", tgi.health, "GET"), ("/ping", tgi.health, "GET"),
        ("/metrics", shown, "GET"), ("/v1/models", openai.models, "GET"),
        ("/v1/models/{name:path}", openai.model, "GET"), ("/v1/completions", openai.completions, "POST"),
        ("/v1/chat/completions", openai.chat, "POST"), ("/openapi.json", described, "GET"),
    ]  # fmt: skip

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        hall.close()

    handlers = dict.fromkeys((Problem, HTTPException, ClientDisconnect), _refusing(metrics))
    made = Starlette(
        routes=[Route(path, function, methods=[method]) for path, function, method in routes],
        exception_handlers=handlers, lifespan=lifespan,
    )  # fmt: skip
    made.router.redirect_slashes = False
    made.state.metrics = metrics
    made.add_middleware(Gate, hall=hall, metrics=metrics, key=key, hosts=hosts)
    return made


def _refusing(metrics: Metrics):
    """What turns an error into a response, and counts it."""

    async def refused(request: Request, error: Exception) -> Response:
        return _refusal(request, error, metrics)

    return refused


def _refusal(request: Request, error: Exception, metrics: Metrics) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    problem = error
    if isinstance(error, HTTPException):
        problem = Problem(_KINDS.get(error.status_code, "validation"), str(error.detail))
    if request.url.path in ASKING and request.method == "POST":
        metrics.failed(problem.kind)
    openai = request.url.path.startswith("/v1/")
    found = problems.headers(problem)
    return Json(problems.body(problem, openai), problems.status(problem, openai), headers=found)


class Gate:
    """What stands before every route: host, key, rate, and the id that a request is known by."""

    def __init__(self, app, *, hall: Hall, metrics: Metrics, key: str | None, hosts: tuple[str, ...]):
        self.app, self.hall, self.metrics, self.hosts = app, hall, metrics, hosts
        self.key = None if key is None else f"Bearer {key}".encode()
        self.spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (tokens left, when)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        begun = False

        async def named(message):
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            if scope["path"] in ASKING and scope["method"] == "POST":
                self.metrics.asked()
            self._check(request)
            await self.app(scope, receive, named)
        except Problem as problem:
            await _refusal(request, problem, self.metrics)(scope, receive, named)
        except (OSError, asyncio.CancelledError):
            raise
        except Exception as error:  # a fault of ours: said in the log, under the id that the client sees
            print(f"request {name}:", flush=True)
            traceback.print_exception(error)
            if not begun:
                self.metrics.failed("generation")
                said = {"error": "the server failed; its log has this request's id", "error_type": "incomplete"}
                await Json(said, 500)(scope, receive, named)
        return None

    def _check(self, request: Request) -> None:
        path, host = request.url.path, request.headers.get("host", "")
        if self.hosts and _bare(host) not in self.hosts:
            raise Problem("validation", "this server is not called by that name; allow it with --allow-host")
        if path not in OPEN and not (path == "/" and request.method == "GET"):
            sent = request.headers.get("authorization", "").encode("latin-1", "replace")
            if self.key is not None and not hmac.compare_digest(sent, self.key):
                raise Problem("unauthorized", "the key is missing or wrong; send it as `Authorization: Bearer KEY`")
        if self.hall.limits.rate and path in ASKING and request.method == "POST":
            self._count(request.client.host if request.client else "")

    def _count(self, address: str) -> None:
        """A bucket for each address: as many requests as the rate has in a minute, filled evenly."""
        now, rate = timing.clock(), self.hall.limits.rate
        left, then = self.spent.pop(address, (float(rate), now))
        left = min(rate, left + (now - then) * rate / 60)
        self.spent[address] = (max(left - 1, 0.0) if left >= 1 else left, now)
        while len(self.spent) > _MOST_ADDRESSES:
            self.spent.popitem(last=False)
        if left < 1:
            raise Problem("overloaded", f"more than {rate} requests a minute from one address")


def _bare(host: str) -> str:
    """A host without its port."""
    return host.rpartition(":")[0] if re.search(r":\d+$", host) else host
