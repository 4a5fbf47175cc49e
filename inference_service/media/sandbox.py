"""Takes from a process what decoding does not need: other programs, connections, and other processes (seccomp, Linux).

A decoder with a defect that a hostile file uses can then do little more than crash. Files may still be opened, as
modules are imported late.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from typing import Final


_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | errno.EPERM
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_X32: Final = 0x40000000

# socket, connect, clone, (fork, vfork,) execve, ptrace, process_vm_readv, process_vm_writev, execveat, bpf,
# perf_event_open, userfaultfd, mount, unshare, setns, io_uring_setup, clone3
_X86_64: Final = (41, 42, 56, 57, 58, 59, 101, 310, 311, 322, 321, 298, 323, 165, 272, 308)
_AARCH64: Final = (198, 203, 220, 221, 117, 270, 271, 281, 280, 241, 282, 40, 97, 268)
_EVERYWHERE: Final = (425, 435)
_MACHINES: Final = {
    "x86_64": (0xC000003E, _X86_64 + _EVERYWHERE),
    "aarch64": (0xC00000B7, _AARCH64 + _EVERYWHERE),
}


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def enter_sandbox() -> bool:
    """Refuses such system calls of this process from now on, with EPERM.

    Returns:
        False if the kernel or the machine does not support it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if platform.machine() not in _MACHINES:
        return False
    code = _filter(*_MACHINES[platform.machine()])
    program = _Program(len(code) // 8, code)
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program)) == 0)


def _filter(architecture: int, refused: tuple[int, ...]) -> bytes:
    """The program: all calls of another architecture's table and those listed are refused, the others allowed."""
    numbers = [(_IF_AT_LEAST, _X32), *((_IF_EQUAL, number) for number in refused)]
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 0, len(numbers) + 2, architecture),  # else to the last
        (_LOAD, 0, 0, _NUMBER),
        *((code, len(numbers) - index, 0, value) for index, (code, value) in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
