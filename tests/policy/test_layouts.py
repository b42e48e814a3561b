"""All layouts give the same log-probs, entropies and gradients (float64), over random trees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from grpo_core.errors import ConfigError
from grpo_core.policy.layouts import Layout, PackedLayout, PaddedLayout, PrefixTreeLayout, inplace
from grpo_core.policy.layouts.choose import choose_layout
from grpo_core.policy.layouts.trie import build_trie
from grpo_core.policy.module import PolicyModule
from grpo_core.types import Prompt, Rollout, Span

# A small alphabet, so that completions share prefixes by chance as well as by the prompt.
tokens = st.integers(1, 3)
completions = st.lists(tokens, max_size=6).map(tuple)
groups = st.lists(
    st.tuples(
        st.lists(tokens, min_size=1, max_size=5).map(tuple),
        st.lists(st.tuples(completions, st.integers(0, 7)), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


def rollouts_of(drawn: Any) -> list[Rollout]:
    """Completions with a token that an environment inserted, where there is one to insert."""
    found = []
    for group, (prompt, members) in enumerate(drawn):
        for sample, (ids, inserted) in enumerate(members):
            spans = tuple(
                Span(
                    token_ids=(token,),
                    logprobs=None if i == inserted else (-1.0,),
                    policy_version=None if i == inserted else 0,
                )
                for i, token in enumerate(ids)
            )
            found.append(
                Rollout(
                    prompt=Prompt(id=str(group), content="p"),
                    prompt_ids=prompt,
                    group=group,
                    sample=sample,
                    spans=spans,
                    text="",
                    finish_reason="stop",
                )
            )
    return found


@pytest.fixture(scope="module")
def module(tiny_model: Path, exact_norms: Callable[..., Any]) -> PolicyModule:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    module = PolicyModule(exact_norms(model), temperature=0.8)
    layout, _ = choose_layout("auto", module)
    assert isinstance(layout, PrefixTreeLayout)
    return module


def run(
    module: PolicyModule, layout: Layout, rollouts: list[Rollout], budget: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs and entropies in the order of the rollouts, and a gradient of both."""
    module.zero_grad()
    parts: dict[int, Any] = {}
    for inputs in layout.microbatches(rollouts, tokens_per_microbatch=budget):
        logprobs, entropy = module(inputs)
        counts = [rollouts[row].action_count for row in inputs.rows]
        for row, lp, h in zip(
            inputs.rows, logprobs.split(counts), entropy.split(counts), strict=True
        ):
            parts[row] = (lp, h)
    empty = torch.zeros(0, dtype=torch.float64)
    found = [parts.get(row, (empty, empty)) for row in range(len(rollouts))]
    logprobs, entropy = (torch.cat([pair[i] for pair in found]) for i in (0, 1))
    weights = torch.arange(1, len(logprobs) + 1, dtype=torch.float64).sin()
    (logprobs * weights + 0.1 * entropy * weights.cos()).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return logprobs.detach(), entropy.detach(), gradient


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    drawn=groups,
    budget=st.sampled_from([1, 7, 20, 1000]),
    shared=st.sampled_from([1, 2, 16]),
    long=st.sampled_from([2, 4, 64]),
)
def test_layouts_agree(
    module: PolicyModule, drawn: Any, budget: int, shared: int, long: int
) -> None:
    """``long``: from how many tokens on a segment is computed where it stands."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(inplace, "LONG", long)
    try:
        _agree(module, rollouts_of(drawn), budget, shared)
    finally:
        monkeypatch.undo()


def _agree(module: PolicyModule, rollouts: list[Rollout], budget: int, shared: int) -> None:
    if not any(r.action_count for r in rollouts):
        return
    expected = run(module, PaddedLayout(), rollouts, 1000)
    for layout in (PackedLayout(), PrefixTreeLayout(min_shared=shared)):
        for found, wanted in zip(run(module, layout, rollouts, budget), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@given(rows=st.lists(st.lists(tokens, min_size=1, max_size=8).map(lambda x: (0, *x)), min_size=1))
def test_a_trie_spells_every_sequence_and_holds_each_prefix_once(rows: Any) -> None:
    trie = build_trie(range(len(rows)), rows, min_shared=1)
    for row, path in trie.paths.items():
        spelled = [t for s in path for t in trie.segments[s].token_ids]
        assert tuple(spelled) == rows[row]
        for a, b in pairwise(path):
            assert trie.segments[b].parent == a
    assert trie.tokens == len({row[:end] for row in rows for end in range(1, len(row) + 1)})


def test_a_prompt_is_computed_once_and_nothing_is_padded() -> None:
    prompt = tuple(range(1, 41))
    drawn = [(prompt, [((50 + i, *range(60, 60 + i)), 99) for i in range(8)])]
    rollouts = rollouts_of(drawn)
    inputs: dict[str, int] = {}
    for layout in (PaddedLayout(), PackedLayout(), PrefixTreeLayout()):
        parts = layout.microbatches(rollouts, tokens_per_microbatch=10_000)
        inputs[type(layout).__name__] = sum(part.tokens for part in parts)
    lengths = [len(r.token_ids) - 1 for r in rollouts]
    assert inputs["PrefixTreeLayout"] == 40 + sum(lengths)
    assert inputs["PackedLayout"] == 8 * 40 + sum(lengths)
    assert inputs["PaddedLayout"] == 8 * (40 + max(lengths))


def test_a_tree_too_large_for_the_budget_is_split() -> None:
    rollouts = rollouts_of([((1, 2, 3), [((4 + i, *([9] * 20)), 99) for i in range(6)])])
    parts = PrefixTreeLayout().microbatches(rollouts, tokens_per_microbatch=50)
    assert len(parts) == 3
    assert all(part.tokens <= 50 for part in parts)
    assert sorted(row for part in parts for row in part.rows) == list(range(6))


def test_a_layout_that_is_wrong_for_a_model_is_refused_by_name() -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1)
    module = PolicyModule(transformers.MambaForCausalLM(config).eval())
    layout, reason = choose_layout("auto", module)
    assert isinstance(layout, PaddedLayout)
    assert "does not work here" in reason
    with pytest.raises(ConfigError, match="'prefix-tree' does not work for MambaForCausalLM"):
        choose_layout("prefix-tree", module)


def test_checkpointed_layers_see_the_plan_again_in_backward(
    tiny_model: Path, exact_norms: Callable[..., Any], module: PolicyModule
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = PolicyModule(exact_norms(model), temperature=0.8)
    layout, _ = choose_layout("prefix-tree", checkpointed)
    checkpointed.train()
    rollouts = rollouts_of([((1, 2, 3), [((1, 2, 3, 1), 9), ((2, 2), 9)]), ((3,), [((1, 1), 0)])])
    found = run(checkpointed, layout, rollouts, 1000)
    for a, b in zip(found, run(module, layout, rollouts, 1000), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_sampling_with_the_segment_attention_is_plain_attention(tiny_model: Path) -> None:
    """The generator calls the same model without a plan, with a mask and a cache of its own."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    switched = PolicyModule(AutoModelForCausalLM.from_pretrained(tiny_model))
    choose_layout("auto", switched)
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(plain.generate(ids, **options), switched.model.generate(ids, **options))


def test_plans_move_between_devices(module: PolicyModule) -> None:
    rollouts = rollouts_of([((1, 2), [((3,), 9), ((1, 2), 9)])])
    [inputs] = PrefixTreeLayout(min_shared=1).microbatches(rollouts, tokens_per_microbatch=99)
    moved = inputs.to(torch.device("meta"))
    assert moved.attention is not None
    assert moved.attention.device.type == "meta"
    assert dataclasses.asdict(inputs)["tokens"] == moved.tokens


def test_a_prompts_keys_are_neither_copied_nor_kept(module: PolicyModule) -> None:
    """What autograd keeps grows with the tokens of the batch, not with the keys that each
    completion sees: six completions more keep no second prompt."""
    kept = {}
    for members in (2, 8):
        drawn = [(tuple([1, 2] * 50), [((3 + i, 4), 99) for i in range(members)])]
        [inputs] = PrefixTreeLayout().microbatches(rollouts_of(drawn), tokens_per_microbatch=999)
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(saved: torch.Tensor, found: Any = storages) -> torch.Tensor:
            storage = saved.untyped_storage()
            found[storage.data_ptr()] = storage
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module.rows(inputs)
        own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        kept[members] = sum(s.nbytes() for at, s in storages.items() if at not in own)
        tokens = inputs.tokens
    assert tokens == 100 + 8
    # 102 tokens against 108; copied keys would add 600 to each layer.
    assert kept[8] < 1.1 * kept[2]


def test_trees_are_stacked_up_to_enough_and_kept_whole_beyond() -> None:
    drawn = [
        (tuple([group] * 10), [((4 + i, *([9] * 9)), 99) for i in range(4)])
        for group in range(1, 4)
    ]
    rollouts = rollouts_of(drawn)
    for enough, passes in ((None, 1), (92, 2), (46, 3), (20, 3)):
        parts = PrefixTreeLayout(enough=enough).microbatches(rollouts, tokens_per_microbatch=10**4)
        assert len(parts) == passes
        assert sum(part.tokens for part in parts) == 3 * (10 + 4 * 9)


def test_a_wrong_backward_is_found_out_by_the_trial(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels with a backward of their own: a forward that agrees does not vouch for it."""
    right = inplace._backward

    def wrong(*arguments: Any, **options: Any) -> Any:
        query, key, value = right(*arguments, **options)
        return query, 1.1 * key, value

    monkeypatch.setattr(inplace, "_backward", wrong)
    layout, name = choose_layout(
        "auto", PolicyModule(AutoModelForCausalLM.from_pretrained(tiny_model))
    )
    assert isinstance(layout, PaddedLayout)
    assert "gradients differ by" in name
