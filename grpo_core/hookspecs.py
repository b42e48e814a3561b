"""Every hook of the framework, in the order of a run.

Two kinds, hosted apart. *Registration* hooks live in the module that a distribution's
``grpo_core`` entry point names; they make variants available and change nothing. *Lifecycle*
hooks are methods of observers and savers that the config names; they watch, each call carrying
one frozen event, and return nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register
    from grpo_core.types import (
        CheckpointSaved,
        Evaluated,
        RolloutsScored,
        RunEnd,
        RunStart,
        StepEnd,
        WeightsSynced,
    )

PROJECT = "grpo_core"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks an implementation: ``from grpo_core import hookimpl``."""


class RegistrationHooks:
    """Called once per process, per plugin, when components are first asked for.

    ``register(name, "package.module:Target", config="package.config:Model", summary="...",
    api=1)``: both strings are imported only when the component is shown, checked or built.
    """

    @hookspec
    def grpo_register_tasks(self, register: Register) -> None:
        """Offer tasks: where prompts come from (``grpo_core.protocols.Task``)."""

    @hookspec
    def grpo_register_generators(self, register: Register) -> None:
        """Offer generators: what samples completions (``Generator``)."""

    @hookspec
    def grpo_register_environments(self, register: Register) -> None:
        """Offer environments: what turns completions into rollouts (``Environment``)."""

    @hookspec
    def grpo_register_rewards(self, register: Register) -> None:
        """Offer rewards: what scores rollouts (``RewardProvider`` or a plain function)."""

    @hookspec
    def grpo_register_advantages(self, register: Register) -> None:
        """Offer advantages: how rewards become advantages (``Advantage``)."""

    @hookspec
    def grpo_register_losses(self, register: Register) -> None:
        """Offer losses: per-token objectives (``Loss``)."""

    @hookspec
    def grpo_register_references(self, register: Register) -> None:
        """Offer references: where reference log-probs come from (``Reference``)."""

    @hookspec
    def grpo_register_savers(self, register: Register) -> None:
        """Offer savers: what leaves the run (``Saver``)."""

    @hookspec
    def grpo_register_observers(self, register: Register) -> None:
        """Offer observers: objects with the lifecycle hooks below."""

    @hookspec
    def grpo_register_commands(self, register: Register) -> None:
        """Offer commands: ``register("serve", "package.module:command", summary="...")`` with a
        click command makes ``grpo serve``. A command that ``grpo`` has itself is not replaced."""


class LifecycleHooks:
    """Called on the main rank only, so that files and screens are written once.

    An exception in one of these stops the run, named after the component that raised it; the
    policy is saved first.
    """

    @hookspec
    def grpo_run_start(self, event: RunStart) -> None:
        """Models are loaded and the run folder exists; nothing has been sampled yet."""

    @hookspec
    def grpo_evaluated(self, event: Evaluated) -> None:
        """Held-out prompts were scored: before the first step, every so often, at the end."""

    @hookspec
    def grpo_weights_synced(self, event: WeightsSynced) -> None:
        """The generator has confirmed the policy version that it holds."""

    @hookspec
    def grpo_rollouts_scored(self, event: RolloutsScored) -> None:
        """Rollouts have outcomes and advantages; the update has not begun."""

    @hookspec
    def grpo_step_end(self, event: StepEnd) -> None:
        """All optimizer steps of a rollout batch are done; metrics are complete."""

    @hookspec
    def grpo_checkpoint_saved(self, event: CheckpointSaved) -> None:
        """A saver has written something completely."""

    @hookspec
    def grpo_run_end(self, event: RunEnd) -> None:
        """Always the last call, also after an interrupt or an error."""
