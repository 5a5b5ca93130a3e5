"""Restricts which files a process may open, enforced by the kernel (Landlock, Linux 5.13 and newer).

Needs no rights. Constants and structures are those of linux/landlock.h; what the running kernel does not know yet is
left out of the ruleset.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on all architectures
_SET_NO_NEW_PRIVILEGES = 38

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE
LIST = _READ_DIR
READ = _READ_FILE | _READ_DIR
WRITE = READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE  # plain files only: no folders, links or devices
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # file rights by version


def version() -> int:
    """The kernel's Landlock version, 0 where it has none or it is switched off."""
    return max(0, ctypes.CDLL(None).syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def restrict(allowed: Iterable[tuple[str, int]]):
    """Confine this process for good to the `(path, rights)` given, each with what is below it; absent paths are left
    out. Connections over TCP, signals and abstract sockets to outside are refused too, where the kernel can.
    Raises OSError where the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    known = version()
    files = _HANDLED.get(known, (1 << 16) - 1)
    fields = [files] + [3] * (known >= 4) + [3] * (known >= 6)  # network: bind, connect; scopes: sockets, signals
    ruleset = _call(libc, _CREATE, struct.pack(f"={len(fields)}Q", *fields), ctypes.c_size_t(8 * len(fields)), 0)
    for path, rights in allowed:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rights &= files if stat.S_ISDIR(os.fstat(handle).st_mode) else files & _OF_FILES
        _call(libc, _ADD, ctypes.c_int(ruleset), 1, struct.pack("=Qi", rights, handle), 0)
        os.close(handle)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refused to give up privileges")
    _call(libc, _RESTRICT, ctypes.c_int(ruleset), 0)
    os.close(ruleset)


def _call(libc, number: int, *arguments) -> int:
    returned = libc.syscall(number, *arguments)
    if returned < 0:
        raise OSError(ctypes.get_errno(), f"Landlock's system call {number} failed")
    return returned
