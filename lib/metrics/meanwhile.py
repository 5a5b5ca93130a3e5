"""What the machine did while something was measured: how much of it others used, its load, clock and temperature.

    with meanwhile.watched() as found: ...
    found.disturbed      # whether other processes took more than `BOUND` of the cores

A time that was measured while others held the cores says little about the code, and a record should say so.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import psutil

from lib import timing

BOUND = 0.05  # share of the cores that others may use before a measurement counts as disturbed


@dataclass
class Meanwhile:
    """others: the share of the cores that other processes used, 0 to 1, None where the system does not tell.

    stolen: the share that a virtual machine's host took. load: runnable processes over the last minute. clock_hertz,
    celsius: at the end, the hottest sensor's; None where none tells.
    """

    seconds: float = 0.0
    others: float | None = None
    stolen: float | None = None
    load: float | None = None
    clock_hertz: float | None = None
    celsius: float | None = None

    @property
    def disturbed(self) -> bool | None:
        """Whether others used more than `BOUND` of the cores; None where that is unknown."""
        if self.others is None:
            return None
        return self.others + (self.stolen or 0.0) > BOUND

    def labels(self) -> dict[str, float | bool | None]:
        """For a record: everything, and whether it was disturbed."""
        return asdict(self) | {"disturbed": self.disturbed}


class Watch:
    """Begins now; `end` says what came. Work of child processes counts as ours once they have ended.

    pids: of processes whose work, with that of their children, counts as ours at once: a server that is measured.
    """

    def __init__(self, *pids: int):
        self._pids, self._begun, self.found = pids, timing.clock(), Meanwhile()
        self._before = _machine(), _own(*pids)

    def end(self) -> Meanwhile:
        """What the machine did since the beginning."""
        found = self.found
        found.seconds = timing.clock() - self._begun
        # the machine's counts are of all its cores, also where this process may use some of them alone
        _shares(found, self._before, (_machine(), _own(*self._pids)), psutil.cpu_count() or 1)
        found.load, found.clock_hertz, found.celsius = _load(), frequency(), _temperature()
        return found


@contextlib.contextmanager
def watched(*pids: int) -> Iterator[Meanwhile]:
    """Context that fills a `Meanwhile` when it ends; pids: as for `Watch`."""
    watch = Watch(*pids)
    try:
        yield watch.found
    finally:
        watch.end()


def _shares(found: Meanwhile, before: tuple, after: tuple, cores: int) -> None:
    (busy, stolen), own = (b - a for a, b in zip(before[0], after[0])), after[1] - before[1]
    whole = found.seconds * cores
    if whole > 0:
        found.others, found.stolen = max(busy - own, 0.0) / whole, max(stolen, 0.0) / whole


def _machine() -> tuple[float, float]:
    """Core-seconds that were busy since boot, and that the host took."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    stolen = getattr(times, "steal", 0.0)
    # what guests use is part of user and nice already
    whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return whole - idle - stolen, stolen


def _own(*pids: int) -> float:
    """Core-seconds of this process, and of its children that have ended; of `pids` and theirs that run, too."""
    spent = sum(os.times()[:4])
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            for each in ((parent := psutil.Process(pid)), *parent.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    spent += sum(each.cpu_times()[:4])  # its own, and of those of its children that have ended
    return spent


def _load() -> float | None:
    with contextlib.suppress(OSError, AttributeError):
        return psutil.getloadavg()[0]
    return None


def frequency() -> float | None:
    """The processor's clock in Hz, None where the system does not tell."""
    with contextlib.suppress(OSError, RuntimeError, AttributeError):  # psutil has nothing for some systems
        now = psutil.cpu_freq()
        return now.current * 1e6 if now and now.current else None
    return None


def _temperature() -> float | None:
    found = getattr(psutil, "sensors_temperatures", dict)()
    values = [each.current for some in found.values() for each in some]
    return max(values, default=None)
