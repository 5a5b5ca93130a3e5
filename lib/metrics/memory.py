"""Memory: the highest use while a block of code runs, and by how much that exceeds what was in use before.

On Linux the kernel itself keeps the high-water mark of resident memory (VmHWM) and resets it on request
(`clear_refs`), so no peak is missed. Elsewhere, or where a sandbox forbids it, a thread samples every 5 ms and may miss
a short peak. On CUDA the allocator's own counter is read. `Peak.how` says which was used.

By default glibc keeps freed blocks of up to 32 MiB and fragments its heap, so that the peak of the same computation
varies by hundreds of megabytes. While a peak is measured, it returns blocks of 4 MiB or more to the system.
"""

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from lib.metrics.score import Score, exact

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PERIOD = 0.005  # seconds between two samples of the thread
_TRIM, _MMAP = -1, -3  # the options of glibc's mallopt
_KEPT, _USUAL = 4 << 20, 32 << 20  # from this size on, blocks go back at once: while measuring, and otherwise
_open: list["Peak"] = []  # measurements under way, outermost first


@dataclass(eq=False)
class Peak:
    """Filled in when the context ends: bytes at its start, the highest during it, and the method of measurement."""

    how: str = ""
    before: int = 0
    highest: int = field(default=0, repr=False)

    @property
    def score(self) -> Score:
        """The highest use in bytes, of the whole process: interpreter, libraries and model included."""
        return exact(self.highest, "bytes", higher_is_better=False)

    @property
    def increase(self) -> Score:
        """The highest use less the use at the start, in bytes."""
        return exact(max(0, self.highest - self.before), "bytes", higher_is_better=False)


@contextlib.contextmanager
def peak(device: str = "cpu", *, kept: int | None = None) -> Iterator[Peak]:
    """`with memory.peak() as used: ...`, then `used.score`, `used.increase`, `used.how`.

    Garbage and freed heap pages are returned first, so that earlier work does not count. Measurements on the CPU
    may be nested. kept: blocks of so many bytes or more go back to the system as they are freed, 4 MiB where it is
    None; with 128 KiB resident memory is what the program holds, and it runs slowly, for each block's pages are made
    anew. Raises ValueError for a device other than the CPU or a CUDA device at hand.
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device={str(device)!r} has no memory counter here; choose cpu, or cuda where there is one.")
    on_cpu = _high_water if _resettable() else _sampled
    with _tidy(_KEPT if kept is None else kept), _cuda(device) if kind == "cuda" else on_cpu() as found:
        _open.append(found)
        try:
            yield found
        finally:
            _open.remove(found)


def call(function: Callable, *args, device: str = "cpu", **kwargs):
    """(result of `function(*args, **kwargs)`, its `Peak`)."""
    with peak(device) as used:
        result = function(*args, **kwargs)
    return result, used


@contextlib.contextmanager
def _high_water() -> Iterator[Peak]:
    for outer in _open:  # the reset would lose their marks
        outer.highest = max(outer.highest, _status("VmHWM"))
    _CLEAR.write_text("5")
    before = _status("VmRSS")
    found = Peak("resident memory: the kernel's high-water mark, reset at the start", before, before)
    try:
        yield found
    finally:
        found.highest = max(found.highest, _status("VmHWM"))


@contextlib.contextmanager
def _sampled() -> Iterator[Peak]:
    process = psutil.Process()
    before = process.memory_info().rss
    found = Peak(f"resident memory: sampled every {_PERIOD * 1e3:.0f} ms", before, before)
    done = threading.Event()

    def look():
        found.highest = max(found.highest, process.memory_info().rss)

    def watch():
        while not done.wait(_PERIOD):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        look()
        done.set()
        thread.join()


@contextlib.contextmanager
def _cuda(device: str) -> Iterator[Peak]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    found = Peak("device memory: the highest that the torch allocator handed out", before, before)
    try:
        yield found
    finally:
        torch.cuda.synchronize(device)
        found.highest = torch.cuda.max_memory_allocated(device)


def _resettable() -> bool:
    """Whether the kernel lets this process reset its high-water mark (tried at each use)."""
    try:
        if not _open:
            _CLEAR.write_text("5")
        return _status("VmHWM") > 0
    except OSError:
        return False


def _status(name: str) -> int:
    """A field of /proc/self/status, in bytes; 0 where it is missing."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def _tidy(kept: int) -> Iterator[None]:
    """Collect garbage and return freed heap pages; inside the context, large blocks are returned when freed."""
    gc.collect()
    outermost = not _open
    if outermost:
        _return_blocks(kept)
    try:
        yield
    finally:
        if outermost:
            _return_blocks(_USUAL)


def _return_blocks(size: int) -> None:
    """Have the C library hand back free pages now, and blocks of `size` or more as they are freed, if it is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(_MMAP, size)
        library.mallopt(_TRIM, 2 * size)
