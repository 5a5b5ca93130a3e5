"""The thread that generates: it drives the loops, takes requests in between two steps, and tells what came.

Nothing else touches a loop. Everything that a step made is given to the event loop at once, so that telling costs one
wake-up a step, whatever the number of answers.
"""

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Callable

from lib.decoding.requests import Request
from lib.serving.artifacts import Artifact


class Engine:
    """One thread for all models; requests of several models take turns, a step each."""

    def __init__(self):
        self._wake, self._inbox, self._stopping = threading.Condition(), [], False
        self._outbox: list[tuple[asyncio.AbstractEventLoop, Callable, object]] = []
        self.artifacts: list[Artifact] = []
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self.steps = 0
        self._thread.start()

    def add(self, artifact: Artifact) -> None:
        """Serve one more model."""
        self._call(lambda: self.artifacts.append(artifact))

    def remove(self, artifact: Artifact) -> None:
        """Serve a model no longer; it must have no requests."""
        self._call(lambda: artifact in self.artifacts and self.artifacts.remove(artifact))

    def submit(self, artifact: Artifact, requests: list[Request]) -> None:
        """Let requests join; what comes is told by their callbacks, in this thread."""
        self._call(lambda: [artifact.loop.add(request) for request in requests])

    def cancel(self, artifact: Artifact, request: Request, reason: str = "cancelled") -> None:
        """End a request before the next step."""
        self._call(lambda: artifact.loop.cancel(request, reason))

    def end(self, reason: str) -> None:
        """End all requests before the next step."""
        self._call(lambda: [each.loop.cancel(request, reason) for each in self.artifacts for request in _all(each)])

    def tell(self, loop: asyncio.AbstractEventLoop, function: Callable, event) -> None:
        """Call `function(event)` in the thread of `loop`, after this step; for callbacks of requests."""
        self._outbox.append((loop, function, event))

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after the present step."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _call(self, act: Callable) -> None:
        with self._wake:
            self._inbox.append(act)
            self._wake.notify()

    def _run(self) -> None:
        busy = False
        while True:
            with self._wake:
                while not self._inbox and not busy and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    return
                inbox, self._inbox = self._inbox, []
            for act in inbox:
                act()
            working = [each for each in self.artifacts if self._step(each)]
            busy = bool(working)
            self._flush()

    def _step(self, artifact: Artifact) -> bool:
        """One step of a model's loop; returns whether there is more to do."""
        if not artifact.busy:
            return False
        self.steps += 1
        try:
            artifact.loop.step()
        except Exception as error:  # whatever a model raises, the server and its other requests go on
            traceback.print_exception(error)
            self._fail(artifact)
        return artifact.busy

    def _fail(self, artifact: Artifact) -> None:
        """End the requests that took part in a step that failed; those that wait go on in a fresh loop."""
        old = artifact.loop
        artifact.loop = artifact.fresh_loop()
        for request in {**old.active, **old.backend.of}:
            request.answer.reason = "error"
            if request.failed is not None:
                request.failed(ValueError("the model could not compute it; the server's log says why"))
        for request in old.waiting:
            artifact.loop.add(request)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        by_loop: dict[asyncio.AbstractEventLoop, list] = {}
        for loop, function, event in outbox:
            by_loop.setdefault(loop, []).append((function, event))
        for loop, some in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(_deliver, some)


def _all(artifact: Artifact) -> list[Request]:
    return [*artifact.loop.waiting, *artifact.loop.backend.of]


def _deliver(some: list[tuple[Callable, object]]) -> None:
    for function, event in some:
        function(event)
