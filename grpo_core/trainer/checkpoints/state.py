"""What the state of a run is, and how it comes back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from grpo_core.attribution import attributed
from grpo_core.errors import CheckpointError

if TYPE_CHECKING:
    from grpo_core.trainer.dynamic_sampling import ScoredGroup
    from grpo_core.trainer.run import Run
    from grpo_core.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStart:
    """What sampling and scoring change, as it was before a step. Weights are not among it."""

    optimizer_steps: int
    replay: tuple[ScoredGroup, ...]
    rng: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> StepStart:
        replay = () if run.replay is None else tuple(run.replay.groups)
        return cls(optimizer_steps=run.policy.optimizer_steps, replay=replay, rng=rng_state())


def common_state(run: Run) -> dict[str, Any]:
    """What is the same on all ranks."""
    reference = run.reference if run.uses_reference else None
    return {"policy": run.policy.state_dict(), "reference": _state_of(reference)}


def own_state(run: Run, start: StepStart, steps_done: int) -> dict[str, Any]:
    """What each rank has of its own."""
    components = {}
    for name, label, component in stateful(run):
        with attributed(label, "state_dict"):
            components[name] = component.state_dict()
    return {
        "replay": list(start.replay),
        "ahead": run.ahead.state(steps_done),
        "rng": dict(start.rng),
        "components": components,
    }


def load_common(run: Run, state: Mapping[str, Any]) -> None:
    """Put back ``common_state``; policy and reference have been started."""
    run.policy.load_state_dict(state["policy"])
    if run.uses_reference and state["reference"] is not None:
        with attributed(run.label("reference"), "load_state_dict"):
            getattr(run.reference, "load_state_dict")(state["reference"])  # noqa: B009


def load_own(run: Run, state: Mapping[str, Any]) -> None:
    """Put back ``own_state``."""
    if run.replay is not None:
        run.replay.groups.clear()
        run.replay.add(state["replay"])
    if run.settings.schedule == "ahead":
        run.ahead.load_state(state["ahead"])
    for name, label, component in stateful(run):
        if name in state["components"]:
            with attributed(label, "load_state_dict"):
                component.load_state_dict(state["components"][name])
    # Last: what was called above may have drawn.
    load_rng_state(state["rng"])


def stateful(run: Run) -> Iterator[tuple[str, str, Any]]:
    """(name in checkpoints, label for errors, component) of all that say they have state."""
    roles: list[tuple[str, str, object]] = [
        (role, role, run.component(role))
        for role in ("task", "generator", "environment", "advantage", "loss")
    ]
    roles += [
        (f"reward/{name}", "reward", component)
        for name, component in zip(run.scorer.names, run.scorer.components, strict=True)
    ]
    for role, many in (("observer", run.observers), ("saver", run.savers)):
        roles += [(f"{role}/{i}/{type(c).__qualname__}", role, c) for i, c in enumerate(many)]
    for name, role, component in roles:
        if callable(getattr(component, "state_dict", None)):
            yield name, run.label_of(role, component), component


def seed_rng(seed: int, rank: int) -> None:
    """Start the global generators: a run that is killed before its first checkpoint draws the same
    when it starts again."""
    random.seed(f"{seed} {rank}")
    np.random.seed(random.getrandbits(32))
    torch.manual_seed(random.getrandbits(63))


def has_own_state(run: Run) -> bool:
    """Whether anything that samples, scores or computes may have changed its state in a step."""
    return any(
        component.state_dict()
        for name, _, component in stateful(run)
        if not name.startswith(("observer/", "saver/"))
    )


def rng_state() -> dict[str, Any]:
    """Of the global generators; the core draws from none of them, but a plugin may."""
    kind, keys, position, has_gauss, gauss = cast("Any", np.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def load_rng_state(state: Mapping[str, Any]) -> None:
    """Put back ``rng_state``."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def find_prompts(run: Run, wanted: set[str]) -> dict[str, Prompt]:
    """The task's prompts of some ids.

    Raises:
        CheckpointError: the task has none of such an id any more.
    """
    found: dict[str, Prompt] = {}
    prompts = run.task.train_prompts() if wanted else ()
    for prompt in prompts:
        if prompt.id in wanted:
            found[prompt.id] = prompt
        if len(found) == len(wanted):
            break
    missing = sorted(wanted - set(found))
    if missing:
        raise CheckpointError(
            f"the checkpoint holds completions of prompt {missing[0]!r} (and of "
            f"{len(missing) - 1} others), which the task does not have; resume with the same data"
        )
    return found


def _state_of(component: object) -> Any:
    save = getattr(component, "state_dict", None)
    return None if save is None else save()
