"""Combinations that cannot work although each part is fine, found without loading anything.

The trainer looks again at the objects themselves; here the answer comes in a second, with the
line that has to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo_core.config.problems import Problems
from grpo_core.config.tree import KeyPath, Node

if TYPE_CHECKING:
    from grpo_core.config.components import ResolvedComponent
    from grpo_core.plugins import Role
    from grpo_core.settings import (
        CheckpointSettings,
        EvaluationSettings,
        ModelSettings,
        OptimizerSettings,
        SamplingParams,
        TrainSettings,
    )

Finding = tuple[KeyPath, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The valid parts of a config whose other parts may have problems; those are ``None``."""

    model: ModelSettings | None
    train: TrainSettings | None
    sampling: SamplingParams | None
    optimizer: OptimizerSettings | None
    evaluation: EvaluationSettings | None
    checkpoints: CheckpointSettings | None
    components: tuple[ResolvedComponent, ...]

    def component(self, role: Role) -> ResolvedComponent | None:
        """The valid component of a role of which a run has one."""
        return next((c for c in self.components if c.role == role), None)


def check(draft: Draft, root: Node, problems: Problems) -> None:
    """Add every combination that cannot work to ``problems``."""
    for finder in (_group_size, _reference, _values, _adapter, _sampling, _warmup, _rewards):
        for path, text in finder(draft):
            problems.add(text, path, root.place_of(path))


def _declared(component: ResolvedComponent, attribute: str, otherwise: Any) -> Any:
    """What a component says of itself: by its options, or by a class that is imported already."""
    target = component.registration.target
    for source in (component.options, None if isinstance(target, str) else target):
        value = getattr(source, attribute, None)
        if isinstance(value, (int, tuple, frozenset)):  # and no property of an unbuilt class
            return value
    return otherwise


def _group_size(draft: Draft) -> Iterator[Finding]:
    advantage, train = draft.component("advantage"), draft.train
    if advantage is None or train is None:
        return
    least = _declared(advantage, "min_group_size", 1)
    if train.group_size < least:
        yield (
            ("train", "group_size"),
            f"is {train.group_size}, but advantage {advantage.name!r} compares the completions of "
            "one prompt with each other: every advantage would be 0 and nothing would be learned; "
            f"set train.group_size to {least} or more (8 is usual)",
        )


def _reference(draft: Draft) -> Iterator[Finding]:
    reference = draft.component("reference")
    if reference is None or reference.name != "none":
        return
    roles: tuple[Role, ...] = ("loss", "advantage")
    for role in roles:
        component = draft.component(role)
        if component is None:
            continue
        kl_coef = getattr(component.options, "kl_coef", 0.0)
        needs = _declared(component, "needs", ("ref_logprobs",) if kl_coef > 0 else ())
        if "ref_logprobs" in needs:
            why = f"has kl_coef {kl_coef}, which needs" if kl_coef else "needs"
            yield (
                (role, "kl_coef") if kl_coef else (role,),
                f"{role} {component.name!r} {why} reference log-probs, but reference is 'none'; "
                f"set reference.name to frozen (or adapter-off with LoRA), or {role}.kl_coef to 0",
            )


def _values(draft: Draft) -> Iterator[Finding]:
    loss, advantage = draft.component("loss"), draft.component("advantage")
    if loss is None or advantage is None:
        return
    needs, other = loss, advantage
    if "values" in _declared(advantage, "needs", ()):
        needs, other = advantage, loss
    if "values" in _declared(needs, "needs", ()) and "values" not in _declared(other, "needs", ()):
        yield (
            (needs.role,),
            f"{needs.role} {needs.name!r} needs a value head, which {other.role} {other.name!r} "
            "knows nothing of; use the two that belong together",
        )


def _adapter(draft: Draft) -> Iterator[Finding]:
    reference, model = draft.component("reference"), draft.model
    if reference is None or model is None or reference.name != "adapter-off":
        return
    if model.lora is None:
        yield (
            ("reference", "name"),
            "reference 'adapter-off' is the model without its LoRA adapter, but model.lora is not "
            "set, so that there is no adapter to switch off; set model.lora, or reference.name to "
            "frozen",
        )


def _sampling(draft: Draft) -> Iterator[Finding]:
    if draft.sampling is not None and draft.sampling.temperature == 0:
        yield (
            ("sampling", "temperature"),
            "is 0: all completions of a group would be the same and nothing would be learned; use "
            "a temperature above 0 (1.0 is usual), and evaluation to see the greedy answer",
        )


def _warmup(draft: Draft) -> Iterator[Finding]:
    if draft.optimizer is None or draft.train is None:
        return
    train = draft.train
    updates = train.steps * train.minibatches_per_step * train.passes_per_step
    if draft.optimizer.warmup_steps >= updates:
        yield (
            ("optimizer", "warmup_steps"),
            f"is {draft.optimizer.warmup_steps}, but the run has {updates} optimizer steps: the "
            "learning rate would never reach its peak; lower it, or raise train.steps",
        )


def _rewards(draft: Draft) -> Iterator[Finding]:
    rewards = [c for c in draft.components if c.role == "reward"]
    if rewards and not any(reward.weight for reward in rewards):
        yield (
            ("rewards",),
            "every weight is 0, so that all rewards would be 0 and nothing would be learned; give "
            "one of them a weight",
        )
    names = Counter(r.label or r.name.rpartition(":")[2] for r in rewards)
    for name, count in names.items():
        if count > 1:
            yield (
                ("rewards",),
                f"{count} rewards are called {name!r}, and their metrics would be one; give each "
                "its own label",
            )
