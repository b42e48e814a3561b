"""The reader of the pages notices what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def follow(reader: Any, pages: list[Any], root: Path) -> Any:
    """Follow a page with this text."""
    page = type(pages[0])
    return lambda text: reader.follow(page(path=root / "docs" / "made-up.md", text=text))


def test_what_is_printed_is_compared(follow: Any) -> None:
    follow("```python\nprint('a 1 b')\nprint('c')\n```\n\n```text\na ... b\nc\n```\n")
    with pytest.raises(AssertionError, match=r"made-up.md:5: 'b' is not in what was printed"):
        follow("```python\nprint('a')\n```\n\n```text\nb\n```\n")
    with pytest.raises(AssertionError, match="'a' is not in"):
        follow("```bash\necho b; echo a; echo c\n```\n\n```text\nc\na\n```\n")


def test_a_failing_command_is_noticed(follow: Any) -> None:
    with pytest.raises(AssertionError, match="ended with 1"):
        follow("```bash\nfalse\ntrue\n```\n")


def test_a_shell_and_a_namespace_last_as_long_as_the_page(follow: Any) -> None:
    follow(
        "```bash\nmkdir inner; cd inner; a='x y'\n```\n\n```bash\ntest \"$a\" = 'x y'\npwd\n```\n"
        "\n```text\n.../inner\n```\n"
    )
    follow("```python\nnumber = 1\n```\n\n```python\nassert number == 1\n```\n")


def test_files_are_written_and_can_be_imported(follow: Any) -> None:
    file = "<!-- file: made_up_module.py -->\n```python\nanswer = 42\n```\n\n"
    follow(file + "```python\nimport made_up_module\nassert made_up_module.answer == 42\n```\n")


def test_fragments_of_configs_are_checked(follow: Any) -> None:
    follow("```yaml\nloss: {name: grpo, clip_high: 0.3}\n```\n")
    with pytest.raises(AssertionError, match="clip_hihg"):
        follow("```yaml\nloss: {name: grpo, clip_hihg: 0.3}\n```\n")


def test_a_block_that_nothing_checks_is_noticed(follow: Any) -> None:
    with pytest.raises(AssertionError, match="nothing checks a block of 'rust'"):
        follow("```rust\nfn main() {}\n```\n")
