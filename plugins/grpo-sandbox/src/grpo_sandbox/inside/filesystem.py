"""What a program sees as the file system."""

from __future__ import annotations

import os
from typing import Any

from grpo_sandbox.inside import linux
from grpo_sandbox.inside.linux import mount

DEVICES = ("null", "zero", "full", "random", "urandom")


def build_root(job: dict[str, Any]) -> None:
    """A new root in memory: system folders to read, ``/work`` to read, ``/tmp`` to write."""
    mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=64m")
    os.chdir("/tmp")
    os.mkdir("old")
    os.mkdir("new")
    mount("new", "new", "", linux.MS_BIND)
    linux.pivot(".", "old")
    os.chdir("/")
    # First, as an interpreter may lie in /tmp, and is to be seen there.
    os.mkdir("/new/tmp")
    limits = job["limits"]
    options = f"mode=1777,size={limits['disk_mb']}m,nr_inodes={limits['max_files']}"
    mount("tmpfs", "/new/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    for path in job["read_only"]:
        show(path)
    os.makedirs("/new/dev", exist_ok=True)
    for name in DEVICES:
        os.close(os.open(f"/new/dev/{name}", os.O_CREAT, 0o600))
        mount(f"/old/dev/{name}", f"/new/dev/{name}", "", linux.MS_BIND)
    os.symlink("/tmp", "/new/dev/shm")
    write_files("/new/work", job["files"])
    linux.set_attributes("/new", linux.MS_RDONLY, recursive=False)
    linux.check(linux.LIBC.umount2(b"/old", linux.MNT_DETACH), "umount old root")
    os.chdir("/new")
    linux.pivot(".", ".")
    linux.check(linux.LIBC.umount2(b".", linux.MNT_DETACH), "umount outer root")
    os.chdir("/tmp")
    linux.LIBC.sethostname(b"sandbox", 7)


def show(path: str) -> None:
    """Let a folder or a file of the host be read at its own place."""
    old, new = f"/old{path}", f"/new{path}"
    if os.path.islink(old):  # /bin -> usr/bin
        os.makedirs(os.path.dirname(new), exist_ok=True)
        os.symlink(os.readlink(old), new)
        return
    if os.path.isdir(old):
        os.makedirs(new, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(new), exist_ok=True)
        os.close(os.open(new, os.O_CREAT, 0o644))
    mount(old, new, "", linux.MS_BIND | linux.MS_REC)
    linux.set_attributes(new, linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV, recursive=True)


def write_files(folder: str, files: dict[str, str]) -> None:
    os.makedirs(folder, exist_ok=True)
    for name, text in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as handle:
            # Half a surrogate pair is a syntax error of the program, not a failure of the box.
            handle.write(text.encode("utf-8", "surrogatepass"))
