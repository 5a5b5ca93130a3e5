"""Energy: recorded texts of every sensor, counters that wrap and contain one another, and machines without any."""

import threading

import pytest

from lib import results, timing
from lib.metrics import energy, power_sensors, rapl
from lib.metrics.rapl import Counters, domains
from lib.serving.hall import Hall
from lib.serving.metrics import Metrics
from lib.trainers import loop, next_token
from tests import served, tiny

SMI = """0, 61.43, 54, 1410, 1024, 87
1, [N/A], 41, [Not Supported], 0, [Unknown Error]
NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.
"""
DCGM = """# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",device="nvidia0",modelName="NVIDIA H100",Hostname="h"} 71.5
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-b",device="nvidia1",modelName="NVIDIA H100",Hostname="h"} 9223372036854775794
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a",device="nvidia0"} 5120000
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a",device="nvidia0"} 38
DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-a",device="nvidia0"} 2
OTHER{gpu="0"} 3
"""
IPMITOOL = """
    Instantaneous power reading:                   220 Watts
    Minimum during sampling period:                 18 Watts
    Maximum during sampling period:                391 Watts
    Average power reading over sample period:      218 Watts
    IPMI timestamp:                           Tue Nov  3 10:11:12 2026
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   activated


"""
FREEIPMI = """Current Power                        : 164 Watts
Minimum Power over sampling duration : 112 watts
Power Measurement                    : Active
"""


def zone(root, name, called, microjoules, span=262143328850):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{called}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder / "energy_uj"


@pytest.fixture
def machine(tmp_path):
    """Two packages with cores and memories, a second door to the first, and the files of their counters."""
    files = {}
    for package in (0, 1):
        files[f"package-{package}"] = zone(tmp_path, f"intel-rapl:{package}", f"package-{package}", 1000)
        files[f"package-{package}/core"] = zone(tmp_path, f"intel-rapl:{package}:0", "core", 500)
        files[f"package-{package}/dram"] = zone(tmp_path, f"intel-rapl:{package}:1", "dram", 70)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1000)
    return tmp_path, files


def test_no_energy_counts_twice(machine):
    root, files = machine
    counters = Counters(root)
    counters.begin()
    for name, spent in (("package-0", 5_000_000), ("package-1", 3_000_000), ("package-0/core", 4_000_000)):
        files[name].write_text(str(int(files[name].read_text()) + spent))
    files["package-1/dram"].write_text(str(70 + 1_500_000))
    counters.read()
    assert counters.joules() == {"cpu": 8.0, "memory": 1.5}  # cores are part of their package, memory is not
    assert counters.domains()["package-0/core"] == 4.0 and len(domains(root)) == 6
    zone(root, "intel-rapl:2", "psys", 0)
    counters = Counters(root)
    counters.begin()
    for name, path in {**files, "psys": root / "intel-rapl:2" / "energy_uj"}.items():
        path.write_text(str(int(path.read_text()) + (12_000_000 if name == "psys" else 1_000_000)))
    counters.read()
    assert counters.joules() == {"machine": 12.0}  # which contains all others


def test_counters_that_wrap_several_times_between_begin_and_end(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 900_000, span=1_000_000)
    counters = Counters(tmp_path)
    counters.begin()
    for value in (200_000, 950_000, 100_000, 100_000):
        path.write_text(str(value))
        counters.read()
    assert counters.joules() == {"cpu": pytest.approx(0.3 + 0.75 + 0.15)}


def test_what_cannot_be_read_is_told_and_never_zero(tmp_path, machine, monkeypatch):
    empty = Counters(tmp_path / "none")
    empty.begin()
    empty.read()
    assert empty.joules() == {} and "no RAPL counters" in empty.why["cpu"]
    root, files = machine
    from pathlib import Path

    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, *a, **k: (_ for _ in ()).throw(PermissionError()) if path.name == "energy_uj"
        else read(path, *a, **k),
    )  # fmt: skip
    refused = Counters(root)
    refused.begin()
    assert refused.joules() == {"cpu": None, "memory": None} and "read by root alone" in refused.why["cpu"]
    with energy.metered([], counters=refused) as used:
        pass
    assert used.joules == {"cpu": None, "memory": None} and used.total is None and used.a_token(5) is None
    monkeypatch.setattr(Path, "read_text", read)
    counters = Counters(root)
    counters.begin()
    files["package-1"].unlink()
    counters.read()
    assert counters.joules() == {"cpu": None, "memory": 0.0}  # a part is not the whole


def test_recorded_texts_of_nvidia_s_tools():
    found = power_sensors.nvidia_smi(SMI)
    assert found["0"] == {"watts": 61.43, "celsius": 54, "clock_mhz": 1410, "memory_bytes": 1 << 30,
                          "utilization_percent": 87}  # fmt: skip
    assert found["1"]["watts"] is None and found["1"]["memory_bytes"] == 0 and set(found) == {"0", "1"}
    found = power_sensors.dcgm(DCGM)
    assert found == {
        "0": {"watts": 71.5, "joules": 5120.0, "celsius": 38, "memory_bytes": 2 << 20},
        "1": {"watts": None},
    }
    assert power_sensors.watts(DCGM, power_sensors.dcgm, "gpu") == {
        "gpu 0": 71.5, "gpu 1": "its driver does not tell its power",
    }  # fmt: skip
    assert power_sensors.watts(None, power_sensors.nvidia_smi, "gpu") == {"gpu": "its tool does not answer"}


@pytest.mark.parametrize(
    "reader,text,watts",
    [
        (power_sensors.ipmitool, IPMITOOL, 220),
        (power_sensors.ipmitool, IPMITOOL.replace("  activated", "  deactivated"), None),
        (power_sensors.ipmitool, "DCMI request failed because: Invalid command (c1)\n", None),
        (power_sensors.freeipmi, FREEIPMI, 164),
        (power_sensors.freeipmi, FREEIPMI.replace("Active", "Not Available"), None),
        (power_sensors.freeipmi, "", None),
    ],
)
def test_recorded_texts_of_ipmi(reader, text, watts):
    assert reader(text) == watts


def test_power_is_integrated_and_stands_beside_the_counter(tmp_path, monkeypatch):
    times = iter(range(1000))
    monkeypatch.setattr(timing, "clock", lambda: float(next(times)))
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    watts = iter([10.0, 30.0])
    with energy.metered([lambda: {"cpu": next(watts), "gpu 0": "broken"}], counters=Counters(tmp_path), period=60,
                        idle_watts={"cpu": 1.0}) as used:  # fmt: skip
        path.write_text("45000000")
    assert used.joules == {"cpu": 45.0, "gpu 0": None} and used.why["gpu 0"] == "broken"
    (sooner, _), (later, _) = samples = [(1.0, 10.0), (2.0, 30.0)]
    assert used.power["cpu"] == energy.integrate(samples) == 20.0 * (later - sooner)
    assert used.above_idle == {"cpu": 45.0 - used.seconds, "gpu 0": None}
    assert energy.integrate([(0.0, 5.0)]) is None and energy.integrate([(0, 4), (2, 4), (3, 0)]) == 10
    assert energy.Used(joules={"cpu": 45.0}).a_token(9) == 5.0


def test_an_estimate_is_called_one():
    found = energy.estimated(10.0, 4.0, watts_a_core=3.0, idle_watts=20.0)
    assert found["estimated_joules"] == 110.0 and found["source"] and "joules" not in found


def test_this_machine_tells_numbers_or_nothing():
    with energy.metered(period=0.01) as used:
        sum(range(1000))
    assert all(value is None or value >= 0 for value in used.joules.values()) and (used.joules or used.why)
    assert set(used.why) <= set(used.joules)


def test_samples_and_busy_cores_are_kept(tmp_path, monkeypatch):
    """Of a process whose processor time runs twice as fast as the clock, which goes on by one each time it is read."""
    told = [0.0]

    def clock():
        told[0] += 1
        return told[0]

    monkeypatch.setattr(timing, "clock", clock)
    monkeypatch.setattr(timing, "worked", lambda: 2 * told[0])
    with energy.metered([lambda: {"a": 3.0, "b": "no reading"}], counters=Counters(tmp_path), period=0.001) as used:
        threading.Event().wait(0.02)
    assert set(used.samples) == {"a"} and {watts for _, watts in used.samples["a"]} == {3.0}
    times = [at for at, _ in used.samples["a"]]
    assert times == sorted(times) and times[0] > 0 and times[-1] <= used.seconds
    assert {cores for _, cores in used.busy} == {2.0} and used.core_seconds == 2 * used.busy[-1][0]


def test_long_work_is_told_its_joules_at_each_step(machine):
    """A thread reads between two askings, so that a counter which wraps meanwhile is not lost."""
    root, files = machine
    meter = rapl.Meter(Counters(root), every=0.001)
    assert meter.joules() == 0.0
    span = 262143328850
    for value in (span - 1, 7_000_000):  # once to the end, and over it
        (root / "next").write_text(str(value))
        (root / "next").replace(files["package-0"])  # never half written, as in the system
        served.until(lambda value=value: meter.counters._last["package-0"] == value, "the reading")
    assert meter.joules() == pytest.approx((span - 1000 + 7_000_000) / 1e6)
    found = meter.end()
    assert found["joules"] == meter.joules() and set(found["devices"]) == {"cpu", "memory"} and not found["why"]
    nothing = rapl.Meter(Counters(root / "none")).end()
    assert nothing["joules"] is None and nothing["devices"] == {} and "no RAPL counters" in nothing["why"]["cpu"]


def test_a_server_that_nobody_asks_counts_on(machine, monkeypatch):
    """Its counters wrap between two requests, and between two readings of Prometheus."""
    root, files = machine
    real = rapl.Meter
    monkeypatch.setattr(rapl, "Meter", lambda: real(Counters(root), every=0.001))
    hall = Hall({}, None, served.LIMITS)
    told = Metrics(hall)
    for value in (262143328850 - 1, 7_000_000):
        (root / "next").write_text(str(value))
        (root / "next").replace(files["package-0"])
        served.until(lambda value=value: told.energy.counters._last["package-0"] == value, "the reading")
    (line,) = [line for line in told.text().decode().splitlines() if line.startswith("thimble_joules")]
    assert float(line.split()[1]) == pytest.approx((262143328850 - 1000 + 7_000_000) / 1e6)
    hall.close()


def test_records_and_trainings_tell_their_joules(machine, tmp_path, monkeypatch):
    root, files = machine
    counter, real, spent = files["package-0"], rapl.Counters, iter(range(1, 100))
    monkeypatch.setattr(rapl, "Counters", lambda: real(root))
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "home"))
    with results.start("anything") as run:
        counter.write_text("2001000")
    assert run.document["energy"]["joules"] == 2.0

    def step(*_):
        counter.write_text(str(2001000 + 3_000_000 * next(spent)))

    found = loop.train_(tiny.llama(), tiny.tokens(8, 12), next_token.loss, steps=3, learning_rate=1e-3, on_step=step)
    assert found.joules == [0.0, 3.0, 6.0] and found.joules_per_step == 2.0
    monkeypatch.setattr(rapl, "Counters", lambda: real(root / "none"))
    found = loop.train_(tiny.llama(), tiny.tokens(8, 12), next_token.loss, steps=2, learning_rate=1e-3)
    assert found.joules == [None, None] and found.joules_per_step is None
