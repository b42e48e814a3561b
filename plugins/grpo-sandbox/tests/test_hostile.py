"""Programs that try to get out, to stay, or to take the machine with them.

A program says ``OPEN`` where something lets it through that should not. Each is run for real, and
the host is looked at afterwards.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.usefixtures("host_unchanged"), pytest.mark.xdist_group("sandbox")]

DOORS = {
    "shadow": "open('/etc/shadow').read()",
    "passwd": "open('/etc/passwd').read()",
    "environment of the trainer": "open(f'/proc/{TRAINER}/environ').read()",
    "environment of pid 1": "open('/proc/1/environ').read()",
    "own memory by proc": "open('/proc/self/mem', 'rb').read(1)",
    "canary": "open(CANARY).read()",
    "canary through a link": "os.symlink(CANARY, '/tmp/l'); open('/tmp/l').read()",
    "canary upwards": "open('/tmp/' + '../' * 20 + CANARY).read()",
    "write to the system": "open('/usr/escaped', 'w')",
    "write to the root": "open('/escaped', 'w')",
    "write to the program": "open('/work/main.py', 'a')",
    "write through a link": "os.symlink('/usr', '/tmp/u'); open('/tmp/u/escaped', 'w')",
    "write to the interpreter": "open(os.__file__, 'a')",
    "make the root writable": "check(c.mount(b'none', b'/', None, 4096 | 32, 0))",
    "block device": "os.mknod('/tmp/d', 0o60666, os.makedev(254, 0))",
    "tcp": "socket.create_connection(('127.0.0.1', PORT), 1)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "unix abstract": "socket.socket(socket.AF_UNIX).connect('\\0' + ABSTRACT)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "socketpair of inet": "socket.socketpair(socket.AF_INET)",
    "write to stdin": "os.write(0, b'x')",
    "inherited descriptors": "[os.fstat(fd) for fd in range(3, 64)][0]",
    "kill the trainer": "os.kill(TRAINER, 9)",
    "become root": "os.setuid(0)",
    "chroot": "os.chroot('/tmp')",
    "user namespace": "check(c.unshare(0x10000000))",
    "user namespace by clone": "check(c.syscall(56, 0x10000000 | 17, 0, 0, 0, 0))",
    "user namespace by clone3": "check(c.syscall(435, b'\\0' * 64, 64))",
    "mount": "check(c.mount(b'x', b'/tmp', b'tmpfs', 0, 0))",
    "ptrace": "check(c.ptrace(16, 1, 0, 0))",
    "memory of pid 1": "check(c.syscall(310, 1, None, 0, None, 0, 0))",
    "keyring": "check(c.syscall(250, 0, -3, 1, 0, 0))",
    "io_uring": "check(c.syscall(425, 1, bytes(120)))",
    "bpf": "check(c.syscall(321, 0, bytes(64), 64))",
    "perf": "check(c.syscall(298, bytes(128), 0, -1, -1, 0))",
    "memfd": "check(c.memfd_create(b'x', 0))",
    "system v memory": "check(c.shmget(0, 1 << 20, 0o1666))",
    "message queue": "check(c.msgget(0, 0o1666))",
    "handle of a file": "check(c.syscall(304, -100, bytes(64), 0))",
    "unknown call": "check(c.syscall(500))",
    "limits of pid 1": "check(c.prlimit(1, 0, bytes(16), None))",
    "x32 call": "check(c.syscall(0x40000000 | 41, 2, 1, 0))",
}

PREFIX = """\
import ctypes, os, socket
c = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
CANARY, TRAINER, PORT, ABSTRACT = {canary!r}, {trainer}, {port}, {abstract!r}
try:
    {door}
except (OSError, AttributeError) as error:
    print("shut", type(error).__name__)
else:
    print("OPEN")
"""


@pytest.fixture(scope="module")
def listeners() -> Iterator[tuple[int, str]]:
    """What a program without walls could reach: a port and an abstract socket of this machine."""
    name = f"grpo-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0" + name)
        unix.listen()
        yield tcp.getsockname()[1], name


@pytest.mark.parametrize("door", DOORS.values(), ids=[name.replace(" ", "-") for name in DOORS])
def test_a_door_is_shut(run, door: str, listeners: tuple[int, str], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("secret")
    canary.chmod(0o644)
    if "c.syscall" in door and os.uname().machine != "x86_64":
        pytest.skip("the numbers of these calls are those of x86_64")
    port, abstract = listeners
    code = PREFIX.format(
        door=door,
        canary=str(canary),
        trainer=os.getpid(),
        port=port,
        abstract=abstract,
    )
    finished = run(code)
    if "0x40000000" in door:  # another table of calls: the filter ends the program
        assert finished.signal == signal.SIGSYS
        return
    assert finished.stdout.startswith(b"shut"), (finished.stdout, finished.stderr)


def test_the_doors_are_open_outside(listeners: tuple[int, str], tmp_path: Path) -> None:
    """The same programs without walls, so that a typing error does not pass for a wall."""
    canary = tmp_path / "canary"
    canary.write_text("secret")
    names = ["environment of the trainer", "canary", "tcp", "udp", "unix abstract", "memfd"]
    for name in names:
        code = PREFIX.format(
            door=DOORS[name],
            canary=str(canary),
            trainer=os.getpid(),
            port=listeners[0],
            abstract=listeners[1],
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert done.stdout == b"OPEN\n", name


def test_the_environment_is_clean(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen = run("import os; print(dict(os.environ))").stdout
    assert b"secret" not in seen
    assert b"'HOME': '/tmp'" in seen


def test_a_fork_bomb(run) -> None:
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    finished = run(code, wall_s=1.5, max_processes=16)
    assert finished.reason in ("wall time", "cpu time", "memory")


def test_processes_are_counted_per_program(run) -> None:
    code = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except OSError:
    print(made)
"""
    assert int(run(code, max_processes=8).stdout) == 7


def test_a_memory_bomb(run) -> None:
    assert b"MemoryError" in run("x = bytearray(10**9)").stderr


def test_a_memory_bomb_in_many_processes(run) -> None:
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        x = bytearray(60 << 20)
        time.sleep(60)
time.sleep(60)
"""
    assert run(code, memory_mb=100).reason == "memory"


def test_a_disk_filler(run) -> None:
    mounts = Path("/proc/self/mountinfo")
    before = mounts.read_text()
    code = """
import os
total = 0
try:
    for n in range(1000):
        with open(f"/tmp/{n}", "wb", buffering=0) as f:
            for _ in range(8):
                total += f.write(bytes(1 << 20))
except OSError as error:
    print(total >> 20, error.errno)
"""
    assert run(code, disk_mb=120).stdout == b"120 28\n"  # ENOSPC
    assert mounts.read_text() == before, "what it filled is kept by a mount"


def test_too_many_files(run) -> None:
    code = """
try:
    for n in range(10**6):
        open(f"/tmp/{n}", "w").close()
except OSError as error:
    print(n < 200, error.errno)
"""
    assert run(code, max_files=200).stdout == b"True 28\n"


@pytest.mark.parametrize("stream", [1, 2])
def test_an_output_flood(run, stream: int) -> None:
    finished = run(f"import os\nwhile True: os.write({stream}, b'x' * 65536)", output_kb=100)
    assert finished.reason == "output"
    assert max(len(finished.stdout), len(finished.stderr)) == 100 << 10


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "cpu time"),
        ("import time; time.sleep(99)", "wall time"),
        ("import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
         "    except OSError: pass\nwhile True: pass", "cpu time"),
        ("import os\nfor fd in range(64):\n    try: os.close(fd)\n    except OSError: pass\n"
         "while True: os.sched_yield()", "cpu time"),
        ("import ctypes; ctypes.string_at(0)", "signal"),
        ("import os; os.kill(os.getpid(), 9)", "signal"),
    ],
    ids=["spin", "sleep", "ignore-signals", "close-fds", "segfault", "kill-self"],
)  # fmt: skip
def test_an_end_that_is_the_programs_own_doing(run, code: str, reason: str) -> None:
    # Spinning is ended by its CPU time, however slowly that passes on a busy machine.
    limits = {"cpu time": {"cpu_s": 1}, "wall time": {"wall_s": 1.5}}
    finished = run(code, **limits.get(reason, {}))
    assert finished.reason == reason


def test_endless_recursion(run) -> None:
    finished = run("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()")
    assert not finished.ok


def test_of_home_only_the_way_to_the_interpreter_is_there(run, executor) -> None:
    shown = {part for path in executor.readable for part in Path(path).parts}
    listed = run(f"import os; print(*os.listdir({str(Path.home())!r}))")
    assert set(listed.stdout.decode().split()) <= shown


@pytest.mark.parametrize(
    "attack",
    ["os.kill(os.getppid(), 9)", "os.kill(-1, 9)", "os.killpg(0, 9)", "os.kill(1, 15)"],
)
def test_killing_others(run, attack: str) -> None:
    """Nobody outside is hit, and the watcher still tells how the program ended."""
    code = f"import os, sys\ntry: {attack}\nexcept OSError as e: print(e.errno)\nsys.exit(7)"
    finished = run(code)
    assert finished.code == 7 or (finished.signal == 9 and "killpg" in attack)


def test_a_daemon_does_not_survive(run) -> None:
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        time.sleep(3600)
    os._exit(0)
os.wait()
print("left a daemon")
"""
    finished = run(code, wall_s=300)
    assert (finished.reason, finished.stdout) == ("exited", b"left a daemon\n")
    assert finished.wall_s < 200, "nobody waits for the daemon"


def test_the_trainers_death_ends_everything(executor, programs_of, until) -> None:
    """Also a kill -9 of the process that asked leaves no program behind."""
    code = (
        "from grpo_sandbox import Limits, run_python\n"
        # Longer than this test waits: its own clock must not be what ends it.
        "run_python('import time; time.sleep(3600)', limits=Limits(wall_s=600))"
    )
    asking = subprocess.Popen([sys.executable, "-c", code])
    # The first has the program's name among its arguments before there is a second.
    begun = until(lambda: len(programs_of(asking.pid, "")) > 1)
    found = begun and until(lambda: programs_of(asking.pid, "/work/main.py"))
    running = programs_of(asking.pid, "")
    asking.kill()
    asking.wait()
    assert found, "the program, and who watches it"
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in running))


def test_many_at_once(executor) -> None:
    """Hostile neighbours do not disturb a good program."""
    from grpo_sandbox.program import Limits, Program

    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    limits = Limits(cpu_s=2, wall_s=3, max_processes=8)
    bombs = [
        threading.Thread(
            target=executor.run_blocking, args=(Program(files={"main.py": bomb}), limits)
        )
        for _ in range(2)
    ]
    for thread in bombs:
        thread.start()
    good = executor.run_blocking(
        Program(files={"main.py": "print(sum(range(10)))"}), Limits(wall_s=30)
    )
    for thread in bombs:
        thread.join()
    assert good.stdout == b"45\n"


def test_an_ordinary_user_has_the_same_walls(executor) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user: all tests here say the same")
    code = """
from grpo_sandbox import LocalExecutor, Limits, run_python
box = LocalExecutor()
print(box.describe())
limits = Limits(cpu_s=1, wall_s=2, max_processes=8)
look = "import os; print(os.getuid(), os.path.exists('/etc/passwd'), os.getppid())"
print(run_python(look, executor=box).stdout)
bomb = "import os\\nwhile True:\\n    try: os.fork()\\n    except OSError: pass"
print(run_python(bomb, executor=box, limits=limits).reason)
kill = "import os\\ntry: os.kill(-1, 9)\\nexcept OSError: print('alive')"
print(run_python(kill, executor=box).stdout)
"""
    # An interpreter that such a user may start: ours may lie in root's home.
    paths = ":".join(path for path in sys.path if path)
    environment = {"PYTHONPATH": paths, "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            done = subprocess.run(
                [python, "-c", "import pydantic, yaml, pluggy, sys; exec(sys.argv[1])", code],
                env=environment,
                cwd="/",
                user=65534,
                group=65534,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            continue
        if "ModuleNotFoundError" not in done.stderr:
            break
    else:
        pytest.skip("no interpreter here that an ordinary user may start with our packages")
    assert done.returncode == 0, done.stderr
    first, look, bomb, kill = done.stdout.splitlines()
    assert first.endswith("as the user)")
    assert look == "b'1000 False 1\\n'"
    assert bomb in ("wall time", "cpu time", "memory")
    assert kill == "b'alive\\n'"
