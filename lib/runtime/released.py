"""What is asked of the system about the memory of an array: to take a part back, or to give it page by page."""

import contextlib
import ctypes
import mmap
import sys

import numpy as np

_DONT_NEED, _NO_HUGE_PAGES = 4, 15  # MADV_DONTNEED and MADV_NOHUGEPAGE of Linux


def release(part: np.ndarray) -> bool:
    """Give back the whole pages of a contiguous array; its content is lost. Returns whether the system took them.

    Only Linux is asked; elsewhere the memory stays, and is used again by what is written there next.
    """
    return _advise(part, _DONT_NEED)


def by_small_pages(part: np.ndarray) -> bool:
    """Let the memory of an array be taken in pages of a few kB instead of 2 MiB; returns whether the system does so.

    numpy asks for huge pages. Where an array is written in many small places far apart, each takes 2 MiB then, and the
    time to fill them with zeros.
    """
    return _advise(part, _NO_HUGE_PAGES)


def _advise(part: np.ndarray, advice: int) -> bool:
    page = mmap.PAGESIZE
    begin = -(-part.ctypes.data // page) * page
    length = (part.ctypes.data + part.nbytes) // page * page - begin
    if length <= 0 or not part.flags.c_contiguous or sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        return advise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice) == 0
    return False
