"""The only file, besides the specifications, that knows pluggy; everyone else calls methods."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import pluggy

from grpo_core.errors import GRPOError, PluginError
from grpo_core.hookspecs import PROJECT, LifecycleHooks, RegistrationHooks
from grpo_core.types import (
    CheckpointSaved,
    Evaluated,
    RolloutsScored,
    RunEnd,
    RunStart,
    StepEnd,
    WeightsSynced,
)


def hook_names(specification: type) -> tuple[str, ...]:
    """The hooks of a specification class, in the order of a run."""
    return tuple(name for name in vars(specification) if name.startswith("grpo_"))


REGISTRATION_HOOKS = hook_names(RegistrationHooks)
LIFECYCLE_HOOKS = hook_names(LifecycleHooks)


def call_registration(plugin: object, registers: dict[str, Any]) -> None:
    """Call every registration hook of one plugin alone.

    One manager per plugin: a registrar must know who is calling it, and one plugin's bad
    signature must not keep the others from being heard.

    Args:
        plugin: a module or object with ``@hookimpl`` functions.
        registers: hook name to the registrar to hand over.

    Raises:
        PluginError: a marked function is no hook; names the nearest one.
        pluggy.PluginValidationError: a hook takes an argument that does not exist.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RegistrationHooks)
    manager.register(plugin)
    _reject_unknown_hooks(manager, LIFECYCLE_HOOKS)
    for name in REGISTRATION_HOOKS:
        getattr(manager.hook, name)(register=registers[name])


def _reject_unknown_hooks(manager: pluggy.PluginManager, elsewhere: tuple[str, ...]) -> None:
    known = {*REGISTRATION_HOOKS, *LIFECYCLE_HOOKS} - set(elsewhere)
    for plugin in manager.get_plugins():
        for caller in manager.get_hookcallers(plugin) or []:
            if caller.name in known:
                continue
            if caller.name in elsewhere:
                kind = "a lifecycle" if elsewhere == LIFECYCLE_HOOKS else "a registration"
                raise PluginError(
                    f"{caller.name} is {kind} hook and does not belong here: lifecycle hooks are "
                    "methods of observers and savers that a config names, registration hooks "
                    "functions of the entry-point module"
                )
            near = difflib.get_close_matches(caller.name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; hooks: {', '.join(sorted(known))}"
            raise PluginError(f"there is no hook {caller.name}{hint}")


class Lifecycle:
    """Delivers lifecycle events to the observers and savers of one run, in the config's order."""

    def __init__(self, components: Iterable[tuple[str, object]] = ()) -> None:
        """``components`` are (label for errors, object) pairs: ``("observer 'jsonl'", obj)``."""
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(LifecycleHooks)
        # pluggy calls the last registered first; the config's order is the one people expect.
        for position, (label, component) in reversed(list(enumerate(components))):
            self._manager.register(component, name=f"{position}: {label}")
        _reject_unknown_hooks(self._manager, REGISTRATION_HOOKS)

    def run_start(self, event: RunStart) -> None:
        self._call("grpo_run_start", event)

    def evaluated(self, event: Evaluated) -> None:
        self._call("grpo_evaluated", event)

    def weights_synced(self, event: WeightsSynced) -> None:
        self._call("grpo_weights_synced", event)

    def rollouts_scored(self, event: RolloutsScored) -> None:
        self._call("grpo_rollouts_scored", event)

    def step_end(self, event: StepEnd) -> None:
        self._call("grpo_step_end", event)

    def checkpoint_saved(self, event: CheckpointSaved) -> None:
        self._call("grpo_checkpoint_saved", event)

    def run_end(self, event: RunEnd) -> None:
        """Tells everyone, whoever fails: a terminal must be given back, a file closed."""
        failures: list[GRPOError] = []
        for impl in self._implementations("grpo_run_end"):
            try:
                self._call_one(impl, "grpo_run_end", event)
            except GRPOError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _call(self, hook: str, event: object) -> None:
        for impl in self._implementations(hook):
            self._call_one(impl, hook, event)

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        return list(reversed(getattr(self._manager.hook, hook).get_hookimpls()))

    @staticmethod
    def _call_one(impl: pluggy.HookImpl, hook: str, event: object) -> None:
        # One implementation at a time: pluggy's own call loop stops at the first exception
        # without saying whose it was.
        try:
            impl.function(*([event] if "event" in impl.argnames else []))
        except GRPOError:
            raise
        except Exception as error:
            label = impl.plugin_name.partition(": ")[2]
            raise PluginError(
                f"{label} failed in {hook}: {type(error).__name__}: {error}"
            ) from error
