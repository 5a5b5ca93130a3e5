"""The recipe's time budget: how long its parts take on this machine, and how many windows and steps fit the limit.

`predict` times each part on the first block. Predicted and actual times are compared as the run proceeds; if the
machine is slower than predicted, later decisions use the slower rate. `JobLog` stores the decisions, so that a killed
job resumes with the same ones.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor, nn

from lib import files, timing
from lib.folders.turns import Alone
from lib.jobs import environment_fingerprint, fingerprint, same_job
from lib.models import blocks, logits
from lib.quantizers import calibrate, e2e_qp, embedding, gptq_signround, sensitivity

EPOCHS = 6  # most passes of training over the calibration windows; more would overfit them
FEWEST = 16  # calibration windows used at least, however short the time
FIRST = 0.3  # share of the time for passes over the calibration windows; more windows than fit are left out
ROUNDING = 0.65  # share of the training time that SignRound gets
RESERVE = 0.1  # share of the time that is never planned for
# cost of a window without training, in forward passes of the decoder: blocks run with and without hooks, original and
# compressed, and a Hessian costs about one pass
REMEMBERED, MEASURED, EMBEDDED, WALKED = 1, 5, 1, 4
TRIAL = 20  # forward passes that timing one training step takes
EVERY = 10  # seconds between two saves of the elapsed time during training


def predict(model: nn.Module, tokens: Tensor, *, sized: bool, group_size: int, batch: int) -> dict[str, float]:
    """Seconds of each part of the recipe, timed on a few of `tokens` [count, length]; `model` is not changed.

    Keys: "pass", the decoder over one window; "block" and "step", see `gptq_signround.seconds`; "measuring" and
    "embedding", the sensitivities and the quantization of embedding and head without their passes (0 unless `sized`,
    that is unless the artifact has a size limit).
    """
    with logits.evaluating(model):
        logits.hidden_states(model, tokens[:1])
        with timing.stopwatch() as watch:
            logits.hidden_states(model, tokens[:1])
    block, step = gptq_signround.seconds(model, tokens, group_size=group_size, batch=batch)
    found = {"pass": watch.seconds, "block": block, "step": step, "measuring": 0.0, "embedding": 0.0}
    if sized:
        found["measuring"] = sensitivity.seconds(model, tokens, group_size=group_size)
        found["embedding"] = embedding.seconds(model, group_size=group_size)
    return found


class JobLog:
    """The decisions of a job and its elapsed seconds, stored as `plan.json` in `folder` (None stores nothing).

    job: what the decisions hold for. A folder of another job is refused with a ValueError that says what differs, and
    one in which another process works, until the end of its `with`, with a BlockingIOError.
    begun: when the job was started, on `timing.clock`. A killed job's seconds count, up to the last that it noted.
    """

    def __init__(self, folder: Path | str | None, begun: float, model: nn.Module, tokens: Tensor, **job):
        self.path = None if folder is None else Path(folder) / "plan.json"
        self.kept, self.begun, self.spent, self.alone = {}, begun, 0.0, None
        if self.path:
            files.check_name(self.path.parent)
            job = environment_fingerprint() | fingerprint(model, tokens) | job
            job = {key: str(value) for key, value in sorted(job.items())}
            if self.path.exists():
                self.kept = json.loads(self.path.read_text())
                same_job(folder, self.kept.get("job", {}), job)
                self.spent = self.kept["elapsed"]
                self.alone = Alone(folder)
            self.kept["job"] = job

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.alone is not None:
            self.alone.end()

    def elapsed(self) -> float:
        """Seconds that the job has taken so far, earlier runs included."""
        return self.spent + timing.clock() - self.begun

    def note(self) -> None:
        """Save all decisions and the elapsed seconds."""
        self.kept["elapsed"] = self.elapsed()
        if self.path and self.alone is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.alone = Alone(self.path.parent)
        if self.path:
            files.write_text(self.path, json.dumps(self.kept, indent=1))

    def once(self, name: str, decide: Callable):
        """The decision called `name`: `decide()` the first time, the stored value afterwards."""
        if name not in self.kept:
            self.kept[name] = decide()
            self.note()
        return self.kept[name]

    def folder(self, part: str) -> Path | None:
        """The folder in which `part` of the recipe keeps its state."""
        return self.path and self.path.parent / part


class FixedSteps:
    """The interface of `TimeBudget` for a given number of steps; the clock decides nothing."""

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


class TimeBudget:
    """Divides `minutes` among calibration windows and training steps; decisions are stored in `log`.

    The last `RESERVE` of the time is never planned for. Each decision is made as late as possible: the steps of a block
    just before that block, the training steps of the scales after all blocks.
    """

    def __init__(self, log: JobLog, model: nn.Module, tokens: Tensor, *, minutes: float, sized: bool, **options):
        self.log, self.total, self.count = log, 60 * minutes, len(tokens)
        path = blocks.path_of_blocks(model)
        self.names = [f"{path}.{index}" for index in range(len(model.get_submodule(path)))]
        self.taken = self.expected = 0.0  # actual and predicted seconds of the finished work
        self.last = self.noted = log.elapsed()
        self.block, self.stepped = -1, None  # the last block begun, and when the last training step began
        # one decision: a job refused for time or memory leaves nothing in the folder
        self.start = log.once("start", lambda: self._start(model, tokens, sized, options))
        self.parts, self.batch = self.start["seconds"], options["batch"]

    def left(self) -> float:
        """Seconds left before the reserve, in seconds of the predicted machine speed."""
        return ((1 - RESERVE) * self.total - self.log.elapsed()) / self.slower()

    def slower(self) -> float:
        """Actual over predicted time of the finished parts, at least 1."""
        return max(1.0, self.taken / self.expected) if self.expected else 1.0

    def windows(self, _: Tensor | None = None) -> int:
        """Number of calibration windows, chosen so that training keeps a fair share of the time."""
        return self.start["windows"]

    def _start(self, model: nn.Module, tokens: Tensor, sized: bool, options: dict) -> dict:
        """Windows that fit and the predicted seconds; raises ValueError or MemoryError where too few fit."""
        parts = predict(model, tokens, sized=sized, **options)
        each = parts["pass"] * (REMEMBERED + WALKED + (MEASURED + EMBEDDED if sized else 0))
        fixed = parts["measuring"] + parts["embedding"] + len(self.names) * parts["block"]
        fewest = min(FEWEST, self.count)
        if (least := fixed + fewest * each) > self.left():
            enough = (self.log.elapsed() + least) / (1 - RESERVE) / 60
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
        """Context around the sensitivity measurement: compares its actual with its predicted time."""
        with timing.stopwatch() as watch:
            yield
        self.taken += watch.seconds
        self.expected += self.parts["measuring"] + MEASURED * self.parts["pass"] * self.windows()

    def rounding(self) -> Callable[[str], int]:
        """A function from the name of a block to its number of SignRound steps."""
        planned = self.log.once("rounding", self._planned)
        return lambda name: self.log.once(f"rounding of {name}", lambda: self._rounding(name, planned))

    def _planned(self) -> int:
        """SignRound steps per block that fit their share of the time left."""
        learning = self.left() - self.parts["embedding"] - EMBEDDED * self.parts["pass"] * self.windows()
        each = learning / len(self.names) - self._block()
        return max(0, min(EPOCHS * self.windows() // self.batch, int(ROUNDING * each / self.parts["step"])))

    def _rounding(self, name: str, planned: int) -> int:
        """The planned steps, or fewer where earlier blocks took longer than predicted."""
        index, now = self.names.index(name), self.log.elapsed()
        if index and self.block == index - 1:
            self.taken += now - self.last
            before = self.log.kept[f"rounding of {self.names[self.block]}"]
            self.expected += self._block() + before * self.parts["step"]
        self.last, self.block = now, index
        rest = len(self.names) - index
        return max(0, min(planned, int((self.left() / rest - self._block()) / self.parts["step"])))

    def _block(self) -> float:
        """Predicted seconds of a block without training."""
        return self.parts["block"] + WALKED * self.parts["pass"] * self.windows() / len(self.names)

    def tuning(self, model: nn.Module, tokens: Tensor, reference) -> int:
        """Training steps of the scales that fit the time left, less the time that timing one step takes."""
        if self.left() < TRIAL * self.parts["pass"]:
            return 0
        with timing.stopwatch() as watch:
            each = e2e_qp.seconds_per_step(model, tokens, reference)
        again = max(0.0, watch.seconds - each)  # the preparation runs once more
        free = (1 - RESERVE) * self.total - self.log.elapsed() - again
        return max(0, min(EPOCHS * len(tokens), int(free / each)))

    def stop(self, step: int) -> bool:
        """Whether training ends after `step` steps: as before a kill, or because one more would exceed the limit."""
        now = self.log.elapsed()
        each, self.stepped = now - (self.stepped or now), now
        if "tuned" not in self.log.kept and now + each > self.total:
            self.log.once("tuned", lambda: step)
        elif now > self.noted + EVERY:
            self.noted = now
            self.log.note()
        return step >= self.log.kept.get("tuned", math.inf)
