"""From a config to a run: every component built once, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_core.config import ResolvedComponent, ResolvedConfig, load_config
from grpo_core.plugins import Recipe, Registry, Role, build
from grpo_core.policy import Policy
from grpo_core.protocols import BuildContext, Task
from grpo_core.rewards import Reward
from grpo_core.trainer import Run


def load_run(
    *files: str | Path | Mapping[str, Any],
    sets: Sequence[str] = (),
    registry: Registry | None = None,
) -> Run:
    """A run from YAML files (or mappings, later ones win) and ``a.b=c`` overrides.

    Raises:
        ConfigError: with every problem found, before any model is loaded.
        DataError: the task's data are not usable.
    """
    return build_run(load_config(files, sets, registry or Registry.installed()))


def build_run(resolved: ResolvedConfig) -> Run:
    """Build the components of a checked config; cheap ones first, the policy last, so that a bad
    data set costs no model load."""
    config = resolved.config
    builder = _Builder(seed=config.train.seed, run_dir=Path(config.output))
    task = builder.one(resolved.component("task"))
    rewards = builder.rewards(resolved)
    single: dict[Role, Any] = {
        role: builder.one(resolved.component(role))
        for role in ("environment", "advantage", "loss", "reference", "generator")
    }
    savers = [builder.one(component) for component in resolved.all("saver")]
    observers = [builder.one(component) for component in resolved.all("observer")]
    return Run(
        policy=Policy(config.model, config.optimizer, seed=config.train.seed),
        task=task,
        rewards=rewards,
        **single,
        savers=savers,
        observers=observers,
        settings=config.train,
        sampling=config.sampling,
        evaluation=config.evaluation,
        checkpoints=config.checkpoints,
        output=config.output,
        config=resolved.plain(),
        manifest=resolved.manifest(),
        labels=builder.labels,
    )


def probe(resolved: ResolvedConfig) -> dict[str, str]:
    """What ``auto`` becomes for this model on this machine, and why; loads the model alone.

    Raises:
        ConfigError: the model cannot be loaded, or cannot be trained as the config says.
    """
    config = resolved.config
    policy = Policy(config.model, config.optimizer, seed=config.train.seed)
    policy.prepare(
        optimizer_steps=1,
        temperature=config.sampling.temperature or 1.0,
        tokens_per_microbatch=config.train.tokens_per_microbatch,
    )
    return policy.choices


def build_scoring(resolved: ResolvedConfig) -> tuple[Task, list[Reward]]:
    """The task and the rewards of a checked config alone; loads no model of the policy.

    Where the config names no rewards, they are the task's own.
    """
    config = resolved.config
    builder = _Builder(seed=config.train.seed, run_dir=Path(config.output))
    task: Task = builder.one(resolved.component("task"))
    own: Sequence[Any] = getattr(task, "rewards", tuple)()
    rewards = builder.rewards(resolved) or [
        r if isinstance(r, Reward) else Reward(provider=r) for r in own
    ]
    return task, rewards


class _Builder:
    """Builds components and remembers who made them, for errors."""

    def __init__(self, *, seed: int, run_dir: Path) -> None:
        self._seed = seed
        self._run_dir = run_dir
        self.labels: dict[int, str] = {}

    def one(self, component: ResolvedComponent) -> Any:
        made = build(component.registration, component.options, self._context(component))
        return self._known(made, component)

    def reward(self, component: ResolvedComponent) -> Any:
        """The provider, or how to make it where it is built in a process of its own."""
        if component.execution.isolation == "none":
            return self.one(component)
        made = Recipe(
            registration=component.registration,
            options=component.plain_options() if component.options is not None else None,
            context=self._context(component),
        )
        return self._known(made, component)

    def _context(self, component: ResolvedComponent) -> BuildContext:
        return BuildContext(
            role=component.role, name=component.name, seed=self._seed, run_dir=self._run_dir
        )

    def _known(self, made: Any, component: ResolvedComponent) -> Any:
        source = component.registration.source
        self.labels[id(made)] = f"{component.role} {component.name!r} ({source})"
        return made

    def rewards(self, resolved: ResolvedConfig) -> list[Reward]:
        """Those that the config names, in its order."""
        return [
            Reward(
                provider=self.reward(component),
                weight=component.weight,
                label=component.label or component.name.rpartition(":")[2],
                on_error=component.on_error,
                execution=component.execution,
                source=str(component.registration.source),
            )
            for component in resolved.rewards
        ]
