"""References against transformers alone, what they cost, and what they refuse.

What every reference promises is in ``test_suite.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from grpo_core.errors import ConfigError
from grpo_core.policy import Policy
from grpo_core.types import Rollout
from grpo_references import (
    AdapterOffReference,
    EmaConfig,
    EmaReference,
    FrozenReference,
    PeriodicConfig,
    PeriodicReference,
)
from grpo_references.weights import Weights

MakePolicy = Callable[..., Policy]
CASES = [(FrozenReference, False), (FrozenReference, True), (AdapterOffReference, True)]


def move(policy: Policy, seed: int = 1) -> None:
    """As training would: in place, only what is trainable."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    policy.version += 1


def close(found: list[Tensor] | None, expected: list[Tensor]) -> bool:
    assert found is not None
    assert [t.shape for t in found] == [t.shape for t in expected]
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("make", "lora"), CASES)
def test_it_stays_where_the_run_started(
    make: type[FrozenReference | AdapterOffReference],
    lora: bool,
    checkpointing: bool,
    make_policy: MakePolicy,
    rollouts: list[Rollout],
    expected: list[Tensor],
) -> None:
    policy = make_policy(lora=lora, gradient_checkpointing=checkpointing)
    reference = make()
    reference.start(policy)
    assert close(reference.logprobs(rollouts), expected)
    move(policy)
    reference.step_end(0)
    assert close(reference.logprobs(rollouts), expected)
    assert not close(policy.logprobs(rollouts), expected)


def test_of_a_continued_adapter_frozen_is_the_adapter_and_adapter_off_the_base(
    make_policy: MakePolicy, rollouts: list[Rollout], expected: list[Tensor]
) -> None:
    policy = make_policy(lora=True)
    move(policy)
    as_it_was = policy.logprobs(rollouts)
    frozen, off = FrozenReference(), AdapterOffReference()
    frozen.start(policy)
    off.start(policy)
    # Adapter-off would be wrong to say that it is the policy; frozen is right.
    assert (frozen.equals_policy_version, off.equals_policy_version) == (1, None)
    move(policy, seed=2)
    assert close(frozen.logprobs(rollouts), as_it_was)
    assert close(off.logprobs(rollouts), expected)
    assert not close(off.logprobs(rollouts), as_it_was)


def test_of_a_lora_policy_only_the_adapter_is_kept(make_policy: MakePolicy) -> None:
    policy = make_policy(lora=True)
    kept = Weights(policy.model).state_dict()
    assert kept
    assert all(".lora_" in name for name in kept)
    live = {p.data_ptr() for p in policy.model.parameters()}
    assert not live & {tensor.data_ptr() for tensor in kept.values()}


def test_an_interrupt_while_weights_change_places_leaves_no_mixture(
    make_policy: MakePolicy, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    reference = FrozenReference()
    reference.start(policy)
    move(policy)
    before = policy.logprobs(rollouts)
    exchange = Weights._exchange
    calls: list[str] = []

    def interrupted(self: Weights, name: str) -> None:
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        exchange(self, name)

    monkeypatch.setattr(Weights, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reference.logprobs(rollouts)
    monkeypatch.undo()
    assert len(calls) == 9
    assert all(map(torch.equal, before, policy.logprobs(rollouts)))


@pytest.mark.parametrize("make", [PeriodicReference, EmaReference])
def test_the_defaults_are_those_of_tr_dpo_in_trl(make: type[FrozenReference]) -> None:
    config = make()._config  # type: ignore[attr-defined]
    assert config.every == 512
    assert getattr(config, "alpha", 0.6) == 0.6


def test_it_moves_after_every_so_many_steps_and_not_at_the_first(make_policy: MakePolicy) -> None:
    policy = make_policy()
    reference = PeriodicReference(PeriodicConfig(every=3))
    reference.start(policy)
    versions = []
    for step in range(7):
        move(policy)
        reference.step_end(step)
        versions.append(reference.equals_policy_version)
    assert versions == [0, 0, 3, 3, 3, 6, 6]


def test_a_mixed_adapter_differs_from_the_mixed_product_by_the_stated_term(
    make_policy: MakePolicy,
) -> None:
    policy = make_policy(lora=True)
    move(policy)
    weights = Weights(policy.model)
    start = {n: t.double() for n, t in weights.state_dict().items()}
    move(policy, seed=2)
    now = {n: p.detach().double() for n, p in policy.model.named_parameters() if n in start}
    weights.mix(0.3)
    mixed = {n: t.double() for n, t in weights.state_dict().items()}
    a = next(name for name in start if ".lora_A." in name)
    b = a.replace(".lora_A.", ".lora_B.")
    product = 0.7 * start[b] @ start[a] + 0.3 * now[b] @ now[a]
    stated = 0.3 * 0.7 * (now[b] - start[b]) @ (now[a] - start[a])
    torch.testing.assert_close(product - mixed[b] @ mixed[a], stated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 1.0}, "less than 1"),
        ({"alpha": 0.0}, "greater than 0"),
        ({"alpha": -0.1}, "greater than 0"),
        ({"every": 0}, "greater than or equal to 1"),
    ],
)
def test_options_out_of_range(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EmaConfig(**options)  # type: ignore[arg-type]


def test_adapter_off_without_an_adapter_says_what_to_do(make_policy: MakePolicy) -> None:
    with pytest.raises(ConfigError, match=r"set model\.lora, or set reference\.name to 'frozen'"):
        AdapterOffReference().start(make_policy())


@pytest.mark.parametrize("make", [FrozenReference, AdapterOffReference, EmaReference])
def test_asking_before_the_start(make: type[FrozenReference | AdapterOffReference]) -> None:
    with pytest.raises(RuntimeError, match="before start"):
        make().logprobs([])


def test_state_of_another_model_is_refused(make_policy: MakePolicy) -> None:
    full, adapter = FrozenReference(), FrozenReference()
    full.start(make_policy())
    adapter.start(make_policy(lora=True))
    with pytest.raises(ConfigError, match=r"does not fit the policy.*model\.lora"):
        adapter.load_state_dict(full.state_dict())


def test_parameters_that_are_elsewhere_are_refused() -> None:
    model = nn.ModuleDict({"there": nn.Linear(2, 2), "elsewhere": nn.Linear(0, 0)})
    with pytest.raises(ConfigError, match=r"'elsewhere\.weight' .*ZeRO-3"):
        Weights(model)
