"""What is installed is found; what is broken is listed and hurts nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_core.errors import ConfigError
from grpo_core.plugins import Discovery, Registry, discover


def broken(found: Discovery, plugin: str) -> str:
    return next(b.reason for b in found.broken if b.source.plugin == plugin)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
        (
            "@hookimpl\ndef grpo_register_losses(register):\n    1 / 0",
            "ZeroDivisionError: division by zero",
        ),
        (
            "@hookimpl\ndef grpo_register_loses(register):\n    pass",
            "PluginError: there is no hook grpo_register_loses; did you mean grpo_register_losses?",
        ),
        (
            "@hookimpl\ndef grpo_zzz(register):\n    pass",
            "PluginError: there is no hook grpo_zzz; hooks: grpo_register_advantages,",
        ),
        (
            "@hookimpl\ndef grpo_step_end(event):\n    pass",
            "PluginError: grpo_step_end is a lifecycle hook and does not belong here",
        ),
        (
            "@hookimpl\ndef grpo_register_losses(registry):\n    pass",
            "PluginValidationError: ",
        ),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason(
    distribution, offers, source: str, reason: str
) -> None:
    distribution("grpo-bad", source, version="0.3")
    distribution("grpo-good", offers("loss", "good"))
    found = discover()
    assert broken(found, "grpo-bad").startswith(reason)
    assert "good" in Registry(found).names("loss")
    assert str(next(b for b in found.broken if b.source.plugin == "grpo-bad").source) == (
        "grpo-bad 0.3"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("'x', 'json:loads', api=2", "loss 'x' asks for plugin API 2, but this grpo-core speaks"),
        ("'x y', 'json:loads'", "'x y' is no component name"),
        ("'a:b', 'json:loads'", "'a:b' is no component name"),
        ("'', 'json:loads'", "'' is no component name"),
        ("'x', 'json.loads'", "loss 'x' has target 'json.loads'; expected 'package.module:Name'"),
        ("'x'", "TypeError"),
    ],
)
def test_a_malformed_registration_breaks_its_plugin(
    distribution, arguments: str, reason: str
) -> None:
    distribution(
        "grpo-bad", f"@hookimpl\ndef grpo_register_losses(register):\n    register({arguments})\n"
    )
    assert reason in broken(discover(), "grpo-bad")


def test_a_plugin_that_fails_half_way_offers_nothing(distribution, offers) -> None:
    distribution(
        "grpo-half",
        offers("reward", "first") + "@hookimpl\ndef grpo_register_tasks(register):\n    1 / 0\n",
    )
    found = discover()
    assert broken(found, "grpo-half")
    assert "first" not in Registry(found).names("reward")


def test_a_registration_knows_who_made_it(distribution, offers) -> None:
    distribution("grpo-mine", offers("loss", "mine"), version="2.1", entry="short")
    source = Registry(discover()).get("loss", "mine").source
    assert (source.plugin, source.distribution, source.version) == ("short", "grpo-mine", "2.1")


@pytest.mark.parametrize("name", ["short", "grpo-mine", "*"])
def test_disabling_by_option_and_by_variable(
    distribution, offers, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # It would fail if it were imported: disabled means not even looked at.
    distribution("grpo-mine", "raise RuntimeError('imported')", entry="short")
    by_option = discover(disable=[name])
    monkeypatch.setenv("GRPO_DISABLE_PLUGINS", f"other, {name}")
    by_variable = discover()
    for found in (by_option, by_variable):
        assert "short" in [s.plugin for s in found.disabled]
        assert not [b for b in found.broken if b.source.plugin == "short"]
        # The core's own components are the product, and stay.
        assert "arithmetic" in Registry(found).names("task")


@pytest.mark.parametrize(
    ("value", "loaded"), [("grpo-mine", True), ("grpo-other", False), ("", False)]
)
def test_loading_only_some(
    distribution, offers, monkeypatch: pytest.MonkeyPatch, value: str, loaded: bool
) -> None:
    distribution("grpo-mine", offers("loss", "mine"))
    monkeypatch.setenv("GRPO_LOAD_PLUGINS", value)
    registry = Registry.installed()
    assert ("mine" in registry.names("loss")) == loaded
    assert registry.names("loss") == (["mine"] if loaded else [])
    assert "arithmetic" in registry.names("task")


FILE = """
from grpo_core import hookimpl

def constant(prompts, completions, completion_ids, **columns):
    return [1.0 for _ in completions]

@hookimpl
def grpo_register_rewards(register):
    register("constant", constant, summary="Always 1.")
"""


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    path = str(tmp_path / "mine.py")
    registration = Registry.installed(files=[path]).get("reward", "constant")
    assert registration.target([], ["a", "b"], []) == [1.0, 1.0]  # type: ignore[operator]
    assert str(registration.source) == path
    assert registration.target_path.endswith("mine:constant")


def test_a_module_by_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_hooks.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Registry.installed(files=["my_hooks"]).get("reward", "constant")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(1)", "SystemExit: 1"),
        (
            "from grpo_core import hookimpl\n@hookimpl\ndef grpo_register_reward(register): pass",
            "did you mean grpo_register_rewards?",
        ),
    ],
)
def test_a_file_that_was_asked_for_must_work(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        discover(files=[str(path)])
    assert f"--plugin {path}: " in str(caught.value)
    assert message in str(caught.value)


def test_order_of_installation_changes_nothing(distribution, offers) -> None:
    for name in ("grpo-z", "grpo-a", "grpo-m"):
        distribution(name, offers("loss", name))
    plugins = [s.plugin for s in discover().plugins]
    assert plugins == sorted(plugins)
