"""Markdown pages as programs: what a reader would copy is written, run and compared here.

Fenced blocks are taken in the order of their page, in a folder of their own:

* ``python``: run; all of a page share one namespace, as in a notebook.
* ``bash``: run with ``bash -e`` in a virtual environment of the page's own; variables and the
  current folder last until the end of the page, as in one shell.
* a block behind ``<!-- file: NAME -->``: written to that file, whatever its language.
* ``yaml`` without a file: a fragment of a config; checked together with a minimal one.
* ``text`` behind a block that runs: what it prints; ``...`` stands for anything.
* ``py``: a signature in the generated reference.

Exceptions are written where they are, and ``test_pages.py`` lists them:
``<!-- not run: REASON -->``, ``<!-- dry run: REASON -->`` (``grpo train`` only describes the run)
and ``<!-- source: FILE FUNCTION -->`` (a quotation of the code).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import site
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:^<!-- (?P<key>[a-z ]+?): (?P<value>[^\n]*?) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One fenced block. Example: ``Block(language="yaml", text="loss: grpo\\n", line=12,
    key="file", value="run.yaml")``."""

    language: str
    text: str
    line: int
    key: str | None
    """The directive before it: ``file``, ``not run``, ``dry run``, ``source``."""
    value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def blocks(self) -> Iterator[Block]:
        for match in FENCE.finditer(self.text):
            yield Block(
                language=match["language"],
                text=match["text"],
                line=self.text.count("\n", 0, match.start("language")) + 1,
                key=match["key"],
                value=match["value"] or "",
            )


def _pages() -> list[Page]:
    found = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    found += sorted(ROOT.glob("plugins/*/README.md"))
    # Their examples need what they install: `make contrib` does.
    found += [
        page for page in sorted(ROOT.glob("contrib/*/README.md")) if _installed(page.parent.name)
    ]
    return [Page(path=path, text=path.read_text("utf-8")) for path in found]


def _installed(distribution: str) -> bool:
    return any(True for _ in metadata.distributions(name=distribution))


PAGES = _pages()

BASE_CONFIG = """\
model: {path: somewhere}
task: arithmetic
train: {steps: 10}
"""
"""What a fragment of a config is checked together with."""

PIP = """\
#!/bin/sh
# Offline where it can be: the build backend and all dependencies are installed already.
if [ "$1" = install ] && "{python}" -c "import hatchling" 2>/dev/null; then
  shift; exec "{python}" -m pip install --quiet --no-build-isolation --no-deps "$@"
fi
exec "{python}" -m pip "$@"
"""

GRPO = """\
#!/bin/sh
if [ -f "{bin}/dry" ] && [ "$1" = train ]; then shift; set -- train --dry-run "$@"; fi
exec "{python}" "{bin}/grpo_script.py" "$@"
"""


SHELL = """\
set -a
if [ -f "{state}" ]; then . "{state}"; fi
{script}
{{ export -p; printf 'cd %q\\n' "$PWD"; }} > "{state}"
"""


class Reader:
    """Somebody who does what one page says, in a folder and an environment of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self._bin = folder / "venv" / "bin"
        self._module = ModuleType(f"page_{id(self)}")
        self._made = False

    def follow(self, page: Page) -> None:
        """Write, run and compare every block of a page; ``AssertionError`` names file and line."""
        printed = None
        for block in page.blocks:
            where = f"{page.name}:{block.line}"
            if block.key in ("not run", "source"):
                printed = None
            elif block.key == "file":
                path = self.folder / block.value
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, "utf-8")
            elif block.language == "python":
                printed = self._python(block, page)
            elif block.language == "bash":
                printed = self._bash(block.text, where, dry=block.key == "dry run")
            elif block.language == "yaml":
                self._fragment(block.text, where)
            elif block.language == "text":
                if printed is not None:
                    compare(block.text, printed, where)
            elif block.language != "py" or "reference" not in page.path.parts:
                raise AssertionError(f"{where}: nothing checks a block of {block.language!r}")

    def _python(self, block: Block, page: Page) -> str:
        # Blank lines in front, so that a traceback shows the line of the page.
        code = compile("\n" * block.line + block.text, str(page.path), "exec")
        printed = io.StringIO()
        modules, paths = dict(sys.modules), list(sys.path)
        sys.modules[self._module.__name__] = self._module
        sys.path.insert(0, str(self.folder))
        try:
            with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
                exec(code, vars(self._module))
        finally:
            sys.path[:] = paths
            # What was imported from the page's folder must not be found by the next page.
            for name in sys.modules.keys() - modules.keys():
                file = getattr(sys.modules[name], "__file__", None) or ""
                if file.startswith(str(self.folder)):
                    del sys.modules[name]
        return printed.getvalue()

    def _bash(self, script: str, where: str, *, dry: bool = False) -> str:
        self._make_environment()
        (self._bin / "dry").unlink(missing_ok=True)
        if dry:
            (self._bin / "dry").touch()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("GRPO_", "PIP_"))}
        environment |= {
            "PATH": f"{self._bin}{os.pathsep}{environment.get('PATH', '')}",
            "VIRTUAL_ENV": str(self._bin.parent),
            "COLUMNS": "100",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        state = self.folder.parent / "shell"
        script = SHELL.format(state=state, script=script)
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{where} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def _fragment(self, text: str, where: str) -> None:
        (self.folder.parent / "base.yaml").write_text(BASE_CONFIG)
        (self.folder.parent / "fragment.yaml").write_text(text)
        files = f"{self.folder.parent}/base.yaml {self.folder.parent}/fragment.yaml"
        self._bash(f"grpo config check {files}", where)

    def _make_environment(self) -> None:
        """A virtual environment that sees what is installed here, and whose own installations
        nobody else sees."""
        if self._made:
            return
        self._made = True
        venv = self._bin.parent
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        (packages,) = venv.glob("lib/python*/site-packages")
        # `addsitedir` and not a plain path: packages installed as editable are .pth files too.
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        (packages / "outer.pth").write_text("\n".join(lines) + "\n")
        # A file, as pip's console scripts are one: `python -m` would find the current folder.
        (self._bin / "grpo_script.py").write_text("from grpo_core.cli import main\n\nmain()\n")
        for name, script in (("pip", PIP), ("grpo", GRPO)):
            text = script.replace("{python}", "{bin}/python").replace("{bin}", str(self._bin))
            (self._bin / name).write_text(text)
            (self._bin / name).chmod(0o755)


def compare(expected: str, printed: str, where: str) -> None:
    """Each expected line must be found in what was printed, in order; ``...`` is anything."""
    rest = [line.strip() for line in printed.splitlines()]
    for line in expected.splitlines():
        pattern = ".*".join(re.escape(part) for part in line.strip().split("..."))
        hit = next((i for i, found in enumerate(rest) if re.fullmatch(pattern, found)), None)
        assert hit is not None, f"{where}: {line!r} is not in what was printed:\n{printed}"
        rest = rest[hit + 1 :]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``page`` runs once per page."""
    if "page" in metafunc.fixturenames:
        # Its programs are looked for by the sandbox's own tests.
        boxed = [pytest.mark.xdist_group("sandbox")]
        marked = [
            pytest.param(page, id=page.name, marks=boxed if "grpo_sandbox" in page.text else ())
            for page in PAGES
        ]
        metafunc.parametrize("page", marked)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


@pytest.fixture(scope="session")
def pages() -> list[Page]:
    return PAGES


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
