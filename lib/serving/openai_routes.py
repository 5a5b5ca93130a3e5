"""OpenAI's routes: /v1/models, /v1/completions and /v1/chat/completions."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from lib import timing
from lib.serving import openai_parameters, problems
from lib.serving.answers import Answer, Ask
from lib.serving.exchange import Events, Json, read_json, while_connected
from lib.serving.hall import Hall
from lib.serving.metrics import Metrics
from lib.serving.openai_chat import Chat
from lib.serving.openai_completions import Completion
from lib.serving.problems import Problem, invalid

_END = object()


class OpenAI:
    """The routes over the models of a `Hall`."""

    def __init__(self, hall: Hall, metrics: Metrics):
        self.hall, self.metrics, self.created = hall, metrics, int(time.time())

    async def models(self, request: Request) -> Response:
        """GET /v1/models: all that are offered, loaded or not."""
        return Json({"object": "list", "data": [self._model(name) for name in self.hall.names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        if name not in self.hall.names:
            raise Problem("not_found", f"The model `{name[:64]}` does not exist.", "model", "model_not_found")
        return Json(self._model(name))

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answer(request, Completion)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, Chat)

    def _model(self, name: str) -> dict:
        return {"id": name, "object": "model", "created": self.created, "owned_by": "thimble"}

    async def _answer(self, request: Request, form: type) -> Response:
        limits, begun = self.hall.limits, timing.clock()
        given = openai_parameters.read(form.TABLE, await read_json(request, limits), limits)
        artifact = await self.hall.artifact(given["model"])
        asks: list[Ask] = await asyncio.to_thread(form.asks, given, artifact, limits)
        if len(asks) > limits.sequences:
            raise invalid(f"{len(asks)} answers were asked for; at most {limits.sequences} are allowed.", "n")
        for ask in asks:
            self.metrics.validated(timing.clock() - begun, ask)
        answers = self.hall.ask(artifact, asks)
        said = form(given, artifact, f"{form.PREFIX}-{uuid.uuid4().hex}", int(time.time()))
        if given["stream"]:
            return Events(self._events(said, answers, begun))
        try:
            await while_connected(request, asyncio.gather(*(each.whole() for each in answers)))
        finally:
            self.hall.leave(answers)
            self.metrics.ended(answers, begun)
        return Json(said.whole(said.best(answers)))

    async def _events(self, said, answers: list[Answer], begun: float) -> AsyncIterator[dict | str]:
        """Chunks of all answers as they come, each with the index of its answer."""
        queue: asyncio.Queue = asyncio.Queue()
        tasks = [asyncio.create_task(_forward(said.told(n, each), queue)) for n, each in enumerate(answers)]
        try:
            left = len(tasks)
            while left:
                event = await queue.get()
                if event is _END:
                    left -= 1
                elif isinstance(event, Problem):
                    raise event
                else:
                    yield event
            if said.given["usage"]:
                yield said.usage_chunk(answers)
            yield "[DONE]"
        except Problem as problem:
            self.metrics.failed(problem.kind)
            yield problems.body(problem, openai=True)
        finally:
            for task in tasks:
                task.cancel()
            self.hall.leave(answers)
            self.metrics.ended(answers, begun)


async def _forward(chunks: AsyncIterator[dict], queue: asyncio.Queue) -> None:
    try:
        async for chunk in chunks:
            queue.put_nowait(chunk)
        queue.put_nowait(_END)
    except Problem as problem:
        queue.put_nowait(problem)
