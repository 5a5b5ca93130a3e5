"""A server in a thread of this process, for notebooks and tests: on a free port of this machine, until it is closed."""

import asyncio
import threading
from collections.abc import Callable

import uvicorn

from lib import timing
from lib.serving.app import build
from lib.serving.artifacts import Artifact
from lib.serving.hall import Hall
from lib.serving.limits import Limits
from lib.serving.listener import bind


class Background:
    """A server that runs when this returns; `url` is its address.

    artifacts: models that are offered, the first is the default; their limits are the server's. names, load: models
    that are loaded when they are asked for, as for `Hall`. how: arguments of `app.build`.
    """

    def __init__(self, *artifacts: Artifact, names=(), load=None, limits: Limits | None = None, **how):
        limits = limits or (artifacts[0].limits if artifacts else Limits())
        self.hall = Hall({name: name for name in names}, load, limits)
        for each in artifacts:
            self.hall.offer(each)
        listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            build(self.hall, **how), log_level="warning", access_log=False, timeout_graceful_shutdown=5
        )
        self._server, begun = uvicorn.Server(config), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listener, begun), daemon=True)
        self._thread.start()
        begun.wait()

    def _run(self, listener, begun: threading.Event) -> None:
        async def serve() -> None:
            running = asyncio.ensure_future(self._server.serve(sockets=[listener]))
            while not self._server.started and not running.done():
                await asyncio.sleep(0.001)
            begun.set()
            await running

        asyncio.run(serve())

    def close(self) -> None:
        """End answers under way, and the server."""
        self.hall.stop()
        self.hall.end()
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def wait(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Wait until `condition()` holds; returns whether it came to that."""
    end = timing.clock() + seconds
    while not condition() and timing.clock() < end:
        threading.Event().wait(0.01)
    return condition()
