"""Load balancing of experts: its gradient, whatever the layout, the split and the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from grpo_core import ModelSettings, Policy
from grpo_core.batching import RolloutBatch, plan_weights
from grpo_core.errors import ConfigError
from grpo_core.policy.routing import experts_per_token
from grpo_core.types import Need, Rollout
from grpo_losses import Dapo, DapoConfig

NEEDS: frozenset[Need] = frozenset({"router_balance"})
MIXTURES = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "head_dim": 16,
    },
}


@pytest.fixture(scope="module", params=sorted(MIXTURES))
def folder(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_mixture: Callable[..., Path],
) -> Path:
    name = request.param
    return make_mixture(tmp_path_factory.mktemp(name), name, **MIXTURES[name])


@pytest.fixture
def rollouts(make_rollout: Callable[..., Rollout]) -> list[Rollout]:
    """Two groups; one completion has tokens of an environment, one is empty."""
    return [
        make_rollout((5, 6, 7, 8), (10, 11, 12, 13)),
        make_rollout((5, 6, 7, 8), (10, 11, 20), sample=1, inserted=(1,)),
        make_rollout((5, 6, 7, 8), (), sample=2),
        make_rollout((9,), (30, 31, 32, 33, 34), group=1),
        make_rollout((9,), (40,), group=1, sample=1),
    ]


def policy_of(folder: Path, layout: str, budget: int, needs: frozenset[Need] = NEEDS) -> Policy:
    """In float64, with the experts one by one: grouped products have no float64."""
    policy = Policy(
        ModelSettings(
            path=str(folder),
            dtype="float64",
            layout=layout,  # type: ignore[arg-type]
            init_kwargs={"experts_implementation": "eager"},
        )
    )
    policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=budget, needs=needs)
    return policy


def batch_of(rollouts: Sequence[Rollout]) -> RolloutBatch:
    plan = [tuple(range(len(rollouts)))]
    counts = [r.action_count for r in rollouts]
    return RolloutBatch(
        rollouts=rollouts,
        advantages=[torch.zeros(n, dtype=torch.float64) for n in counts],
        ref_logprobs=None,
        plan=plan,
        weights=plan_weights(
            plan, counts, "token-mean", max_tokens=8, ranks=1, sum_over_ranks=lambda x: x
        ),
    )


def trained(policy: Policy, rollouts: Sequence[Rollout]) -> tuple[float, dict[str, Tensor], int]:
    """The term and its gradient over one optimizer step of advantage 0, and the microbatches."""
    loss = Dapo(DapoConfig(router_aux_coef=1.0))
    policy.model.zero_grad()
    total, parts = 0.0, 0
    for minibatch in batch_of(rollouts).minibatches():
        for micro in policy.microbatches(minibatch):
            part = micro.weighted(loss(policy.token_logprobs(micro)))
            policy.backward(part)
            total, parts = total + part.item(), parts + 1
    found = {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}
    return total, {n: g.clone() for n, g in found.items()}, parts


def independently(policy: Policy, rollouts: Sequence[Rollout]) -> tuple[float, dict[str, Tensor]]:
    """Row by row through the model itself, and its own definition in float64."""
    model: Any = policy.model
    model.zero_grad()
    probabilities, counts = [], []
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        logits = model(input_ids=ids, output_router_logits=True, use_cache=False).router_logits
        start = len(rollout.prompt_ids)
        for layer in logits:
            for position in rollout.action_positions:
                row = layer[start + position - 1].softmax(-1)
                probabilities.append(row)
                best = row.detach().argsort(descending=True)[: model.config.num_experts_per_tok]
                counts.append(torch.zeros_like(row).index_fill(0, best, 1.0).detach())
    share, mean = torch.stack(counts).mean(0), torch.stack(probabilities).mean(0)
    loss = len(mean) * (share * mean).sum()
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("layout", ["prefix-tree", "packed", "padded"])
@pytest.mark.parametrize("budget", [7, 1000])
def test_value_and_gradient_are_those_of_the_definition(
    folder: Path, rollouts: list[Rollout], layout: str, budget: int
) -> None:
    policy = policy_of(folder, layout, budget, frozenset({*NEEDS, "old_logprobs"}))
    value, gradient = independently(policy, rollouts)
    found, found_gradient, parts = trained(policy, rollouts)
    assert (parts > 1) == (budget == 7)
    # Norms of transformers round to float32, also in float64 models.
    assert found == pytest.approx(value, rel=1e-6)
    assert any("gate" in name and g.abs().max() > 1e-4 for name, g in gradient.items())
    largest = max(float(g.abs().max()) for g in gradient.values())
    for name, wanted in gradient.items():
        torch.testing.assert_close(
            found_gradient[name], wanted, rtol=1e-5, atol=1e-6 * largest, msg=name
        )


def test_it_is_what_transformers_computes_for_the_same_tokens(
    folder: Path, rollouts: list[Rollout]
) -> None:
    policy = policy_of(folder, "prefix-tree", 1000, frozenset({*NEEDS, "old_logprobs"}))
    found, _, _ = trained(policy, rollouts)
    rows = [r for r in rollouts if r.action_count]
    width = max(len(r.prompt_ids) + len(r.token_ids) for r in rows)
    ids, counted = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
    for row, rollout in enumerate(rows):
        both = (*rollout.prompt_ids, *rollout.token_ids)
        ids[row, : len(both)] = torch.tensor(both)
        for position in rollout.action_positions:
            counted[row, len(rollout.prompt_ids) + position - 1] = 1
    model: Any = policy.model
    with torch.no_grad():
        logits = model(input_ids=ids, output_router_logits=True, use_cache=False).router_logits
    config = model.config
    wanted = load_balancing_loss_func(
        tuple(logits), logits[0].shape[-1], config.num_experts_per_tok, counted
    )
    assert found == pytest.approx(float(wanted), rel=1e-5)


def test_it_is_not_computed_unless_a_loss_needs_it(folder: Path, rollouts: list[Rollout]) -> None:
    policy = policy_of(folder, "auto", 1000, frozenset({"old_logprobs"}))
    [minibatch] = batch_of(rollouts).minibatches()
    [micro] = policy.microbatches(minibatch)
    assert policy.token_logprobs(micro).router_balance_N is None


def test_a_dense_model_is_refused(tiny_model: Path) -> None:
    policy = Policy(ModelSettings(path=str(tiny_model)))
    with pytest.raises(ConfigError, match=r"no mixture of experts; set loss\.router_aux_coef to 0"):
        policy.prepare(optimizer_steps=1, temperature=1.0, tokens_per_microbatch=100, needs=NEEDS)


def test_a_model_with_another_balance_is_refused() -> None:
    config = transformers.DeepseekV3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    with pytest.raises(ConfigError, match="no load-balancing loss in transformers"):
        experts_per_token(transformers.DeepseekV3ForCausalLM(config))
