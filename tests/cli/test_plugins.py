"""``grpo plugins``: what is there, what is wrong with the rest."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from grpo_core.plugins import ROLES, Registry


@pytest.fixture
def odd_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One broken distribution, and two that offer the same loss."""
    site = tmp_path / "site"
    same = (
        "from grpo_core import hookimpl\n@hookimpl\ndef grpo_register_losses(register):\n"
        "    register('same', 'json:loads', summary='[red]Not\\x1b[2J markup[/red]')\n"
    )
    sources = {"odd-left": same, "odd-right": same, "odd-broken": "import no_such_package"}
    for name, source in sources.items():
        module = name.replace("-", "_")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[grpo_core]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()


def test_list_has_every_role_and_component(grpo) -> None:
    lines = grpo("plugins", "list").output.splitlines()
    registry = Registry.installed()
    for role in ROLES:
        assert role in lines
        for registration in registry.offers(role):
            assert any(
                line.startswith(f"  {registration.name} ")
                and line.endswith(str(registration.source))
                for line in lines
            )


def test_list_as_json(grpo) -> None:
    data = json.loads(grpo("plugins", "list", "--json").output)
    dapo = next(c for c in data["components"] if (c["role"], c["name"]) == ("loss", "dapo"))
    assert dapo["distribution"] == "grpo-losses"
    assert dapo["target"] == "grpo_losses.losses:Dapo"
    assert data["broken"] == []


def test_list_shows_collisions_broken_and_disabled(grpo, odd_plugins) -> None:
    text = grpo("plugins", "list", "--disable-plugin", "grpo-rewards").output
    assert "! 'same' is offered by odd-left 1.0 and odd-right 1.0: a config cannot name it" in text
    broken = next(line for line in text.splitlines() if line.startswith("  odd-broken"))
    assert broken.endswith("ModuleNotFoundError: No module named 'no_such_package'")
    assert "disabled\n  grpo-rewards" in text
    # Text of plugins is text.
    assert "[red]Not\\x1b[2J markup[/red]" in text

    data = json.loads(grpo("plugins", "list", "--json").output)
    assert [b["plugin"] for b in data["broken"]] == ["odd-broken"]
    assert [c["collides"] for c in data["components"] if c["name"] == "same"] == [True, True]


def test_strict(shell, grpo, odd_plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_STRICT_PLUGINS", "1")
    done = grpo("plugins", "list")
    assert done.exit_code == 3
    assert "broken plugins: odd-broken (odd-broken 1.0): ModuleNotFoundError" in done.stderr
    monkeypatch.setenv("GRPO_STRICT_PLUGINS", "0")
    assert grpo("plugins", "list").exit_code == 0


def test_show_needs_no_torch_and_tells_all(shell) -> None:
    done = shell("plugins", "show", "loss", "dapo")
    assert done.returncode == 0, done.stderr
    for part in (
        "loss dapo",
        "target  grpo_losses.losses:Dapo",
        "arXiv 2503.14476",
        "clip_high: float, default 0.28",
        "composition  clip x token ratio x token-mean",
        "clamp(r, 1 - clip_low, 1 + clip_high) A)",
        "https://arxiv.org/abs/2503.14476",
        "'constant'], default \"token-mean\"",
    ):
        assert part in done.stdout


@pytest.mark.parametrize("role", ROLES)
def test_every_component_can_be_shown(grpo, role: str) -> None:
    for registration in Registry.installed().offers(role):
        done = grpo("plugins", "show", role, registration.name, "--json")
        (data,) = json.loads(done.output)
        assert data["docstring"], f"{role} {registration.name}"
        assert data["options_problem"] is None
        for option in data["options"]:
            assert option["help"], f"{role} {registration.name} {option['name']}"


def test_a_name_in_several_roles_shows_all_of_them(grpo) -> None:
    found = json.loads(grpo("plugins", "show", "none", "--json").output)
    assert {c["role"] for c in found} == {"advantage", "reference"}


def test_show_of_names_that_collide(grpo, odd_plugins) -> None:
    found = json.loads(grpo("plugins", "show", "loss", "same", "--json").output)
    assert [c["distribution"] for c in found] == ["odd-left", "odd-right"]


def test_show_of_an_import_path(grpo) -> None:
    Path("mine_shown.py").write_text('def brevity(completions, **columns):\n    """Short."""\n')
    text = grpo("plugins", "show", "reward", "mine_shown.py:brevity").output
    assert "Short." in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss", "dapoo"], "there is no loss 'dapoo'; did you mean 'dapo'?"),
        (["dapoo"], "no role has a component 'dapoo'. Installed: adapter-off, arithmetic,"),
        (["lss", "dapo"], "'lss' is no role; roles: task, generator,"),
        ([], "expected NAME, or ROLE NAME"),
        (["a", "b", "c"], "expected NAME, or ROLE NAME"),
    ],
)
def test_show_of_what_is_not_there(grpo, words: list[str], message: str) -> None:
    done = grpo("plugins", "show", *words)
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr


def test_a_docstring_is_read_without_importing_its_package(tmp_path: Path, monkeypatch) -> None:
    from grpo_core.cli.source import docstring
    from grpo_core.plugins import Registration, Source

    package = tmp_path / "shy" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "shy" / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "parts.py").write_text(
        'raise RuntimeError\nclass Outer:\n    class Part:\n        """Found."""\n'
    )
    (package / "wrong.py").write_text("def f(:")
    monkeypatch.syspath_prepend(str(tmp_path))

    def found(target: str) -> str | None:
        source = Source(plugin="p", distribution=None, version=None)
        return docstring(
            Registration(
                role="loss", name="x", target=target, config=None, summary="", source=source
            )
        )

    assert found("shy.inner.parts:Outer.Part") == "Found."
    assert found("shy.inner.parts:Outer") is None
    for nowhere in (
        "shy.inner.parts:Gone",
        "shy.gone:X",
        "no_such:X",
        "shy.inner.wrong:f",
        "sys:x",
    ):
        assert found(nowhere) is None


def test_new_makes_a_package_and_says_what_to_do_next(grpo, tmp_path) -> None:
    done = grpo("plugins", "new", "Near Miss", "--kind", "reward", "--license", "MIT")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "grpo-rewards-near-miss"
    assert (folder / "src/grpo_rewards_near_miss/reward.py").is_file()
    assert "pip install --editable grpo-rewards-near-miss" in done.output
    again = grpo("plugins", "new", "near-miss", "--kind", "reward")
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_new_knows_every_role() -> None:
    from grpo_core.cli.plugins import KINDS
    from grpo_core.plugins.registrar import ROLES

    assert KINDS == ROLES
