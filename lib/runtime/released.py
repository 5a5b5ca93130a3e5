"""Gives the memory of an array's part back to the system, which fills it with zeros when it is used again."""

import contextlib
import ctypes
import mmap
import sys

import numpy as np

_DONT_NEED = 4  # MADV_DONTNEED of Linux


def release(part: np.ndarray) -> bool:
    """Give back the whole pages of a contiguous array; its content is lost. Returns whether the system took them.

    Only Linux is asked; elsewhere the memory stays, and is used again by what is written there next.
    """
    page = mmap.PAGESIZE
    begin = -(-part.ctypes.data // page) * page
    length = (part.ctypes.data + part.nbytes) // page * page - begin
    if length <= 0 or not part.flags.c_contiguous or sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None).madvise
        return advise(ctypes.c_void_p(begin), ctypes.c_size_t(length), _DONT_NEED) == 0
    return False
