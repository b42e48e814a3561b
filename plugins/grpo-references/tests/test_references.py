"""References against the starting checkpoint, before and after the policy has moved."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from grpo_core.errors import ConfigError
from grpo_core.policy import Policy
from grpo_core.protocols import Reference
from grpo_core.types import Rollout
from grpo_references.references import (
    AdapterOffReference,
    FixedReference,
    FrozenReference,
    NoReference,
)

MakePolicy = Callable[..., Policy]
CASES = [(FrozenReference, False), (FrozenReference, True), (AdapterOffReference, True)]


def move(policy: Policy) -> None:
    """As training would: in place, only what is trainable."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))


def close(found: list[Tensor] | None, expected: list[Tensor]) -> bool:
    assert found is not None
    assert [t.shape for t in found] == [t.shape for t in expected]
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("make", "lora"), CASES)
def test_it_stays_where_the_run_started(
    make: type[FixedReference],
    lora: bool,
    checkpointing: bool,
    make_policy: MakePolicy,
    rollouts: list[Rollout],
    expected: list[Tensor],
) -> None:
    policy = make_policy(lora=lora, gradient_checkpointing=checkpointing)
    reference: Reference = make()  # type: ignore[assignment]
    reference.start(policy)
    assert close(reference.logprobs(rollouts), expected)
    move(policy)
    reference.step_end(0)
    assert close(reference.logprobs(rollouts), expected)
    assert not close(policy.logprobs(rollouts), expected)


def test_the_adapter_is_on_again_afterwards(
    make_policy: MakePolicy, rollouts: list[Rollout]
) -> None:
    policy = make_policy(lora=True)
    move(policy)
    before = policy.logprobs(rollouts)
    reference = AdapterOffReference()
    reference.start(policy)
    reference.logprobs(rollouts)
    after = policy.logprobs(rollouts)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_frozen_copy_has_nothing_to_train_and_shares_nothing(make_policy: MakePolicy) -> None:
    policy = make_policy()
    reference = FrozenReference()
    reference.start(policy)
    mine = {p.data_ptr() for p in policy.model.parameters()}
    copied = list(reference._model.parameters())
    assert not any(p.requires_grad for p in copied)
    assert not mine & {p.data_ptr() for p in copied}
    assert not reference._model.training
    assert all(p.requires_grad for p in policy.model.parameters())


@pytest.mark.parametrize("make", [FrozenReference, AdapterOffReference])
def test_no_rollouts_is_an_empty_list_not_no_reference(
    make: type[FixedReference], make_policy: MakePolicy
) -> None:
    """The core asks this way whether there is a reference at all."""
    reference: Reference = make()  # type: ignore[assignment]
    reference.start(make_policy(lora=True))
    assert reference.logprobs([]) == []


def test_none_is_none(make_policy: MakePolicy, rollouts: list[Rollout]) -> None:
    reference = NoReference()
    reference.start(make_policy())
    reference.step_end(0)
    assert reference.logprobs(rollouts) is None


def test_adapter_off_without_an_adapter_says_what_to_do(make_policy: MakePolicy) -> None:
    with pytest.raises(ConfigError, match=r"set model\.lora, or set reference\.name to 'frozen'"):
        AdapterOffReference().start(make_policy())


def test_frozen_with_an_adapter_recommends_the_cheaper_one(
    make_policy: MakePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        FrozenReference().start(make_policy(lora=True))
    assert "'adapter-off' gives the same log-probs without a copy" in caplog.text


@pytest.mark.parametrize("make", [FrozenReference, AdapterOffReference])
def test_asking_before_the_start(make: type[FrozenReference | AdapterOffReference]) -> None:
    with pytest.raises(RuntimeError, match="before start"):
        make().logprobs([])
