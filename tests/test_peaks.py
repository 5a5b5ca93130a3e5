"""Peaks under a pretended clock: the arithmetic, the limits on time, and the file that keeps them."""

import json

import pytest
import torch

from lib import timing
from lib.metrics import peaks


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.setattr(peaks, "READ_BYTES", {"cpu": 4 << 20, "cuda": 0})
    monkeypatch.setattr(peaks, "SIDES", {"cpu": (16, 32), "cuda": ()})
    monkeypatch.setattr(peaks.os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    return tmp_path


@pytest.fixture
def ticks(monkeypatch):
    """A clock on which everything takes one tick of `ticks["step"]` seconds."""
    state = {"now": 0.0, "step": 0.01, "reads": 0}

    def clock():
        state["now"] += state["step"]
        state["reads"] += 1
        return state["now"]

    monkeypatch.setattr(timing, "clock", clock)
    return state


def test_rates_follow_from_sizes_and_times(ticks):
    found = peaks.measure()
    assert found.bandwidth == pytest.approx((4 << 20) / 0.01)
    assert found.flops == pytest.approx({"float32": 2 * 32**3 / 0.01, "bfloat16": 2 * 32**3 / 0.01})
    assert found.of(torch.bfloat16) == found.flops["bfloat16"] and found.of(torch.float16) is None


def test_large_products_are_not_tried_on_slow_machines(ticks):
    ticks["step"] = 1.0
    assert peaks.measure().of(torch.float32) == pytest.approx(2 * 16**3)


def test_measured_once_and_kept(ticks, home):
    first = peaks.measure()
    reads = ticks["reads"]
    assert peaks.measure() == first and ticks["reads"] == reads
    ticks["step"] = 0.02
    assert peaks.measure(fresh=True).bandwidth == pytest.approx(first.bandwidth / 2)
    (path,) = (home / "data" / "cache").iterdir()
    assert json.loads(path.read_text())["bandwidth"] == pytest.approx(first.bandwidth / 2)


def test_a_busy_machine_is_measured_again_and_the_better_rates_kept(ticks, monkeypatch):
    monkeypatch.setattr(peaks.os, "getloadavg", lambda: (99.0, 0.5, 0.5))
    busy = peaks.measure()
    assert not busy.quiet
    ticks["step"] = 0.02  # even busier
    again = peaks.measure()
    assert not again.quiet and (again.bandwidth, again.flops) == (busy.bandwidth, busy.flops)
    monkeypatch.setattr(peaks.os, "getloadavg", lambda: (0.5, 99.0, 99.0))
    ticks["step"] = 0.005
    assert peaks.measure().bandwidth == pytest.approx(2 * busy.bandwidth) and peaks.measure().quiet


def test_another_number_of_threads_or_machine_is_measured_anew(ticks, home, monkeypatch):
    peaks.measure()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    peaks.measure()
    monkeypatch.setattr(peaks.machine, "identity", lambda: "another")
    peaks.measure()
    assert len(list((home / "data" / "cache").iterdir())) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": 1}'])
def test_a_file_that_cannot_be_read_is_measured_anew(ticks, home, content):
    found = peaks.measure()
    (path,) = (home / "data" / "cache").iterdir()
    path.write_text(content)
    assert peaks.measure().bandwidth == pytest.approx(found.bandwidth)


def test_real_rates_are_plausible():
    found = peaks.measure()
    assert 1e8 < found.bandwidth < 1e14
    assert all(1e6 < rate < 1e16 for rate in found.flops.values())


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="no peak measurement; choose cpu or cuda"):
        peaks.measure("meta")
