"""The source as data: every module, what it imports, and when. Nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name. Example: ``from grpo_core.types import Rollout`` has
    ``module="grpo_core.types"``, ``name="Rollout"``."""

    module: str
    name: str | None
    line: int
    when: str
    """``"import"`` (as its module is imported), ``"call"`` or ``"typing"`` (never)."""


@dataclass(frozen=True)
class Module:
    name: str
    source: str
    path: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, "import"))

    def at(self, line: int, text: str) -> str:
        return f"{self.path}:{line}: {text}"


def _imports(node: ast.AST, when: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(module=alias.name, name=None, line=node.lineno, when=when)
    elif isinstance(node, ast.ImportFrom):
        # A relative import keeps its dots: no rule knows such a name, so all of them reject it.
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            yield Import(module=module, name=alias.name, line=node.lineno, when=when)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from _imports(child, "typing")
        for child in node.orelse:
            yield from _imports(child, when)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, "call" if inside and when == "import" else when)


class Code(Mapping[str, Module]):
    """Modules by dotted name."""

    def __init__(self, modules: list[Module]) -> None:
        self._modules = {module.name: module for module in modules}
        self._edges: dict[tuple[str, tuple[str, ...]], set[str]] = {}

    def __getitem__(self, name: str) -> Module:
        return self._modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def target(self, found: Import) -> str:
        """The module that an import leads to, through packages' lazy exports."""
        if found.name is None:
            return found.module
        if f"{found.module}.{found.name}" in self:
            return f"{found.module}.{found.name}"
        return self._lazy(found.module).get(found.name, found.module)

    def _lazy(self, module: str) -> dict[str, str]:
        if module not in self:
            return {}
        for node in ast.walk(self[module].tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_exports":
                return dict(ast.literal_eval(node.args[1]))
        return {}

    def imported_by(self, name: str, whens: tuple[str, ...]) -> set[str]:
        """Modules that run because ``name`` does, parents of packages included."""
        if (name, whens) not in self._edges:
            self._edges[name, whens] = {
                module
                for found in self[name].imports
                if found.when in whens
                for target in (found.module, self.target(found))
                for module in _with_parents(target)
            }
        return self._edges[name, whens]

    def reached(self, *roots: str, whens: tuple[str, ...] = ("import",)) -> dict[str, str]:
        """Every module, of this code or another's, that importing ``roots`` imports; with the
        way to it: ``{"torch": "grpo_core.cli > grpo_core.policy > torch"}``."""
        ways = {module: module for root in roots for module in _with_parents(root)}
        pending = list(ways)
        while pending:
            name = pending.pop()
            for target in sorted(self.imported_by(name, whens)) if name in self else ():
                if target not in ways:
                    ways[target] = f"{ways[name]} > {target}"
                    pending.append(target)
        return ways


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="session")
def project() -> Code:
    """The core and every plugin, without their tests."""
    sources = [REPOSITORY / "plugins", REPOSITORY / "contrib"]
    roots = [REPOSITORY, *(root for source in sources for root in source.glob("*/src"))]
    modules = [
        Module(_name_of(path, root), path.read_text("utf-8"), str(path.relative_to(REPOSITORY)))
        for root in roots
        for path in sorted(root.glob("grpo_core/**/*.py" if root == REPOSITORY else "**/*.py"))
    ]
    assert len(modules) > 80
    return Code(modules)


@pytest.fixture(scope="session")
def parse() -> Callable[[dict[str, str]], Code]:
    """Made-up modules, to show that a rule can fail: ``parse({"grpo_core.types": "..."})``."""

    def make(sources: dict[str, str]) -> Code:
        return Code([Module(name, source, f"{name}.py") for name, source in sources.items()])

    return make
