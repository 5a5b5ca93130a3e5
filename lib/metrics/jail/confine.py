"""Gives up a process's rights before it runs code that is not trusted."""

import ctypes
import os
import platform
import resource
import signal
import stat
import sys
import sysconfig
from pathlib import Path

from lib.metrics.jail import landlock, seccomp

NOBODY = 65534
PACKAGES = ("numpy",)  # packages that a program may import besides the standard library
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG
_CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


def missing() -> str | None:
    """The reason why programs can't be isolated on this machine; None where they can."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has neither Landlock nor seccomp"
    if landlock.version() < 1:
        return f"the kernel ({platform.release()}) has no Landlock, or it is switched off"
    return seccomp.missing()


def readable() -> list[tuple[str, int]]:
    """What Python needs: the standard library without installed packages (they may hold data), the libraries beside
    libc, the few packages that are allowed. As (path, rights) for Landlock."""
    machine = platform.machine()
    places = [f"{root}/{name}" for root in ("/lib", "/usr/lib") for name in ("", f"{machine}-linux-gnu")]
    places += ["/lib64", "/usr/lib64"]
    found = [place for place in places if os.path.exists(f"{place}/libc.so.6")] + ["/etc/ld.so.cache", "/dev/urandom"]
    allowed = [(path, landlock.READ) for path in found] + [("/dev/null", landlock.WRITE)]
    for library in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        children = [each for each in os.scandir(library) if not each.name.endswith("-packages")]
        allowed += [(library, landlock.LIST), *((each.path, landlock.READ) for each in children)]
    for folder in packages():
        parts = [os.path.join(folder, name + end) for name in PACKAGES for end in ("", ".libs")]
        allowed += [(folder, landlock.LIST), *((part, landlock.READ) for part in parts)]
    return allowed


def packages() -> list[str]:
    """Folders with installed packages that hold one of `PACKAGES`; read from this process's import path."""
    return [folder for folder in sys.path if any(os.path.isdir(os.path.join(folder, name)) for name in PACKAGES)]


def user() -> int | None:
    """The user that a superuser should become: nobody, if nobody can read the Python that runs us; else None."""
    if os.geteuid() != 0:
        return None
    library = Path(sysconfig.get_path("stdlib")).resolve()
    open_to_all = all(os.stat(folder).st_mode & stat.S_IXOTH for folder in [library, *library.parents])
    return NOBODY if open_to_all else None


def apply(settings: dict):
    """Give up, in this order: resources, life without the parent, the superuser's power, files, system calls.

    settings: `cpu` (seconds), `memory` and `file` (bytes), `parent` (its process number), `user`, `readable`, `folder`
    (the one place to write).
    Raises OSError where the kernel refuses any of it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    cpu, memory, file = settings["cpu"], settings["memory"], settings["file"]
    for what, soft, hard in (
        (
            resource.RLIMIT_CPU,
            cpu,
            cpu + 1,
        ),  # the soft limit sends a signal, which tells the reason; a program that catches it ends at the hard limit
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, file, file),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))
    if os.geteuid() == 0:
        _drop(libc, settings["user"])
    if libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0) or os.getppid() != settings["parent"]:
        raise OSError(ctypes.get_errno(), "the process that asked for this one is gone")
    landlock.restrict([*settings["readable"], (settings["folder"], landlock.WRITE)])
    seccomp.restrict()


def _drop(libc, number: int | None):
    """Become user `number` where given; without any capability, user 0 is one user like others."""
    if number is not None:
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "the kernel refused to drop capabilities")
