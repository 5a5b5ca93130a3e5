"""Clock and stopwatch, read when the device has finished; the only ones of the project."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

clock = time.perf_counter  # monotonic; replaced in tests


@dataclass
class Watch:
    """`seconds` is set when the block of `stopwatch` ends."""

    seconds: float | None = None


@contextlib.contextmanager
def stopwatch() -> Iterator[Watch]:
    """`with timing.stopwatch() as watch: ...`, then `watch.seconds`; also set when the block raises."""
    watch, start = Watch(), now()
    try:
        yield watch
    finally:
        watch.seconds = now() - start


def now() -> float:
    """The time on the clock, read when all devices have finished."""
    torch = sys.modules.get("torch")  # a process without torch has no devices to wait for
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clock()


def worked() -> float:
    """Seconds of processor time of this process so far, all threads; on a GPU those on the clock.

    For how much work something is on a machine that does other things too.
    """
    torch = sys.modules.get("torch")
    return now() if torch is not None and torch.cuda.is_initialized() else time.process_time()
