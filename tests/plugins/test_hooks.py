"""Every hook by name: documented, called, in order, and its failures attributed."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from grpo_core import hookimpl
from grpo_core.errors import ConfigError, PluginError
from grpo_core.hooks import LIFECYCLE_HOOKS, REGISTRATION_HOOKS, Lifecycle
from grpo_core.hookspecs import LifecycleHooks, RegistrationHooks
from grpo_core.plugins import ROLES, Registry, build, discover
from grpo_core.plugins.registrar import COMMANDS_HOOK, hook_of
from grpo_core.protocols import BuildContext
from grpo_core.types import (
    CheckpointSaved,
    Evaluated,
    RolloutsScored,
    RunEnd,
    RunStart,
    ScoredRollouts,
    StepEnd,
    WeightsSynced,
)

EVENTS = {
    "grpo_run_start": RunStart(run_dir=Path("r"), steps=1, first_step=0, config={}, derived={}),
    "grpo_evaluated": Evaluated(step=0, label="greedy", metrics={}, rollouts_B=()),
    "grpo_weights_synced": WeightsSynced(step=0, policy_version=0, seconds=0.0),
    "grpo_rollouts_scored": RolloutsScored(
        step=0,
        rollouts_B=(),
        scored=ScoredRollouts(providers_F=(), weights_F=(), outcomes_F_B=()),
        advantages_B=(),
    ),
    "grpo_step_end": StepEnd(step=0, steps=1, policy_version=1, metrics={}),
    "grpo_checkpoint_saved": CheckpointSaved(step=1, path=Path("r/final"), kind="final"),
    "grpo_run_end": RunEnd(run_dir=Path("r"), status="finished", steps_done=1),
}
"""One event for every lifecycle hook."""


def send(lifecycle: Lifecycle, hook: str) -> None:
    getattr(lifecycle, hook.removeprefix("grpo_"))(EVENTS[hook])


@pytest.mark.parametrize("hook", [*REGISTRATION_HOOKS, *LIFECYCLE_HOOKS])
def test_is_documented_and_takes_one_argument(hook: str) -> None:
    spec = RegistrationHooks if hook in REGISTRATION_HOOKS else LifecycleHooks
    function = vars(spec)[hook]
    assert len((inspect.getdoc(function) or "").split()) >= 5
    argument = "register" if spec is RegistrationHooks else "event"
    assert list(inspect.signature(function).parameters) == ["self", argument]


def test_there_is_one_registration_hook_per_role() -> None:
    assert [*map(hook_of, ROLES), COMMANDS_HOOK] == list(REGISTRATION_HOOKS)


def test_there_is_one_frozen_event_per_lifecycle_hook() -> None:
    assert set(EVENTS) == set(LIFECYCLE_HOOKS)
    for hook, event in EVENTS.items():
        annotation = inspect.signature(vars(LifecycleHooks)[hook]).parameters["event"].annotation
        assert annotation == type(event).__name__
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, dataclasses.fields(event)[0].name, None)


@pytest.mark.parametrize("hook", REGISTRATION_HOOKS)
def test_every_registration_hook_of_the_fake_plugin_is_called(fake_plugin, hook: str) -> None:
    found = discover()
    offers = [(hook_of(r.role), r) for r in found.registrations]
    offers += [(COMMANDS_HOOK, c) for c in found.commands]
    assert [o.name for h, o in offers if h == hook and o.source.distribution == "grpo-fake"]


@pytest.mark.parametrize("hook", LIFECYCLE_HOOKS)
def test_every_lifecycle_hook_reaches_the_fake_observer(fake_plugin, tmp_path, hook: str) -> None:
    registration = Registry.installed().get("observer", "fake-recorder")
    context = BuildContext(role="observer", name="fake-recorder", seed=0, run_dir=tmp_path)
    recorder = build(registration, None, context)
    send(Lifecycle([("observer 'fake-recorder'", recorder)]), hook)
    assert recorder.seen == [(hook, EVENTS[hook])]
    assert (tmp_path / "events.txt").read_text() == f"{hook}\n"


class Named:
    def __init__(self, name: str, into: list[str]) -> None:
        self.name, self.into = name, into

    @hookimpl
    def grpo_step_end(self, event: StepEnd) -> None:
        self.into.append(self.name)


def test_the_order_is_that_of_the_config() -> None:
    seen: list[str] = []
    parts = [(name, Named(name, seen)) for name in "abc"]
    send(Lifecycle(parts), "grpo_step_end")
    assert seen == ["a", "b", "c"]


def test_two_of_one_kind_are_two() -> None:
    seen: list[str] = []
    lifecycle = Lifecycle([("observer 'x'", Named("1", seen)), ("observer 'x'", Named("2", seen))])
    send(lifecycle, "grpo_step_end")
    assert seen == ["1", "2"]


class Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    @hookimpl
    def grpo_run_end(self) -> None:  # an implementation may leave the event out
        raise self.error


def test_a_failure_names_the_component_and_the_hook() -> None:
    lifecycle = Lifecycle([("observer 'shaky' (grpo-shaky 1.0)", Failing(KeyError("url")))])
    with pytest.raises(PluginError) as caught:
        send(lifecycle, "grpo_run_end")
    assert str(caught.value) == (
        "observer 'shaky' (grpo-shaky 1.0) failed in grpo_run_end: KeyError: 'url'"
    )
    assert isinstance(caught.value.__cause__, KeyError)


def test_errors_of_the_framework_pass_unchanged() -> None:
    with pytest.raises(ConfigError, match="as it was"):
        send(Lifecycle([("x", Failing(ConfigError("as it was")))]), "grpo_run_end")


def test_unknown_and_misplaced_hooks_of_an_observer() -> None:
    class Misspelt:
        @hookimpl
        def grpo_step_ends(self, event: StepEnd) -> None: ...

    class Misplaced:
        @hookimpl
        def grpo_register_losses(self, register: object) -> None: ...

    with pytest.raises(PluginError, match=r"no hook grpo_step_ends; did you mean grpo_step_end\?"):
        Lifecycle([("observer", Misspelt())])
    with pytest.raises(PluginError, match="grpo_register_losses is a registration hook and does"):
        Lifecycle([("observer", Misplaced())])
