"""Peak memory of a block whose allocations are known, by both ways of measuring and with a pretended device."""

import time

import pytest
import torch

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


@pytest.mark.parametrize("way", [pytest.param("kernel", marks=needs_kernel), "sampled"])
def test_sees_a_spike_that_is_gone_at_the_end(way, monkeypatch):
    if way == "sampled":
        monkeypatch.setattr(memory, "_resettable", lambda: False)
    with memory.peak() as used:
        _spike(200 * MB, lambda: way == "kernel" or used.highest > used.before + 180 * MB)
    assert ("high-water" if way == "kernel" else "sampled") in used.how
    assert 180 * MB < used.increase.value < 260 * MB
    assert used.score.value == used.before + used.increase.value
    assert (used.score.unit, used.score.higher_is_better) == ("bytes", False)


@needs_kernel
def test_forgets_what_happened_before():
    _spike(300 * MB)
    with memory.peak() as used:
        pass
    assert used.increase.value < 50 * MB


@needs_kernel
def test_nested_measurements_keep_their_own_peaks():
    with memory.peak() as outer:
        _spike(300 * MB)
        with memory.peak() as inner:
            _spike(100 * MB)
    assert 80 * MB < inner.increase.value < 180 * MB
    assert 280 * MB < outer.increase.value < 400 * MB
    assert memory._open == []


@pytest.mark.parametrize("resettable", [pytest.param(True, marks=needs_kernel), False])
def test_a_block_that_raises_is_measured_and_its_error_passes(resettable, monkeypatch):
    monkeypatch.setattr(memory, "_resettable", lambda: resettable)
    with pytest.raises(RuntimeError, match="on purpose"), memory.peak() as used:
        _spike(100 * MB)
        raise RuntimeError("on purpose")
    assert used.increase.value > 80 * MB and memory._open == []


def test_call_returns_the_result_too():
    result, used = memory.call(_spike, 100 * MB)
    assert result == 1 and used.increase.value > 80 * MB


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
