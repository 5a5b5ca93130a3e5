"""The recipe's clock: what its parts take on this machine, what is left of the minutes, and what that decided.

`predict` tries each part on the first block. What was predicted is compared with what it took as the work goes on, and
the decisions still to come believe a slow machine. `Plan` keeps them, so that a killed job resumes as it was begun.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor, nn

from lib import files, timing
from lib.jobs import circumstances, fingerprint, same_job
from lib.models import blocks, logits
from lib.quantizers import calibrate, embedding, refined, scales, sensitivity

EPOCHS = 6  # times that tuning may see a window: more of them fit the calibration text and nothing else
FEWEST = 16  # calibration windows that are used however little time there is
FIRST = 0.3  # share of the time for walking the windows, where there are more of them than it allows
ROUNDING = 0.65  # share of the time left for learning that rounding gets
RESERVE = 0.1  # share of the time that no decision counts on
# what a window costs without learning, in forward passes of the decoder: its blocks run with hooks and without, as the
# original's and as the compressed ones', and a Hessian costs about a pass
REMEMBERED, MEASURED, EMBEDDED, WALKED = 1, 5, 1, 4
TRIAL = 20  # forward passes that it takes to find out how long a step of tuning takes
EVERY = 10  # seconds between two notes of the time that a training has spent


def predict(model: nn.Module, tokens: Tensor, *, sized: bool, group_size: int, batch: int) -> dict[str, float]:
    """Seconds of the recipe's parts, each tried on a few of `tokens` [count, length]; `model` stays as it is.

    pass: of the decoder over a window. block, step: `refined.seconds`. measuring, embedding: of the sensitivities and
    of embedding and head, beside their passes; 0 unless the artifact is `sized`.
    """
    with logits.evaluating(model):
        logits.hidden_states(model, tokens[:1])
        with timing.stopwatch() as watch:
            logits.hidden_states(model, tokens[:1])
    block, step = refined.seconds(model, tokens, group_size=group_size, batch=batch)
    found = {"pass": watch.seconds, "block": block, "step": step, "measuring": 0.0, "embedding": 0.0}
    if sized:
        found["measuring"] = sensitivity.seconds(model, tokens, group_size=group_size)
        found["embedding"] = embedding.seconds(model, group_size=group_size)
    return found


class Plan:
    """What was decided, and the seconds spent, kept as `plan.json` in `folder` (None keeps nothing).

    job: what the decisions hold for. A folder of another job is refused with a ValueError that says what differs.
    begun: when the job was started, on `speed.clock`. A killed job's seconds count, up to the last that it noted.
    """

    def __init__(self, folder: Path | str | None, begun: float, model: nn.Module, tokens: Tensor, **job):
        self.path = None if folder is None else Path(folder) / "plan.json"
        self.kept, self.begun, self.spent = {}, begun, 0.0
        if self.path:
            job = circumstances() | fingerprint(model, tokens) | job
            job = {key: str(value) for key, value in sorted(job.items())}
            if self.path.exists():
                self.kept = json.loads(self.path.read_text())
                same_job(folder, self.kept.get("job", {}), job)
                self.spent = self.kept["elapsed"]
            self.kept["job"] = job

    def elapsed(self) -> float:
        """Seconds that the job has taken so far."""
        return self.spent + timing.clock() - self.begun

    def note(self) -> None:
        """Write everything down, with the seconds spent."""
        self.kept["elapsed"] = self.elapsed()
        if self.path:
            files.write_text(self.path, json.dumps(self.kept, indent=1))

    def once(self, name: str, decide: Callable):
        """What is called `name`: as it was decided the first time."""
        if name not in self.kept:
            self.kept[name] = decide()
            self.note()
        return self.kept[name]

    def folder(self, part: str) -> Path | None:
        """Where `part` of the recipe keeps its state."""
        return self.path and self.path.parent / part


class Fixed:
    """As `Pace`, for a number of steps that is given: no clock decides anything."""

    stop = None

    def __init__(self, steps: int):
        self.steps = steps

    def windows(self, tokens: Tensor) -> int:
        return len(tokens)

    def measuring(self):
        return contextlib.nullcontext()

    def rounding(self) -> int:
        return self.steps

    def tuning(self, *_) -> int:
        return self.steps


class Pace:
    """How `minutes` are spent on `windows` and on steps; what was decided stands in `plan`.

    No decision counts on the last `RESERVE` of the time, and each is made as late as it can be: the steps of a block
    before that block, those of tuning behind all blocks.
    """

    def __init__(self, plan: Plan, model: nn.Module, tokens: Tensor, *, minutes: float, sized: bool, **options):
        self.plan, self.total, self.count = plan, 60 * minutes, len(tokens)
        path = blocks.path_of_blocks(model)
        self.names = [f"{path}.{index}" for index in range(len(model.get_submodule(path)))]
        self.taken = self.expected = 0.0  # seconds of what is done, and what was predicted for it
        self.last = self.noted = plan.elapsed()
        self.block, self.stepped = -1, None  # which block, and when a step of tuning, was begun last
        # all at once: what is refused, for time or memory, leaves no trace in the folder
        self.start = plan.once("start", lambda: self._start(model, tokens, sized, options))
        self.parts, self.batch = self.start["seconds"], options["batch"]

    def left(self) -> float:
        """Seconds until the reserve begins, as long as those that were predicted."""
        return ((1 - RESERVE) * self.total - self.plan.elapsed()) / self.slower()

    def slower(self) -> float:
        """How many times as long as predicted the parts took that are done; 1 where they took less."""
        return max(1.0, self.taken / self.expected) if self.expected else 1.0

    def windows(self, _: Tensor | None = None) -> int:
        """How many windows to use, so that learning is left a fair share of the time."""
        return self.start["windows"]

    def _start(self, model: nn.Module, tokens: Tensor, sized: bool, options: dict) -> dict:
        """The windows that fit, beside the seconds that say so; ValueError or MemoryError where too few of them do."""
        parts = predict(model, tokens, sized=sized, **options)
        each = parts["pass"] * (REMEMBERED + WALKED + (MEASURED + EMBEDDED if sized else 0))
        fixed = parts["measuring"] + parts["embedding"] + len(self.names) * parts["block"]
        fewest = min(FEWEST, self.count)
        if (least := fixed + fewest * each) > self.left():
            enough = (self.plan.elapsed() + least) / (1 - RESERVE) / 60
            digits = 2 - math.ceil(math.log10(enough))
            raise ValueError(
                f"minutes={self.total / 60:g} are too few: on this machine {fewest} windows of calibration take about "
                f"{least:.3g} s without any learning; give minutes={math.ceil(enough * 10**digits) / 10**digits:g} or "
                "more, or shorter windows, or a quicker method of `quantizers.by_name`."
            )
        affordable = min(FIRST * self.total, self.left() - fixed) / each
        windows = max(fewest, min(self.count, int(affordable)))
        calibrate.check_memory(model, tokens[:windows], streams=2)
        return {"windows": windows, "seconds": parts}

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """The sensitivities are being measured: what they take is compared with what was predicted."""
        with timing.stopwatch() as watch:
            yield
        self.taken += watch.seconds
        self.expected += self.parts["measuring"] + MEASURED * self.parts["pass"] * self.windows()

    def rounding(self) -> Callable[[str], int]:
        """A function that says how many steps of rounding the block of a name gets."""
        planned = self.plan.once("rounding", self._planned)
        return lambda name: self.plan.once(f"rounding of {name}", lambda: self._rounding(name, planned))

    def _planned(self) -> int:
        """Steps of rounding in each block that fit into their share of the time left."""
        learning = self.left() - self.parts["embedding"] - EMBEDDED * self.parts["pass"] * self.windows()
        each = learning / len(self.names) - self._block()
        return max(0, min(EPOCHS * self.windows() // self.batch, int(ROUNDING * each / self.parts["step"])))

    def _rounding(self, name: str, planned: int) -> int:
        """As many steps as planned, or what fits if the blocks before took longer than that allows."""
        index, now = self.names.index(name), self.plan.elapsed()
        if index and self.block == index - 1:
            self.taken += now - self.last
            before = self.plan.kept[f"rounding of {self.names[self.block]}"]
            self.expected += self._block() + before * self.parts["step"]
        self.last, self.block = now, index
        rest = len(self.names) - index
        return max(0, min(planned, int((self.left() / rest - self._block()) / self.parts["step"])))

    def _block(self) -> float:
        """Seconds that a block takes without learning."""
        return self.parts["block"] + WALKED * self.parts["pass"] * self.windows() / len(self.names)

    def tuning(self, model: nn.Module, tokens: Tensor, reference) -> int:
        """Steps of tuning that fit into the time left; finding that out takes time of its own, which is not left."""
        if self.left() < TRIAL * self.parts["pass"]:
            return 0
        with timing.stopwatch() as watch:
            each = scales.seconds_per_step(model, tokens, reference)
        again = max(0.0, watch.seconds - each)  # all is made ready once more
        free = (1 - RESERVE) * self.total - self.plan.elapsed() - again
        return max(0, min(EPOCHS * len(tokens), int(free / each)))

    def stop(self, step: int) -> bool:
        """Whether tuning ends after `step` steps: where it ended before, or where another would exceed the minutes."""
        now = self.plan.elapsed()
        each, self.stepped = now - (self.stepped or now), now
        if "tuned" not in self.plan.kept and now + each > self.total:
            self.plan.once("tuned", lambda: step)
        elif now > self.noted + EVERY:
            self.noted = now
            self.plan.note()
        return step >= self.plan.kept.get("tuned", math.inf)
