"""What every reference promises, as tests to inherit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from grpo_core.demo import checkpoint
from grpo_core.policy import Policy
from grpo_core.protocols import Reference
from grpo_core.settings import LoraSettings, ModelSettings
from grpo_core.types import Prompt, Rollout, Span

TOLERANCE = 1e-4
"""Nats, between two float32 forward passes; the moves below change log-probs by 0.1 and more."""


class ReferenceSuite:
    """Inherit in a test module, and pytest runs every check below with a small real policy::

    class TestMine(ReferenceSuite):
        def make(self):
            return MyReference(MyConfig(every=2))

        def policy_share(self, step):
            return 1.0 if step % 2 else 0.0
    """

    lora: ClassVar[bool] = False
    """Whether the policy trains an adapter."""
    starts_as_policy: ClassVar[bool] = True
    """False for another model than the policy, whose values the suite cannot know."""
    exists: ClassVar[bool] = True
    """False for a reference that says that there is none."""
    steps: ClassVar[int] = 4
    """How long its schedule is followed."""

    def make(self) -> Reference:
        """A new reference, not started."""
        raise NotImplementedError

    def policy_share(self, step: int) -> float:
        """Its schedule: how much of the policy's trained weights it takes over at the end of
        ``step``, counted from 0. 0 stays, 1 becomes the policy."""
        return 0.0

    # -- the checks -----------------------------------------------------------------------------

    def test_one_tensor_per_rollout_without_gradient(self) -> None:
        reference, policy = self._started()
        found = reference.logprobs(ROLLOUTS)
        if not self.exists:
            assert found is None
            return
        assert found is not None
        assert [tuple(x.shape) for x in found] == [(r.action_count,) for r in ROLLOUTS]
        for logprobs in found:
            assert logprobs.is_floating_point()
            assert logprobs.device.type == policy.device.type
            assert not logprobs.requires_grad
            assert bool((logprobs <= 0).all())

    def test_no_rollouts_is_an_empty_list(self) -> None:
        """The core asks this way whether there is a reference at all."""
        reference, _ = self._started()
        assert reference.logprobs([]) == ([] if self.exists else None)

    def test_at_the_start_it_is_the_policy(self) -> None:
        reference, policy = self._started()
        if self.starts_as_policy and self.exists:
            assert distance(reference.logprobs(ROLLOUTS), policy.logprobs(ROLLOUTS)) < TOLERANCE

    def test_the_policy_is_left_as_it_was(self) -> None:
        policy = make_policy(lora=self.lora)
        reference = self.make()
        with untouched(policy):
            reference.start(policy)
        for step in range(self.steps):
            with untouched(policy):
                reference.logprobs(ROLLOUTS)
            move(policy, seed=step)
            with untouched(policy):
                reference.step_end(step)

    def test_the_policy_is_left_as_it_was_by_a_failure_too(self) -> None:
        reference, policy = self._started()
        move(policy, seed=0)
        beyond = rollout(0, sampled(1_000_000))
        with untouched(policy):
            try:
                failed = reference.logprobs([beyond]) is None
            except (IndexError, RuntimeError):
                failed = True
        assert failed, "log-probs of a token that does not exist"

    def test_it_moves_as_declared(self) -> None:
        """Against a policy that holds the expected mixture of weights."""
        reference, policy = self._started()
        if not (self.starts_as_policy and self.exists):
            return
        expected = make_policy(lora=self.lora)
        for step in range(self.steps):
            move(policy, seed=step)
            reference.step_end(step)
            mix(expected, policy, self.policy_share(step))
            found = reference.logprobs(ROLLOUTS)
            assert distance(found, expected.logprobs(ROLLOUTS)) < TOLERANCE, step

    def test_it_equals_the_policy_version_that_it_names(self) -> None:
        reference, policy = self._started()
        known = {policy.version: policy.logprobs(ROLLOUTS)}
        for step in range(self.steps):
            version = getattr(reference, "equals_policy_version", None)
            if version is not None:
                assert distance(reference.logprobs(ROLLOUTS), known[version]) < TOLERANCE, step
            move(policy, seed=step)
            known[policy.version] = policy.logprobs(ROLLOUTS)
            reference.step_end(step)

    def test_its_state_is_all_of_it(self) -> None:
        """A resumed run starts a new one with a policy that has moved."""
        reference, policy = self._started()
        save: Any = getattr(reference, "state_dict", None)
        for step in range(self.steps - 1):
            move(policy, seed=step)
            reference.step_end(step)
        resumed = self.make()
        resumed.start(policy)
        if save is not None:
            state = copy.deepcopy(save())
            load: Any = getattr(resumed, "load_state_dict")  # noqa: B009
            load(state)
        for step in range(self.steps - 1, self.steps + 1):
            a, b = reference.logprobs(ROLLOUTS), resumed.logprobs(ROLLOUTS)
            assert (a is b is None) or distance(a, b) == 0.0, step
            move(policy, seed=step)
            reference.step_end(step)
            resumed.step_end(step)

    def _started(self) -> tuple[Reference, Policy]:
        policy = make_policy(lora=self.lora)
        reference = self.make()
        reference.start(policy)
        return reference, policy


def make_policy(*, lora: bool) -> Policy:
    """The bundled checkpoint, ready to give log-probs."""
    settings = ModelSettings(
        path=str(checkpoint("habit")), lora=LoraSettings(r=4) if lora else None
    )
    # PEFT draws its first weights from the global generator.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Policy(settings)
    policy.prepare(optimizer_steps=1, temperature=0.7, tokens_per_microbatch=32)
    return policy


def sampled(*ids: int) -> Span:
    """A sampled span, with log-probs that no reference may rely on."""
    return Span(token_ids=ids, logprobs=(-1.0,) * len(ids), policy_version=0)


def rollout(sample: int, *spans: Span) -> Rollout:
    """One rollout of a made-up group."""
    return Rollout(
        prompt=Prompt(id="0", content="x"),
        prompt_ids=(5, 9, 31),
        group=0,
        sample=sample,
        spans=spans,
        text="",
        finish_reason="stop",
    )


ROLLOUTS: Sequence[Rollout] = (
    rollout(0, sampled(7, 60, 100, 2)),
    rollout(1),
    rollout(
        2, sampled(8), Span(token_ids=(40, 41), logprobs=None, policy_version=None), sampled(90, 2)
    ),
    rollout(3, sampled(*range(50, 62))),
)
"""Ragged: one without action tokens, one with text inserted in between."""


def trained(policy: Policy) -> dict[str, Tensor]:
    """The trained parameters by name."""
    return {n: p for n, p in policy.model.named_parameters() if p.requires_grad}


@torch.no_grad()
def move(policy: Policy, *, seed: int) -> None:
    """What an optimizer step does: change trained weights in place, and count."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained(policy).values():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    policy.version += 1


@torch.no_grad()
def mix(into: Policy, other: Policy, share: float) -> None:
    """Move the trained weights of one policy towards another's."""
    others = trained(other)
    for name, parameter in trained(into).items():
        parameter.copy_((1 - share) * parameter + share * others[name])


def distance(a: Sequence[Tensor] | None, b: Sequence[Tensor] | None) -> float:
    """The greatest difference between log-probs, in nats."""
    assert a is not None, "there are no log-probs"
    assert b is not None, "there are no log-probs"
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True) if len(x))


@contextmanager
def untouched(policy: Policy) -> Iterator[None]:
    """Fails unless weights, gradients' switches, modes, adapters and random numbers are, after
    the context, what they were before."""
    before = _everything(policy)
    yield
    after = _everything(policy)
    for name, value in before.items():
        found: Any = after.get(name)
        same = torch.equal(value, found) if isinstance(value, Tensor) else value == found
        assert same, f"the reference changed {name}"
    assert before.keys() == after.keys()


def _everything(policy: Policy) -> dict[str, Any]:
    model: Any = policy.model
    parameters = dict(model.named_parameters())
    return {
        **{f"the weight {n}": p.detach().clone() for n, p in parameters.items()},
        **{f"requires_grad of {n}": p.requires_grad for n, p in parameters.items()},
        **{f"the mode of {n}": m.training for n, m in model.named_modules()},
        "the active adapter": getattr(model, "active_adapter", None),
        "the random state": torch.get_rng_state(),
        "the policy's version": policy.version,
    }
