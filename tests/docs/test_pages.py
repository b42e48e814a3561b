"""Everything on a page that can be run is run; what cannot is on a list."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from grpo_sandbox import isolation

NOT_RUN = {
    "README.md": [
        ("make demo", "makes a virtual environment and downloads PyTorch"),
        ("make test", "these are the tests"),
        (
            "pip install grpo-rewards-closeness",
            "docs/how-to/reward-plugin.md makes this package, and does the same",
        ),
    ],
    "docs/how-to/tools.md": [
        (
            "cd plugins/grpo-tools/examples/calculator",
            "a slow test of grpo-tools runs it and checks what it learns",
        )
    ],
    "docs/how-to/deploy.md": [
        (
            'pip install "grpo-core[hf]" grpo-generator-vllm-colocate "vllm==0.32.*"',
            "needs a GPU with vLLM",
        ),
        (
            'python -m venv vllm-venv && vllm-venv/bin/pip install "vllm==0.32.*"',
            "needs GPUs and installs vLLM",
        ),
        (
            "export GRPO_VLLM_TOKEN=...  # the same everywhere; made once with: "
            "openssl rand -hex 32",
            "serves until it is stopped",
        ),
        ("export GRPO_VLLM_TOKEN=...", "needs several machines"),
        (
            "curl -s -o /dev/null -w '%{http_code}\\n' http://10.0.0.5:8000/health     # 200",
            "needs a server",
        ),
    ],
    "docs/how-to/vllm-colocate.md": [
        ("pip install 'grpo-core[hf]' 'vllm==0.32.*'      # NVIDIA GPU", "installs vLLM")
    ],
    "docs/how-to/vllm-server.md": [
        ("python -m venv vllm-venv", "installs vLLM"),
        ("export GRPO_VLLM_TOKEN=$(openssl rand -hex 32)", "serves until it is stopped"),
    ],
    "docs/how-to/reward-plugin.md": [("pip install build twine", "uploads to the package index")],
}
"""Blocks that no test runs: page, first line and reason. Keep it short."""


def test_every_block_of_a_page_does_what_it_says(page: Any, reader: Any) -> None:
    if "grpo_sandbox" in page.text and (why := isolation.probe()) is not None:
        pytest.skip(f"this machine permits no isolation: {why}")
    reader.follow(page)


def test_what_is_not_run_is_on_the_list(pages: list[Any]) -> None:
    found: dict[str, list[tuple[str, str]]] = {}
    for page in pages:
        for block in page.blocks:
            if block.key == "not run":
                first = block.text.splitlines()[0]
                found.setdefault(page.name, []).append((first, block.value))
    assert found == NOT_RUN


def test_every_directive_is_known(page: Any) -> None:
    known = {None, "file", "not run", "dry run", "source"}
    assert {block.key for block in page.blocks} <= known
    # A directive that no fence follows directly would be ignored without a word.
    directives = re.findall(r"^<!-- (?:file|not run|dry run|source): .*$", page.text, re.MULTILINE)
    assert len(directives) == sum(block.key is not None for block in page.blocks)
    # An odd fence (indented, say) would not be seen at all.
    assert page.text.count("```") == 2 * len(list(page.blocks))


def test_quotations_are_the_code(page: Any, root: Path) -> None:
    """``<!-- source: FILE FUNCTION -->``: the function without its docstring."""
    for block in page.blocks:
        if block.key != "source":
            continue
        file, name = block.value.split()
        source = (root / file).read_text("utf-8")
        functions = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef) and node.name == name
        ]
        assert [_without_docstring(source, f) for f in functions] == [block.text], page.name


def _without_docstring(source: str, function: ast.FunctionDef) -> str:
    lines = source.splitlines(keepends=True)
    body = function.body[1:] if ast.get_docstring(function) else function.body
    head = lines[function.lineno - 1 : function.body[0].lineno - 1]
    return "".join(head + lines[body[0].lineno - 1 : function.end_lineno])
