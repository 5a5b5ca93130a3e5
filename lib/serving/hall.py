"""The models of a server by name, and the answers under way: loads what is first asked for, evicts by memory.

All of it happens in the thread of the event loop, but for loading, which has a thread of its own.
"""

import asyncio
import difflib
import gc
import traceback
from collections.abc import Callable, Iterable

from lib import timing
from lib.serving.answers import Answer, Ask
from lib.serving.artifacts import Artifact
from lib.serving.engine import Engine
from lib.serving.limits import Limits
from lib.serving.problems import Problem, invalid

ALIASES = ("tgi", "default")  # what clients of text-generation-inference call the model


class Hall:
    """Offers models.

    names: what clients call the models, and what each is loaded by; the first is the default. load: gives the
    `Artifact` of the latter, and takes its time; it raises MemoryError where it finds no room.
    memory: bytes of weights that may stay loaded; the model that was asked for longest ago goes first, and so it does
    where another one finds no room.
    """

    def __init__(
        self, names: dict[str, str], load: Callable[[str], Artifact], limits: Limits, *, memory: int | None = None
    ):
        self.limits, self.memory, self._load = limits, memory, load
        self.engine = Engine()
        self._given = dict(names)
        self.loaded: dict[str, Artifact] = {}  # in the order in which they were asked for
        self._locks: dict[str, asyncio.Lock] = {}
        self.answers: set[Answer] = set()
        self.begun, self.stopping = timing.clock(), False

    @property
    def names(self) -> list[str]:
        """What clients call the models; the first is the default."""
        return list(self._given)

    def offer(self, artifact: Artifact) -> None:
        """Offer a model that is loaded already."""
        self._given.setdefault(artifact.name, artifact.name)
        self.loaded[artifact.name] = artifact
        self.engine.add(artifact)

    async def artifact(self, name: str | None = None) -> Artifact:
        """The model that clients call `name` (None: the default), loaded. Raises a `Problem` for an unknown name."""
        name = self.names[0] if name is None or (name in ALIASES and name not in self._given) else name
        if name not in self._given:
            near = difflib.get_close_matches(name, self._given, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"there is {', '.join(self.names)}."
            raise Problem("not_found", f"The model `{name[:64]}` does not exist; {hint}", "model", "model_not_found")
        async with self._locks.setdefault(name, asyncio.Lock()):
            if name not in self.loaded:
                self._evict(self.memory)
                self.offer(await self._loading(name))
                self._evict(self.memory and self.memory + 1, kept=name)  # two that are too large together
            self.loaded[name] = self.loaded.pop(name)
        return self.loaded[name]

    async def _loading(self, name: str) -> Artifact:
        loop = asyncio.get_running_loop()
        while True:
            try:
                found = await loop.run_in_executor(None, self._load, self._given[name])
                found.name = name
                return found
            except Exception as error:  # a folder that vanished, a broken file, no room: told here, not to the client
                if isinstance(error, MemoryError) and self._let_go():
                    await loop.run_in_executor(None, gc.collect)
                    continue
                traceback.print_exception(error)
                raise Problem(
                    "unavailable", f"The model `{name}` cannot be loaded; the server's log says why.", "model"
                ) from None

    def _evict(self, memory: int | None, kept: str | None = None) -> None:
        """Let models go until their weights take less than `memory` bytes, as far as nobody waits for them."""
        while memory is not None and sum(each.nbytes for each in self.loaded.values()) >= memory:
            if not self._let_go(kept):
                return

    def _let_go(self, kept: str | None = None) -> bool:
        """Let the model go that was asked for longest ago and that nobody waits for; False where there is none."""
        awaited = {id(answer.artifact) for answer in self.answers}
        name = next((name for name, each in self.loaded.items() if name != kept and id(each) not in awaited), None)
        if name is not None:
            self.engine.remove(self.loaded.pop(name))
        return name is not None

    def ask(self, artifact: Artifact, asks: Iterable[Ask]) -> list[Answer]:
        """Begin answers. Raises a `Problem` where too many wait, and while the server stops."""
        asks = list(asks)
        # it may have been let go while the request was read, and loaded again; nobody would step its answers
        artifact = self.loaded.get(artifact.name, artifact)
        if artifact.name not in self.loaded:
            self.offer(artifact)
        if self.stopping:
            raise Problem("unavailable", "The server is stopping.")
        if len(self.answers) + len(asks) > self.limits.slots + self.limits.queue:
            raise Problem("overloaded", "Model is overloaded")
        try:
            found = [Answer(self.engine, artifact, ask, seconds=self.limits.seconds) for ask in asks]
        except ValueError as error:  # a setting that the sampler refuses
            raise invalid(str(error)) from None
        self.answers.update(found)
        self.engine.submit(artifact, [each.request for each in found])
        return found

    def leave(self, answers: Iterable[Answer]) -> None:
        """Forget answers that have ended; others are cancelled: their slots are free before the next step."""
        for each in answers:
            each.cancel()
            self.answers.discard(each)

    def stop(self) -> None:
        """Begin nothing new."""
        self.stopping = True

    def end(self) -> None:
        """End the answers under way; their clients are told."""
        self.engine.end("stopping")

    def close(self) -> None:
        """End the thread that generates."""
        self.engine.stop()

    @property
    def waiting(self) -> int:
        """Requests that no slot has taken yet."""
        return sum(each.request.answer.entered is None and each.generation is None for each in self.answers)
