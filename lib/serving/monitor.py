"""Watch a machine that serves:  python -m lib.serving.monitor [--port 9109] [--server http://127.0.0.1:8000]

A Prometheus exporter of power, temperature, clocks, memory and load of processors and GPUs, with the server's own
counts where one is named, and a page with the last hour. `dashboard.json` beside this file is for Grafana,
`alerts.yaml` for Prometheus.
"""

import argparse
import collections
import html
import sys
import threading
import time

import httpx
import psutil
import uvicorn
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lib.metrics import meanwhile, power_sensors, rapl
from lib.serving.listener import bind

HOUR, PERIOD = 3600.0, 5.0  # seconds that the page shows, and between two readings
_MOST = 64  # values of a label: a tool that makes up devices makes no endless series


class Machine:
    """What this machine tells now; every reading that is absent has no sample, and is never 0.

    server: the address of a server whose /metrics are told too, as they come. sensors, states: as
    `power_sensors.found` and `power_sensors.states` give them, by default this machine's.
    """

    def __init__(self, server: str | None = None, *, sensors=None, states=None, counters: rapl.Counters | None = None):
        self.server, self.sensors = server, power_sensors.found() if sensors is None else sensors
        self.states = power_sensors.states() if states is None else states
        self.counters = counters or rapl.Counters()
        self.counters.begin()
        self.history: collections.deque = collections.deque(maxlen=int(HOUR / PERIOD))
        self._lock = threading.Lock()

    def read(self) -> dict[str, dict[str, float]]:
        """{measure: {device: value}}; measures are named with their units."""
        with self._lock:
            self.counters.read()
            energy = {name: value for name, value in self.counters.domains().items() if value is not None}
        found = {"energy_joules": energy, "power_watts": self._power(), "temperature_celsius": _temperatures()}
        found["clock_hertz"] = _clocks()
        memory = psutil.virtual_memory()
        found["memory_bytes"] = {"used": memory.total - memory.available, "total": memory.total}
        found["load_average"] = {"1 minute": psutil.getloadavg()[0]}
        found["processor_share"] = {"all": psutil.cpu_percent() / 100}
        for name, values in (pair for state in self.states for pair in state().items()):
            found[name] = found.get(name, {}) | values
        return {name: dict(list(values.items())[:_MOST]) for name, values in found.items()}

    def note(self) -> None:
        """Keep a reading for the page."""
        self.history.append((time.time(), self.read()))

    def collect(self):
        """Prometheus's view."""
        for name, values in self.read().items():
            family = GaugeMetricFamily(f"thimble_machine_{name}", name.replace("_", " "), labels=["device"])
            for device, value in values.items():
                family.add_metric([device], value)
            yield family

    def served(self) -> bytes:
        """The server's own counts; none where it does not answer, which `thimble_server_up` says."""
        if self.server is None:
            return b""
        try:
            how = {"timeout": PERIOD, "trust_env": False, "verify": self.server.startswith("https:")}
            answer = httpx.get(f"{self.server.rstrip('/')}/metrics", **how)
            text = answer.raise_for_status().content
        except httpx.HTTPError:
            text = b""
        up = "# HELP thimble_server_up Whether the server answers\n# TYPE thimble_server_up gauge\n"
        return text + f"{up}thimble_server_up {int(bool(text))}\n".encode()

    def _power(self) -> dict[str, float]:
        told = [pair for sensor in self.sensors for pair in sensor().items()]
        return {name: value for name, value in told if isinstance(value, int | float)}


def _temperatures() -> dict[str, float]:
    found = getattr(psutil, "sensors_temperatures", dict)()
    return {
        f"{chip} {each.label or place}": each.current for chip, some in found.items() for place, each in enumerate(some)
    }


def _clocks() -> dict[str, float]:
    now = meanwhile.frequency()
    return {} if now is None else {"processor": now}


def build(machine: Machine) -> Starlette:
    """The application: /metrics for Prometheus, / for people."""
    registry = CollectorRegistry()
    registry.register(machine)

    def metrics(request: Request) -> Response:
        return Response(generate_latest(registry) + machine.served(), media_type="text/plain; version=0.0.4")

    def page(request: Request) -> Response:
        return HTMLResponse(shown(machine.history))

    return Starlette(routes=[Route("/metrics", metrics), Route("/", page)])


def shown(history) -> str:
    """A page with a line for each measure and device over the last hour, and its least, mean and greatest value."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for at, reading in history:
        for name, values in reading.items():
            for device, value in values.items():
                series.setdefault((name, device), []).append((at, value))
    rows = []
    for (name, device), points in sorted(series.items()):
        values = [value for _, value in points]
        numbers = "".join(f"<td>{each:,.4g}</td>" for each in (min(values), sum(values) / len(values), max(values)))
        label = html.escape(f"{name.replace('_', ' ')}, {device}")
        rows.append(f"<tr><th scope=row>{label}</th>{numbers}<td>{_line(points, label)}</td></tr>")
    absent = "" if rows else "<p>Nothing was read yet.</p>"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=30>"
        "<title>This machine</title>"
        "<style>body{font:16px system-ui;margin:1rem;color-scheme:light dark}"
        "td,th{padding:.2rem .8rem;text-align:right}"
        "th[scope=row]{text-align:left;font-weight:400}svg{stroke:currentColor;fill:none}</style><h1>The last hour</h1>"
        f"{absent}<table><tr><th><th>least<th>mean<th>greatest<th></tr>{''.join(rows)}</table></html>"
    )


def _line(points: list[tuple[float, float]], label: str, width: int = 320, height: int = 28) -> str:
    begin, end = points[0][0], points[-1][0]
    low, high = min(value for _, value in points), max(value for _, value in points)
    across, up = width / ((end - begin) or 1), (height - 4) / ((high - low) or 1)
    placed = " ".join(f"{across * (at - begin):.1f},{height - 2 - up * (value - low):.1f}" for at, value in points)
    return f'<svg width={width} height={height} role=img aria-label="{label}"><polyline points="{placed}"/></svg>'


def main(arguments: list[str] | None = None) -> int:
    """Export until a signal; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.serving.monitor", description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9109)
    parser.add_argument("--server", help="the address of a server whose counts are exported too")
    parser.add_argument("--dcgm", action="append", default=[], help="the address of a DCGM exporter's metrics")
    given = parser.parse_args(arguments)
    try:
        listener = bind(given.host, given.port)
    except OSError as error:
        print(f"monitor: {error}", file=sys.stderr)
        return 2
    exporters = tuple(given.dcgm)
    machine = Machine(given.server, sensors=power_sensors.found(exporters), states=power_sensors.states(exporters))
    for device, reason in machine.counters.why.items():
        print(f"monitor: no energy of {device}: {reason}", flush=True)
    over = threading.Event()
    threading.Thread(target=_watch, args=(machine, over), daemon=True).start()
    print(f"http://{given.host}:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(build(machine), log_level="warning", access_log=False)).run(sockets=[listener])
    over.set()
    return 0


def _watch(machine: Machine, over: threading.Event) -> None:
    while True:
        machine.note()
        if over.wait(PERIOD):
            return


if __name__ == "__main__":
    sys.exit(main())
