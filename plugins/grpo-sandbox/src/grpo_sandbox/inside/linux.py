"""The kernel's calls that the standard library does not offer, through the C library."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long

NEWNS, NEWUTS, NEWIPC = 0x00020000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
ALL = NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_SETATTR, CAPSET = 442, {"x86_64": 126, "aarch64": 91}[os.uname().machine]
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
AT_RECURSIVE = 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, SECCOMP_MODE_FILTER = 22, 36, 2

INSIDE_UID = 1000


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    args = [os.fsencode(text) for text in (source, target, kind)]
    check(LIBC.mount(*args, ctypes.c_ulong(flags), os.fsencode(data)), f"mount {target}")


def set_attributes(target: str, flags: int, *, recursive: bool) -> None:
    """Add flags to a mount and, with ``recursive``, to all below: a plain remount would leave
    those below writable."""
    words = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    check(
        LIBC.syscall(
            ctypes.c_long(MOUNT_SETATTR),
            ctypes.c_int(-100),
            os.fsencode(target),
            ctypes.c_uint(AT_RECURSIVE if recursive else 0),
            words,
            ctypes.c_size_t(32),
        ),
        f"mount_setattr {target}",
    )


def prctl(option: int, value: int, what: str) -> None:
    zero = ctypes.c_ulong(0)
    check(LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero), what)


def pivot(new: str, old: str) -> None:
    result = LIBC.syscall(ctypes.c_long(PIVOT_ROOT), os.fsencode(new), os.fsencode(old))
    check(result, "pivot_root")


def enter_namespaces(host_uid: int, host_gid: int) -> None:
    """New namespaces for this process (network, files, ...) and its children (pids)."""
    if os.geteuid() != 0:
        uid, gid = os.geteuid(), os.getegid()
        check(LIBC.unshare(ALL), "unshare")
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{INSIDE_UID} {uid} 1")
        write("/proc/self/gid_map", f"{INSIDE_UID} {gid} 1")
        return
    # For root the program gets a user of its own: the kernel does not count root's processes. Only
    # somebody outside may write such a map.
    target, ready = os.getpid(), os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(ready[1])
            os.read(ready[0], 1)
            write(f"/proc/{target}/uid_map", f"0 0 1\n{INSIDE_UID} {host_uid} 1")
            write(f"/proc/{target}/gid_map", f"0 0 1\n{INSIDE_UID} {host_gid} 1")
        except OSError:
            os._exit(1)
        os._exit(0)
    check(LIBC.unshare(ALL), "unshare")
    os.close(ready[1])
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError("the map of user ids could not be written")


def write(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def drop_capabilities() -> None:
    """From all sets of this thread, and from the bound of what may come back."""
    for capability in range(64):
        # EINVAL behind the last capability that this kernel has.
        LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    check(LIBC.syscall(ctypes.c_long(CAPSET), header, none), "capset")


def filter_calls(code: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    buffer = ctypes.create_string_buffer(code, len(code))
    program = Program(len(code) // 8, ctypes.addressof(buffer))
    zero = ctypes.c_ulong(0)
    result = LIBC.prctl(
        PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(program), zero, zero
    )
    check(result, "seccomp")
