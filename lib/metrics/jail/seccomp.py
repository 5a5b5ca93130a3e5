"""Restricts a process to a list of system calls; every other one fails with EPERM (seccomp, mode 2).

Absent by intent: starting processes or threads, executing files, sockets, signals, tracing, changing owners, rights,
times or limits, mounting. The filter is a classic BPF program (linux/seccomp.h, linux/filter.h), set by prctl.
"""

import ctypes
import platform
import struct

# name, number on x86_64, number on aarch64 ("-": that machine has no such call); from the kernel's syscall tables
_ALLOWED = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222,
mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -, sched_yield 24 124,
mremap 25 216, madvise 28 233, dup 32 23, dup2 33 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103,
getpid 39 172, exit 60 93, uname 63 160, fcntl 72 25, fsync 74 82, ftruncate 77 46, getdents 78 -, getcwd 79 17,
chdir 80 49, unlink 87 -, readlink 89 -, gettimeofday 96 169, getrlimit 97 163,
getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177,
getppid 110 173, sigaltstack 131 132, gettid 186 178, futex 202 98, sched_getaffinity 204 123, getdents64 217 61,
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, openat 257 56, 
newfstatat 262 79, unlinkat 263 35, readlinkat 267 78, faccessat 269 48, pselect6 270 72,
ppoll 271 73, set_robust_list 273 99, dup3 292 24, pipe2 293 59, getrandom 318 278,
membarrier 324 283, statx 332 291, rseq 334 293, faccessat2 439 439
"""
_ARCHITECTURES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}  # column above, AUDIT_ARCH of linux/audit.h

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # _REFUSE: SECCOMP_RET_ERRNO with EPERM = 1
_SET_NO_NEW_PRIVILEGES, _GET_SECCOMP, _SET_SECCOMP, _FILTER = 38, 21, 22, 2


def missing() -> str | None:
    """The reason why system calls can't be filtered here; None where they can."""
    if platform.machine() not in _ARCHITECTURES:
        return f"no list of system calls for {platform.machine()} (there is one for {', '.join(_ARCHITECTURES)})"
    if ctypes.CDLL(None).prctl(_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return "the kernel has no seccomp"
    return None


def program(machine: str) -> bytes:
    """The filter as packed `struct sock_filter`s: refuse another architecture, allow what is listed, else EPERM."""
    column, architecture = _ARCHITECTURES[machine]
    entries = [entry.split() for entry in _ALLOWED.replace("\n", " ").split(",")]
    numbers = [int(entry[column]) for entry in entries if entry[column] != "-"]
    code = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    code += [(_JUMP_IF_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    code += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def restrict():
    """Confine this process for good. Raises OSError where the kernel refuses the filter."""
    libc = ctypes.CDLL(None, use_errno=True)
    packed = program(platform.machine())
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("HxxxxxxP", len(packed) // 8, ctypes.addressof(buffer))
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(
        _SET_SECCOMP, _FILTER, ctypes.create_string_buffer(header, len(header)), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the kernel refused the filter of system calls")
