"""When the clients of a load ask: at drawn times, in bursts, as a trace says, or each when its last answer has come."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When requests are sent: at `times` [s] from the beginning, or by `clients` that wait for their answers."""

    name: str
    count: int
    times: tuple[float, ...] | None = None
    clients: int | None = None


def poisson(rate: float, count: int, *, seed: int = 0) -> Schedule:
    """`count` requests at `rate` a second, at times that know nothing of one another."""
    positive(rate=rate, count=count)
    draw, now, times = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        times.append(now)
    return Schedule(f"Poisson, {rate:g} a second", count, tuple(times))


def bursts(rate: float, size: int, count: int) -> Schedule:
    """`size` requests at once, so often that `rate` a second come on average."""
    positive(rate=rate, size=size, count=count)
    return Schedule(f"bursts of {size}, {rate:g} a second", count, tuple(n // size * size / rate for n in range(count)))


def replay(times: Sequence[float]) -> Schedule:
    """Requests at recorded times [s], of which the first is the beginning."""
    if not times or list(times) != sorted(times):
        raise ValueError(f"{len(times)} times; one or more in rising order are needed; sort the trace.")
    return Schedule("a trace", len(times), tuple(each - times[0] for each in times))


def closed(clients: int, count: int) -> Schedule:
    """`count` requests by `clients` that each wait for an answer before they ask again."""
    positive(clients=clients, count=count)
    return Schedule(f"{clients} clients", count, clients=clients)


def positive(**given) -> None:
    """Raise ValueError unless all numbers are above 0."""
    wrong = {name: value for name, value in given.items() if not value > 0}
    if wrong:
        said = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise ValueError(f"{said}; numbers above 0 are needed.")
