"""FlexAttention over a tree: its blocks, and its numbers next to those of padded rows.

On a CPU it runs unfused, in float64; the kernels themselves need a GPU (marked ``gpu``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import flex_attention as library

from grpo_core.policy.layouts import PackedLayout, PaddedLayout, PrefixTreeLayout
from grpo_core.policy.layouts.attention import FUSED
from grpo_core.policy.layouts.choose import choose_layout
from grpo_core.policy.layouts.dense import dense_attention
from grpo_core.policy.layouts.flex import BLOCK, block_mask, fused_attention
from grpo_core.policy.layouts.plan import AttentionPlan, make_plan
from grpo_core.policy.model import base_of
from grpo_core.policy.module import PolicyModule
from grpo_core.types import Rollout

MakeRollout = Callable[..., Rollout]
DECODER = {
    "vocab_size": 64,
    "max_position_embeddings": 1024,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": DECODER,
    "Mistral": {**DECODER, "sliding_window": 4},
    "Gemma2": {**DECODER, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    # Heads that are no power of two.
    "Qwen3": {**DECODER, "num_attention_heads": 6, "num_key_value_heads": 3},
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**MODELS[name])
    model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
    return model.eval()


@st.composite
def plans(draw: st.DrawFn) -> AttentionPlan:
    """A random forest of segments in depth-first order."""
    spans, parents, open_, at = [], [], [-1], 0
    for i in range(draw(st.integers(1, 8))):
        keep = draw(st.integers(1, len(open_)))
        open_ = open_[:keep]
        length = draw(st.integers(1, 7))
        spans.append((at, length))
        parents.append(open_[-1])
        open_.append(i)
        at += length
    return make_plan(spans, parents)


def visible(plan: AttentionPlan, window: int | None) -> torch.Tensor:
    """Pair by pair, from the plan's own words: ancestors, and causally oneself."""
    owner = [i for i, (_, length) in enumerate(plan.spans) for _ in range(length)]
    position = [
        plan.before[i] + t for i, (_, length) in enumerate(plan.spans) for t in range(length)
    ]
    found = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for q, mine in enumerate(owner):
        for k, theirs in enumerate(owner):
            above = theirs in plan.ancestors[mine] or (theirs == mine and k <= q)
            found[q, k] = above and (window is None or position[q] - position[k] < window)
    return found


@settings(max_examples=60)
@given(plan=plans(), size=st.sampled_from([1, 2, 4, 128]), window=st.sampled_from([None, 1, 3, 50]))
def test_the_blocks_and_the_mask_are_those_of_the_tree(
    plan: AttentionPlan, size: int, window: int | None
) -> None:
    mask, expected = block_mask(plan, window, size=size), visible(plan, window)
    at = torch.arange(plan.tokens)
    zero = torch.zeros((), dtype=torch.long)
    assert torch.equal(mask.mask_mod(zero, zero, at[:, None], at[None]), expected)
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    partly = listed(mask.kv_num_blocks, mask.kv_indices)
    assert not whole & partly
    for i in range(len(mask.kv_num_blocks[0, 0])):
        for j in range(len(mask.kv_num_blocks[0, 0])):
            part = expected[i * size : (i + 1) * size, j * size : (j + 1) * size]
            assert part.all() or (i, j) not in whole
            assert not part.any() or (i, j) in whole | partly
            if window is None:
                # Nothing is looked at that a kernel could have left out.
                assert part.any() or (i, j) not in partly
    # Which is what the backward pass goes by.
    assert listed(mask.q_num_blocks, mask.q_indices) == {(j, i) for i, j in partly}


def listed(count: torch.Tensor, index: torch.Tensor) -> set[tuple[int, int]]:
    return {
        (i, int(j))
        for i, (n, row) in enumerate(zip(count[0, 0], index[0, 0], strict=True))
        for j in row[: int(n)]
    }


def test_the_mask_of_a_long_batch_takes_little_memory() -> None:
    """16 k tokens: a mask of one byte for every pair would be 256 MiB."""
    plan = make_plan([(0, 8192), *((8192 + 1024 * i, 1024) for i in range(8))], [-1, *[0] * 8])
    mask = block_mask(plan)
    tensors = [x for x in mask.as_tuple() if isinstance(x, torch.Tensor)]
    assert sum(x.numel() * x.element_size() for x in tensors) < 2**20
    # A completion does not look at the others.
    assert mask.sparsity() > 60


@pytest.fixture
def backward_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention's unfused form can do it, in float64 too; only its check says no, since there
    is no kernel."""
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)


def rollouts(make: MakeRollout, scale: int = 1) -> list[Rollout]:
    """Forks before, at and after the width of a window of 4; ``scale`` stretches all."""
    shapes = [
        (6, [(7, 8, 9, 10, 11, 12, 13), (7, 8, 9, 14), (15,)]),
        (1, [(21, 22, 23, 24, 25, 26, 27, 28), (21, 22, 23, 24, 25, 26, 29, 30)]),
    ]
    return [
        make(
            tuple(range(1, 1 + length)) * scale,
            tuple(token for token in ids for _ in range(scale)),
            group=group,
            sample=sample,
        )
        for group, (length, completions) in enumerate(shapes)
        for sample, ids in enumerate(completions)
    ]


def numbers(module: PolicyModule, layout: Any, batch: list[Rollout]) -> list[torch.Tensor]:
    """Log-probs, entropies and a gradient of both."""
    module.zero_grad()
    device = next(module.parameters()).device
    [inputs] = layout.microbatches(batch, tokens_per_microbatch=10**6)
    found = module(inputs.to(device))
    counts = [batch[row].action_count for row in inputs.rows]
    parts = [dict(zip(inputs.rows, x.split(counts), strict=True)) for x in found]
    logprobs, entropy = (torch.cat([part[row] for row in range(len(batch))]) for part in parts)
    weights = torch.arange(1, len(logprobs) + 1, device=device).to(logprobs.dtype).sin()
    (logprobs * weights + 0.1 * entropy * weights.cos()).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return [logprobs.detach(), entropy.detach(), gradient]


@pytest.mark.usefixtures("backward_on_a_cpu")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_it_gives_the_numbers_of_padded_rows(
    name: str, make_rollout: MakeRollout, exact_norms: Callable[[nn.Module], nn.Module]
) -> None:
    module = PolicyModule(exact_norms(build(name).double()))
    batch = rollouts(make_rollout)
    # First, since Gemma's own attention rounds its softmax to float32. Padded rows have no plan,
    # and get plain attention all the same.
    base_of(module.model).set_attn_implementation(FUSED)
    expected = numbers(module, PaddedLayout(), batch)
    for layout in (PrefixTreeLayout(min_shared=1), PackedLayout()):
        for found, wanted in zip(numbers(module, layout, batch), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 40])
def test_a_compiled_kernel_skips_the_right_blocks(window: int | None) -> None:
    """The compiled kernel of the CPU, which has a forward pass only, goes by the blocks; unfused,
    FlexAttention goes by the mask alone."""
    spans, parents = [(0, 300), (300, 170), (470, 40), (510, 130), (640, 60)], [-1, 0, 1, 0, -1]
    plan = make_plan(spans, parents)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, plan.tokens, 16) for heads in (4, 2, 2))
    compiled = torch.compile(library.flex_attention)
    with torch.no_grad():
        found = compiled(q, k, v, block_mask=block_mask(plan, window), enable_gqa=True)
        wanted = dense_attention(
            *(x[0].transpose(0, 1) for x in (q, k, v)), plan, scaling=None, window=window, cap=None
        )
    torch.testing.assert_close(found[0].transpose(0, 1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("mixed", [False, True])
def test_on_a_gpu_it_is_chosen_and_agrees(
    name: str, mixed: bool, make_rollout: MakeRollout
) -> None:
    def autocast() -> Any:
        return torch.autocast("cuda", torch.bfloat16, enabled=mixed)

    module = PolicyModule(build(name).cuda())
    batch = rollouts(make_rollout, scale=30)
    with autocast():
        expected = numbers(module, PaddedLayout(), batch)
    layout, reason = choose_layout("auto", module, autocast=autocast() if mixed else None)
    assert isinstance(layout, PrefixTreeLayout)
    assert "by FlexAttention" in reason
    assert base_of(module.model).config._attn_implementation == FUSED
    for tree in (layout, PackedLayout()):
        with autocast():
            found = numbers(module, tree, batch)
        for a, b in zip(found, expected, strict=True):
            # A token that sees a wrong one is off by more.
            assert float((a - b).norm() / b.norm()) < (0.1 if mixed else 1e-3), reason


@pytest.mark.gpu
def test_on_a_gpu_nothing_of_the_size_of_all_pairs_is_made() -> None:
    plan = make_plan([(0, 8192), *((8192 + 1024 * i, 1024) for i in range(8))], [-1, *[0] * 8]).to(
        torch.device("cuda")
    )
    inputs = [
        torch.randn(1, heads, plan.tokens, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for heads in (4, 2, 2)
    ]
    for _ in range(2):  # the first compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = fused_attention(*inputs, plan, scaling=None, window=None, cap=None)
        out.float().square().sum().backward()
        peak = torch.cuda.max_memory_allocated() - before
    assert peak < plan.tokens**2, "one byte for every pair of tokens"


@pytest.mark.gpu
def test_what_the_fused_kernel_cannot_do_is_done_in_dense_blocks() -> None:
    """It has no float64."""
    module = PolicyModule(build("Llama").double().cuda())
    layout, reason = choose_layout("auto", module)
    assert isinstance(layout, PrefixTreeLayout)
    assert "by dense blocks, as FlexAttention does not work here: " in reason


def test_blocks_are_the_librarys_own() -> None:
    assert library._DEFAULT_SPARSE_BLOCK_SIZE == BLOCK
