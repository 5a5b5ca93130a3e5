"""The monitor: what is absent has no sample, labels are bounded, and the files for Prometheus and Grafana ask for names
that exist."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from lib.metrics import power_sensors
from lib.metrics.rapl import Counters
from lib.serving import monitor
from lib.serving.monitor import Machine, build
from tests import served
from tests.test_energy import DCGM, SMI, zone

HERE = Path(monitor.__file__).parent


@pytest.fixture(scope="module")
def metrics():
    """What the monitor of a machine with a GPU tells, with a server's own counts."""
    with served.running(served.artifact()) as server:
        server.generate("a", max_new_tokens=2)
        machine = Machine(str(server.base_url), sensors=[lambda: {"gpu 0": 51.5, "gpu 1": "no reading"}])
        return TestClient(build(machine)).get("/metrics").text


def test_prometheus_reads_what_is_told(metrics, tmp_path):
    found = {family.name: family for family in text_string_to_metric_families(metrics)}
    power = found["thimble_machine_power_watts"].samples
    assert [(each.labels, each.value) for each in power] == [({"device": "gpu 0"}, 51.5)]  # no 0 for what is absent
    assert found["thimble_server_up"].samples[0].value == 1
    assert found["tgi_request_success"].samples[0].value == 1
    assert found["thimble_machine_memory_bytes"].samples


def test_a_server_that_is_gone_is_told():
    told = TestClient(build(Machine("http://127.0.0.1:9", sensors=[]))).get("/metrics").text
    assert "\nthimble_server_up 0\n" in told and "tgi_" not in told


def test_counters_and_labels_are_bounded(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 10)
    machine = Machine(sensors=[lambda: {f"gpu {n}": 1.0 for n in range(500)}], counters=Counters(tmp_path))
    path.write_text("2000010")
    found = machine.read()
    assert found["energy_joules"] == {"package-0": 2.0} and len(found["power_watts"]) == 64


def test_gpus_tell_their_temperature_clock_and_memory(tmp_path, monkeypatch):
    """By NVIDIA's tool, found on the path, and by an exporter; what one of them does not tell has no sample."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{SMI}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = Machine(sensors=[]).read()
    assert found["temperature_celsius"].items() >= {"gpu 0": 54.0, "gpu 1": 41.0}.items()
    assert found["clock_hertz"]["gpu 0"] == 1.41e9 and "gpu 1" not in found["clock_hertz"]
    assert found["memory_bytes"].items() >= {"gpu 0 used": 1 << 30, "gpu 1 used": 0}.items()
    assert found["processor_share"]["gpu 0"] == pytest.approx(0.87) and "gpu 1" not in found["processor_share"]
    monkeypatch.setattr(power_sensors, "_text", {"http://exporter": DCGM}.get)
    *_, exported, gone = power_sensors.states(("http://exporter", "http://gone"))
    assert exported() == {
        "energy_joules": {"gpu 0": 5120.0}, "temperature_celsius": {"gpu 0": 38.0},
        "memory_bytes": {"gpu 0 used": 2 << 20},
    }  # fmt: skip
    assert gone() == {} and Machine(sensors=[], states=[exported]).read()["energy_joules"] == {"gpu 0": 5120.0}


def test_the_page_shows_the_last_hour():
    machine = Machine(sensors=[lambda: {"<gpu>": 5.0}])
    client = TestClient(build(machine))
    assert "Nothing was read yet" in client.get("/").text
    for _ in range(3):
        machine.note()
    page = client.get("/").text
    assert "power watts, &lt;gpu&gt;" in page and "<gpu>" not in page and page.count("<polyline") >= 3
    assert "http://" not in page and "https://" not in page and "<script" not in page


def asked(text):
    return set(re.findall(r"\b(?:tgi|thimble)_[a-z_]+", text))


def test_rules_and_panels_ask_for_names_that_exist(metrics):
    known = asked(metrics) | {f"thimble_machine_{name}" for name in Machine(sensors=[]).read()}
    rules = yaml.safe_load((HERE / "alerts.yaml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    panels = json.loads((HERE / "dashboard.json").read_text())["panels"]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) > 15
    for expression in expressions:
        assert asked(expression) and asked(expression) <= known, expression


def program(name):
    """A program of Debian's package prometheus, installed or in `THIMBLE_PEERS`; skips where it is neither."""
    own = Path(os.environ.get("THIMBLE_PEERS", "/none")).expanduser() / "prometheus" / "usr" / "bin" / name
    found = shutil.which(name) or (str(own) if own.is_file() else None)
    return found or pytest.skip(f"{name}, of Debian's package prometheus, is not here (`make clients` fetches it)")


def test_promtool_accepts_rules_and_metrics(metrics):
    tool = program("promtool")
    subprocess.run([tool, "check", "rules", HERE / "alerts.yaml"], check=True, capture_output=True)
    told = subprocess.run([tool, "check", "metrics"], input=metrics.encode(), capture_output=True, check=False)
    assert told.returncode in (0, 3)  # 3: names that it would choose otherwise, which are the original's


def test_a_port_in_use_is_told(capsys):
    with monitor.bind("127.0.0.1", 0) as taken:
        assert monitor.main(["--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be used" in capsys.readouterr().err
