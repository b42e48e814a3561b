"""The system calls that a candidate may not make, as a classic BPF program for ``prctl``.

Everything ordinary is let through, so that Python and the tools of a shell work; what is refused
is what reaches past the other walls (new namespaces, mounts, keyrings, io_uring, other processes'
memory, sockets) and memory that no limit counts (System V and POSIX queues, memfd). Numbers above
``NEWEST`` are of calls that nobody has looked at and do not exist for the candidate.
"""

from __future__ import annotations

import errno
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""``AUDIT_ARCH_*`` of linux/audit.h, by ``os.uname().machine``."""

NEWEST = 462
"""``mseal`` of Linux 6.10, the last call that this table was made with."""

_TABLE = """
acct 163 89            add_key 248 217         bpf 321 280             chroot 161 51
clock_adjtime 305 266  clock_settime 227 112   clone3 435 435          delete_module 176 106
fanotify_init 300 262  fanotify_mark 301 263   finit_module 313 273    fsconfig 431 431
fsmount 432 432        fsopen 430 430          fspick 433 433          init_module 175 105
io_cancel 210 3        io_destroy 207 1        io_getevents 208 4      io_pgetevents 333 292
io_setup 206 0         io_submit 209 2         io_uring_enter 426 426  io_uring_register 427 427
io_uring_setup 425 425 ioperm 173 -            iopl 172 -              kcmp 312 272
kexec_file_load 320 294 kexec_load 246 104     keyctl 250 219          lookup_dcookie 212 18
memfd_create 319 279   memfd_secret 447 447    migrate_pages 256 238   mknod 133 -
mknodat 259 33         modify_ldt 154 -        mount 165 40            mount_setattr 442 442
move_mount 429 429     move_pages 279 239      mq_open 240 180         msgget 68 186
name_to_handle_at 303 264 nfsservctl 180 42    open_by_handle_at 304 265 open_tree 428 428
perf_event_open 298 241 personality 135 92     pidfd_getfd 438 438     pivot_root 155 41
process_madvise 440 440 process_mrelease 448 448 process_vm_readv 310 270
process_vm_writev 311 271 ptrace 101 117       quotactl 179 60         quotactl_fd 443 443
reboot 169 142         request_key 249 218     semget 64 190           setdomainname 171 162
sethostname 170 161    setns 308 268           settimeofday 164 170    shmget 29 194
socket 41 198          swapoff 168 225         swapon 167 224          syslog 103 116
umount2 166 39         unshare 272 97          userfaultfd 323 282     uselib 134 -
ustat 136 -            sysfs 139 -             vhangup 153 58          vmsplice 278 75
create_module 174 -    get_kernel_syms 177 -   query_module 178 -      _sysctl 156 -
"""
_WORDS = _TABLE.split()
DENIED: dict[str, tuple[int | None, int | None]] = {
    name: (None if x86 == "-" else int(x86), None if arm == "-" else int(arm))
    for name, x86, arm in zip(_WORDS[::3], _WORDS[1::3], _WORDS[2::3], strict=True)
}
"""Call to its number on x86_64 and on aarch64 (``asm/unistd_64.h``, ``asm-generic/unistd.h``)."""

MISSING = frozenset({"clone3", "memfd_create"})
"""Refused as if the kernel did not have them: libraries then take the older call."""

NEW_NAMESPACES = 0x7E020000
"""``CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}``; time namespaces need ``clone3`` or ``unshare``."""

_CLONE, _SOCKETPAIR = {"x86_64": 56, "aarch64": 220}, {"x86_64": 53, "aarch64": 199}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
_AF_UNIX = 1
_X32 = 0x40000000

_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL = 0x7FFF0000, 0x80000000


def _refuse(number: int) -> int:
    return 0x00050000 | number  # SECCOMP_RET_ERRNO


def supported(machine: str) -> bool:
    """Whether there is a filter for this ``os.uname().machine``."""
    return machine in ARCHITECTURES


def program(machine: str) -> bytes:
    """The filter: instructions of 8 bytes, as ``struct sock_filter`` lays them out.

    Raises:
        KeyError: no table for this machine, see ``supported``.
    """
    column = ("x86_64", "aarch64").index(machine) if supported(machine) else None
    if column is None:
        raise KeyError(f"no seccomp filter for {machine!r}; there are {sorted(ARCHITECTURES)}")
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, ARCHITECTURES[machine]),
        # A 32-bit call (int 0x80) has other numbers, so that the table would not apply to it.
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_ABOVE, 0, 1, _X32 - 1),
        (_RETURN, 0, 0, _KILL),
        (_ABOVE, 0, 1, NEWEST),
        (_RETURN, 0, 0, _refuse(errno.ENOSYS)),
    ]
    for name, numbers in sorted(DENIED.items()):
        number = numbers[column]
        if number is not None:
            refusal = errno.ENOSYS if name in MISSING else errno.EPERM
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _refuse(refusal))]
    code += [
        (_EQUAL, 0, 4, _CLONE[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, NEW_NAMESPACES),
        (_RETURN, 0, 0, _refuse(errno.EPERM)),
        (_RETURN, 0, 0, _ALLOW),
        # Of itself only: as the same user it could give pid 1 no time to live, and a box that
        # breaks is not counted against the program.
        (_EQUAL, 0, 4, _PRLIMIT[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, _refuse(errno.EPERM)),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 3, _SOCKETPAIR[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 1, 0, _AF_UNIX),
        (_RETURN, 0, 0, _refuse(errno.EPERM)),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
