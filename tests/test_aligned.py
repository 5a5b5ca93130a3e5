"""Peak memory of a block whose allocations are known, by both ways of measuring and with a pretended device."""

import json
import subprocess
import sys
import time

import pytest
import torch

from lib import files
from lib.metrics import memory

MB = 1 << 20


def _kernel_resets():
    return memory._resettable()


def _spike(size, seen=lambda: True):
    """Touch `size` bytes and let go of them once they were `seen`, however long a busy machine takes for a sample."""
    block = torch.ones(size, dtype=torch.uint8)
    time.sleep(0.03)
    for _ in range(3000):
        if seen():
            break
        time.sleep(0.01)
    return int(block[-1])


needs_kernel = pytest.mark.skipif(not _kernel_resets(), reason="the kernel refuses to reset its high-water mark")


# In a process that ran other tests, memory of theirs that is let go meanwhile would hide a part of a spike
ALONE = """
import json, sys
from lib.metrics import memory
from tests.test_aligned import MB, _spike

def enough(used, size):
    return "high-water" in used.how or used.highest > used.before + 0.9 * size

def seen(size, forgotten=0):
    if forgotten:
        _spike(forgotten)
    with memory.peak() as used:
        if size:
            _spike(size, lambda: enough(used, size))
    return [used.how, used.before, used.increase.value, used.score.value, used.score.unit, used.score.higher_is_better]

def raises():
    try:
        with memory.peak() as used:
            _spike(100 * MB, lambda: enough(used, 100 * MB))
            raise RuntimeError("on purpose")
    except RuntimeError as error:
        return [str(error), used.increase.value, len(memory._open)]

found = {"kernel": seen(200 * MB), "forgotten": seen(0, 300 * MB), "raises, kernel": raises()}
result, used = memory.call(lambda: _spike(100 * MB, lambda: enough(memory._open[0], 100 * MB)))
found["call"] = [result, used.increase.value]
with memory.peak() as outer:
    _spike(300 * MB)
    with memory.peak() as inner:
        _spike(100 * MB)
found["nested"] = [outer.increase.value, inner.increase.value, len(memory._open)]
memory._resettable = lambda: False
found |= {"sampled": seen(200 * MB), "raises, sampled": raises()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def alone():
    """What a fresh process measured of blocks whose sizes are known."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=files.ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", [pytest.param("kernel", marks=needs_kernel), "sampled"])
def test_sees_a_spike_that_is_gone_at_the_end(way, alone):
    how, before, increase, score, unit, higher_is_better = alone[way]
    assert ("high-water" if way == "kernel" else "sampled") in how
    assert 180 * MB < increase < 260 * MB
    assert score == before + increase
    assert (unit, higher_is_better) == ("bytes", False)


@needs_kernel
def test_forgets_what_happened_before(alone):
    assert alone["forgotten"][2] < 50 * MB


@needs_kernel
def test_nested_measurements_keep_their_own_peaks(alone):
    outer, inner, still_open = alone["nested"]
    assert 80 * MB < inner < 180 * MB
    assert 280 * MB < outer < 400 * MB
    assert still_open == 0


@pytest.mark.parametrize("way", [pytest.param("kernel", marks=needs_kernel), "sampled"])
def test_a_block_that_raises_is_measured_and_its_error_passes(way, alone):
    error, increase, still_open = alone[f"raises, {way}"]
    assert error == "on purpose" and increase > 80 * MB and still_open == 0


def test_call_returns_the_result_too(alone):
    result, increase = alone["call"]
    assert result == 1 and increase > 80 * MB


def test_a_kernel_that_refuses_falls_back_to_sampling(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path)  # a folder can't be written
    with memory.peak() as used:
        pass
    assert "sampled" in used.how


def test_a_kernel_without_high_water_mark_falls_back_to_sampling(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSS:\t  12 kB\n")
    monkeypatch.setattr(memory, "_STATUS", status)
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "clear_refs")
    assert memory._status("VmRSS") == 12 * 1024
    with memory.peak() as used:
        pass
    assert "sampled" in used.how


def test_cuda_reads_the_allocator(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: events.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: events.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 3 * MB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: events.append("read") or 10 * MB)
    with memory.peak("cuda") as used:
        events.append("work")
    assert events == ["synchronize", "reset", "work", "synchronize", "read"]
    assert used.score.value == 10 * MB and used.increase.value == 7 * MB and "device memory" in used.how


def test_devices_without_a_counter_are_refused():
    with pytest.raises(ValueError, match="no memory counter here; choose cpu"), memory.peak("meta"):
        pass
