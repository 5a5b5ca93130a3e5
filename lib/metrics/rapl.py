"""RAPL: the energy counters of x86 processors, as Linux's powercap shows them.

A domain may hold others: a package its cores and its graphics, psys the package and the memory. So domains are never
added to one that contains them. A counter wraps at its own `max_energy_range_uj`; read it more often than it wraps.
Without the right to read it (root's alone since CVE-2020-8694), and in virtual machines, there is no value: None.
"""

import threading
import weakref
from pathlib import Path

ROOT = Path("/sys/class/powercap")
KINDS = ("package", "core", "uncore", "dram", "psys")


EVERY = 60.0  # seconds between two readings of a `Meter`: the quickest counters wrap after minutes


class Meter:
    """Joules since it began, by the counters alone: cheap enough to be asked at each step of long work.

    A thread reads them now and then, so that none wraps unseen; where there are no counters there is none, and
    `joules` is None.
    """

    def __init__(self, counters: "Counters | None" = None, *, every: float = EVERY):
        self.counters, self._lock, over = counters or Counters(), threading.Lock(), threading.Event()
        self.counters.begin()
        self._end = weakref.finalize(self, over.set)  # a record that nobody finishes leaves no thread behind
        if any(value is not None for value in self.counters.domains().values()):
            given = self.counters, self._lock, over, every
            threading.Thread(target=_keep_reading, args=given, name="counters", daemon=True).start()

    def joules(self) -> float | None:
        """Of all devices with counters; None where there are none, or where one of them could not be read."""
        values = list(self._read().values())
        return None if not values or None in values else sum(values)

    def end(self) -> dict:
        """For a record: joules in all and by device, and why some are missing; the counters are read no longer."""
        self._end()
        return {"joules": self.joules(), "devices": self._read(), "why": dict(self.counters.why)}

    def _read(self) -> dict[str, float | None]:
        with self._lock:
            self.counters.read()
            return self.counters.joules()


def _keep_reading(counters: "Counters", lock, over: threading.Event, every: float) -> None:
    while not over.wait(every):
        with lock:
            counters.read()


class Counters:
    """The counters of a machine, summed up since `begin`.

    why: for domains without a value, the reason.
    """

    def __init__(self, root: Path = ROOT):
        self.why: dict[str, str] = {}
        found = domains(root)
        self._domains = {name: path for name, path in found.items() if self._readable(name, path)}
        self._refused = dict.fromkeys(found.keys() - self._domains.keys())
        if not found:
            self.why["cpu"] = "this machine shows no RAPL counters (virtual machines have none)"
        self._spans = {name: _number(path / "max_energy_range_uj") or 1 << 32 for name, path in self._domains.items()}
        self._last: dict[str, int] = {}
        self._spent: dict[str, int] = {}

    def begin(self) -> None:
        """Count from now on."""
        self._spent = dict.fromkeys(self._domains, 0)
        self._last = {name: value for name in self._domains if (value := self._value(name)) is not None}

    def read(self) -> None:
        """Take what has come since the last reading; one wrap between two readings is seen."""
        for name, before in list(self._last.items()):
            now = self._value(name)
            if now is None:
                self.why[name] = "its counter can no longer be read"
                del self._last[name]
                continue
            self._spent[name] += now - before if now >= before else now - before + self._spans[name]
            self._last[name] = now

    def domains(self) -> dict[str, float | None]:
        """Joules of every domain, those that contain one another too."""
        read = {name: self._spent[name] / 1e6 if name in self._last else None for name in self._spent}
        return self._refused | read

    def joules(self) -> dict[str, float | None]:
        """Joules of what has no part in common: psys alone where there is one, else packages and memories.

        {} where there are no counters; None for a sum of which a part could not be read.
        """
        found = self.domains()
        named = {name: value for name, value in found.items() if _kind(name) == "psys"}
        if named:
            return {"machine": _sum(named)}
        packages = {name: value for name, value in found.items() if _kind(name) == "package"}
        memories = {name: value for name, value in found.items() if _kind(name) == "dram"}
        told = {"cpu": _sum(packages)} if packages else {}
        return told | ({"memory": _sum(memories)} if memories else {})

    def _readable(self, name: str, path: Path) -> bool:
        try:
            int((path / "energy_uj").read_text())
        except PermissionError:
            self.why[_called(name)] = f"{name}: its counter may be read by root alone; run as root or change its rights"
            return False
        except (OSError, ValueError) as error:
            self.why[_called(name)] = f"{name}: {type(error).__name__}"
            return False
        return True

    def _value(self, name: str) -> int | None:
        return _number(self._domains[name] / "energy_uj")


def domains(root: Path = ROOT) -> dict[str, Path]:
    """The counters under `root` by name ("package-0", "package-0/core", "psys"), each energy once.

    Dies of one package may mirror its counter: of several zones with one name, as of a second driver's copy of the same
    zones (intel-rapl-mmio), the first is taken.
    """
    found: dict[str, Path] = {}
    try:
        zones = sorted(root.glob("intel-rapl*:*"), key=lambda path: (path.name.count(":"), path.name))
    except OSError:
        return {}
    tops: dict[str, str] = {}
    for zone in zones:
        if zone.name.startswith("intel-rapl-mmio"):
            continue  # the same packages through another door
        try:
            name = (zone / "name").read_text().strip()
        except OSError:
            continue
        if zone.name.count(":") == 1:
            tops[zone.name] = name
        else:
            name = f"{tops.get(zone.name.rpartition(':')[0], 'package')}/{name}"
        found.setdefault(name, zone)
    return found


def _kind(name: str) -> str | None:
    last = name.rpartition("/")[2].partition("-")[0]
    return last if last in KINDS else None


def _called(name: str) -> str:
    return {"psys": "machine", "dram": "memory"}.get(_kind(name), "cpu")


def _sum(values: dict[str, float | None]) -> float | None:
    return None if None in values.values() else sum(values.values())


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
