"""Exchanges two paths atomically where the system can (renameat2 of Linux)."""

import ctypes
import errno
import functools
import os
from pathlib import Path

BUSY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)  # errors of renames while others rename too
_LACKING = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)  # by the kernel, the disk, or a sandbox
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths; False, with nothing changed, where the system or the disk can't. Raises OSError else."""
    rename = _renameat2()
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _LACKING:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


@functools.cache
def _renameat2():
    try:
        found = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # no glibc from 2.28 on
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return found
