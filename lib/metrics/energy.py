"""Energy: counters and sensors of power, read before and after a piece of work, in joules.

    with energy.metered() as used: ...
    used.joules      # {"cpu": 812.4, "gpu 0": None}: None where no sensor told it, never 0 and never a guess

A counter of energy is better than samples of power, and both are given where a machine has both (`used.power`), so that
one can be checked against the other. What is estimated rather than measured comes from `estimated` alone, and says so.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from lib import timing
from lib.metrics import power_sensors, rapl

PERIOD = 0.1  # seconds between two samples of power
SOURCE = "Barroso, Hölzle, Ranganathan, The Datacenter as a Computer, 3rd edition, 2018, section 5.3"


@dataclass
class Used:
    """Energy of one piece of work, by device; None where nothing could be read.

    joules: by a counter where there is one, else by samples of power. power: joules by samples of power, to compare.
    idle: joules that the machine takes in as many seconds without work, where `idle_watts` were given; subtract them
    (`above_idle`). why: for what was not read, the reason. samples: (seconds since the beginning, watts) of each device
    whose power was read. busy: (seconds, cores that this process kept busy since the sample before), on every machine.
    """

    seconds: float = 0.0
    joules: dict[str, float | None] = field(default_factory=dict)
    power: dict[str, float | None] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    busy: list[tuple[float, float]] = field(default_factory=list)

    @property
    def core_seconds(self) -> float:
        """Seconds of processor time of this process, all threads: what an estimate is made of."""
        return sum((later - sooner) * cores for (sooner, _), (later, cores) in pairwise([(0.0, 0.0), *self.busy]))

    @property
    def total(self) -> float | None:
        """Joules of all devices; None where one of them told nothing, since a part is not the whole."""
        values = list(self.joules.values())
        return None if not values or None in values else sum(values)

    @property
    def above_idle(self) -> dict[str, float | None]:
        """Joules beyond those of an idle machine; None where either is unknown."""
        return {
            name: None if value is None or name not in self.idle else value - self.idle[name]
            for name, value in self.joules.items()
        }

    def a_token(self, tokens: int) -> float | None:
        """Joules a token; None where the total is unknown."""
        return None if self.total is None or tokens < 1 else self.total / tokens


@contextlib.contextmanager
def metered(
    sensors: list[Callable[[], dict]] | None = None,
    *,
    counters: rapl.Counters | None = None,
    idle_watts: dict[str, float] | None = None,
    period: float = PERIOD,
) -> Iterator[Used]:
    """Context that fills a `Used` when it ends.

    sensors: functions that give watts by device (`power_sensors.found()` by default). counters: RAPL's, by default this
    machine's. idle_watts: by device, from `idle`.
    """
    counters = rapl.Counters() if counters is None else counters
    sampler = _Sampler(power_sensors.found() if sensors is None else sensors, counters, period)
    used, begun = Used(), timing.now()
    sampler.start(begun)
    try:
        yield used
    finally:
        sampler.stop()
        used.seconds = timing.now() - begun
        used.power = sampler.joules()
        used.samples = {name: [(at - begun, watts) for at, watts in some] for name, some in sampler.samples.items()}
        used.busy = [(at - begun, cores) for at, cores in sampler.busy]
        used.joules = used.power | counters.joules()
        used.why = counters.why | sampler.why
        for name in used.why:
            used.joules.setdefault(name, None)
        used.idle = {name: watts * used.seconds for name, watts in (idle_watts or {}).items()}


def idle(seconds: float = 5.0, **how) -> dict[str, float]:
    """Watts of each device while nothing runs, over `seconds`; without those that told nothing."""
    with metered(**how) as used:
        threading.Event().wait(seconds)
    return {name: value / used.seconds for name, value in used.joules.items() if value is not None}


def integrate(samples: list[tuple[float, float]]) -> float | None:
    """Joules of samples (seconds, watts) by the trapezoidal rule; None for fewer than two."""
    if len(samples) < 2:
        return None
    pairs = pairwise(samples)
    return sum((later - sooner) * (first + second) / 2 for (sooner, first), (later, second) in pairs)


def estimated(busy_core_seconds: float, seconds: float, *, watts_a_core: float, idle_watts: float = 0.0) -> dict:
    """A model, not a measurement: cores that work take `watts_a_core`, the machine `idle_watts` whatever it does.

    Power grows about linearly with utilisation between idle and full (`SOURCE`). The watts are the caller's: no table
    of processors is guessed from. The result says that it is estimated, and never stands beside a measured one in a
    field of the same name.
    """
    return {
        "estimated_joules": busy_core_seconds * watts_a_core + seconds * idle_watts,
        "model": f"{watts_a_core:g} W a busy core, {idle_watts:g} W idle",
        "source": SOURCE,
    }


class _Sampler:
    """Reads power in a thread of its own, and the counters often enough that none wraps unseen."""

    def __init__(self, sensors: list[Callable[[], dict]], counters: rapl.Counters, period: float):
        self.sensors, self.counters, self.period = sensors, counters, period
        self.samples: dict[str, list[tuple[float, float]]] = {}
        self.busy: list[tuple[float, float]] = []  # (when, cores that were busy since the last time)
        self.why: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def start(self, begun: float) -> None:
        self._last = begun, timing.worked()
        self.counters.begin()
        self._sample()
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._sample()
        self.counters.read()

    def joules(self) -> dict[str, float | None]:
        """By device; None for one that told too little."""
        return {name: integrate(samples) for name, samples in self.samples.items()}

    def _run(self) -> None:
        while not self._over.wait(self.period):
            self._sample()
            self.counters.read()

    def _sample(self) -> None:
        (before, worked), (now, then) = self._last, (timing.clock(), timing.worked())
        if now > before:
            self.busy.append((now, (then - worked) / (now - before)))
            self._last = now, then
        for place, sensor in enumerate(self.sensors):
            at, found = timing.clock() if place else now, sensor()
            for name, watts in found.items():
                if isinstance(watts, str):
                    self.why[name] = watts
                elif watts is not None:
                    self.samples.setdefault(name, []).append((at, watts))
