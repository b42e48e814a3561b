"""A config that has been checked: every name found, every option valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpo_core.config.components import ResolvedComponent
from grpo_core.config.schema import LIST_BLOCKS, SINGLE_BLOCKS, RunConfig
from grpo_core.plugins import Role
from grpo_core.yaml12 import dump


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedConfig:
    """What ``load_config`` returns; building the run from it can only fail on the world outside.

    Example: ``load_config(["run.yaml"], ["loss=gspo"]).component("loss").name == "gspo"``.
    """

    config: RunConfig
    """With every default filled in, those of the components too."""
    components: tuple[ResolvedComponent, ...]
    """One per single role, then rewards, savers and observers in the config's order."""

    def component(self, role: Role) -> ResolvedComponent:
        """The component of a role of which a run has one; ``LookupError`` for other roles."""
        if role not in SINGLE_BLOCKS.values():
            raise LookupError(f"a run has any number of components of role {role!r}; use all()")
        return self.all(role)[0]

    def all(self, role: Role) -> tuple[ResolvedComponent, ...]:
        """The components of a role, in the config's order."""
        return tuple(c for c in self.components if c.role == role)

    @property
    def rewards(self) -> tuple[ResolvedComponent, ...]:
        """Empty when the task's own rewards are to be used."""
        return self.all("reward")

    def plain(self) -> dict[str, Any]:
        """Everything as plain data; loading it again gives the same."""
        return self.config.model_dump(mode="json", by_alias=True)

    def yaml(self, *, ascii_only: bool = False) -> str:
        """``plain()`` as YAML, for ``config.yaml`` in the run's folder."""
        return dump(self.plain(), ascii_only=ascii_only)

    def manifest(self) -> list[dict[str, Any]]:
        """Who provides what: role, name, distribution, version, target, config."""
        return [component.manifest() for component in self.components]

    def derived(self) -> dict[str, int]:
        """Counts that follow from the config, under the names of the run's start event."""
        train, sampling = self.config.train, self.config.sampling
        rollouts = train.prompts_per_step * train.group_size
        updates = train.minibatches_per_step * train.passes_per_step
        return {
            "rollouts_per_step": rollouts,
            "rollouts_per_optimizer_step": rollouts // train.minibatches_per_step,
            "optimizer_steps_per_step": updates,
            "optimizer_steps": train.steps * updates,
            "prompts": train.steps * train.prompts_per_step,
            "rollouts": train.steps * rollouts,
            "most_completion_tokens_per_step": rollouts * sampling.max_tokens,
        }


def resolved(sections: dict[str, Any], components: list[ResolvedComponent]) -> ResolvedConfig:
    """Put valid parts together."""
    blocks: dict[str, Any] = {}
    for key, role in SINGLE_BLOCKS.items():
        blocks[key] = next(c.block() for c in components if c.role == role)
    for key, role in LIST_BLOCKS.items():
        blocks[key] = tuple(c.block() for c in components if c.role == role)
    config = RunConfig(**sections, **blocks)
    return ResolvedConfig(config=config, components=tuple(components))
