"""Which layout a model gets, decided by trying it: not by a list of architectures."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from grpo_core.errors import ConfigError
from grpo_core.policy.layouts.attention import FUSED, IMPLEMENTATION
from grpo_core.policy.layouts.base import ENOUGH_ON_A_CPU
from grpo_core.policy.layouts.flex import BLOCK
from grpo_core.policy.layouts.padded import PaddedLayout
from grpo_core.policy.layouts.tree import PackedLayout, PrefixTreeLayout
from grpo_core.policy.model import base_of, context_length, sliding_windows
from grpo_core.policy.quantized import coarse
from grpo_core.types import Prompt, Rollout, Span

if TYPE_CHECKING:
    from grpo_core.policy.layouts.base import Layout
    from grpo_core.policy.module import PolicyModule

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Largest difference between layouts that is rounding, as a share of the hidden states' largest
entry. Measured: 1e-6 in float32, and in float64 too, where the norms of many
models are computed in float32. A token that sees a wrong one is off by 0.1 and more."""

SIXTEEN_BITS = 0.05
"""The same in 16 bits."""

SMALL = 1 << 16
"""Entries of a parameter up to which its gradient is compared too: the layouts' attention has a
backward of its own, and the trial must not take the memory of a whole model's gradient."""


def choose_layout(
    name: str,
    module: PolicyModule,
    *,
    attention: str | None = None,
    autocast: AbstractContextManager[Any] | None = None,
) -> tuple[Layout, str]:
    """The layout, and why: ``"prefix-tree, since ..."``, ``"padded, because ..."``.

    ``auto`` is the prefix tree wherever that gives the log-probs of padded rows.

    Args:
        attention: the attention implementation that the user asked for, if any.
        autocast: in which forward passes will run, where that is in 16 bits.

    Raises:
        ConfigError: a layout was asked for by name that is wrong for this model.
    """
    on_cpu = next(module.parameters()).device.type == "cpu"
    enough = ENOUGH_ON_A_CPU if on_cpu else None
    if name == "padded":
        return PaddedLayout(enough=enough), "padded, as set"
    works, reason = _switch(module, attention, autocast)
    if works:
        if name == "packed":
            return PackedLayout(enough=enough), f"packed, as set; {reason}"
        return PrefixTreeLayout(enough=enough), f"prefix-tree, since {reason}"
    if name != "auto":
        raise ConfigError(
            f"model.layout {name!r} does not work for {type(base_of(module.model)).__name__}: "
            f"{reason}; use auto or padded"
        )
    return PaddedLayout(enough=enough), f"padded, because prefix-tree does not work here: {reason}"


def _switch(
    module: PolicyModule, attention: str | None, autocast: AbstractContextManager[Any] | None
) -> tuple[bool, str]:
    """Whether segments can be used, the model's attention then switched to them, and why."""
    base = base_of(module.model)
    before = base.config.get_text_config()._attn_implementation
    if before in (IMPLEMENTATION, FUSED):
        return True, "it was tried before"
    if attention not in (None, "sdpa"):
        return False, (
            f"model.attn_implementation {attention!r} was asked for, and segments need 'sdpa'"
        )
    on_gpu = next(module.parameters()).device.type == "cuda"
    found: float | str = ""
    unfused = ""
    for implementation in (FUSED, IMPLEMENTATION) if on_gpu else (IMPLEMENTATION,):
        fused = implementation == FUSED
        try:
            base.set_attn_implementation(implementation)
            # In the precision of training: the fused kernel may have none for another.
            with (autocast if fused else None) or nullcontext():
                found = _difference(module, fused=fused, mixed=autocast is not None and fused)
        except Exception as error:
            # Whatever an unknown architecture does with a flat batch, padding still works; and
            # whatever a compiler or its driver raises, dense blocks do.
            found = f"{type(error).__name__}: {error}".partition("\n")[0]
        if isinstance(found, float):
            how = "FlexAttention" if fused else f"dense blocks{unfused}"
            same = f"it gives the hidden states and gradients of padded rows (to {found:.0e})"
            return True, f"{same}, by {how}" if on_gpu else same
        unfused = f", as FlexAttention does not work here: {found}"
    base.set_attn_implementation(before)
    return False, str(found)


def _difference(module: PolicyModule, *, fused: bool, mixed: bool) -> float | str:
    """How far the layouts are apart, in hidden states or in their gradients, as a share of the
    largest entry; or what they disagree about, where that is more than rounding."""
    rollouts = _probe(module, long=fused)
    found: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    small = [p for p in module.parameters() if p.requires_grad and p.numel() <= SMALL]
    windows: list[int | None] = []
    training = module.training
    module.eval()
    try:
        for layout in (PaddedLayout(), PrefixTreeLayout(min_shared=1)):
            [inputs] = layout.microbatches(rollouts, tokens_per_microbatch=10**6)
            rows_N = module.rows(inputs.to(next(module.parameters()).device))
            parts = rows_N.split([rollouts[row].action_count for row in inputs.rows])
            ordered = sorted(zip(inputs.rows, parts, strict=True), key=lambda pair: pair[0])
            hidden = torch.cat([part for _, part in ordered])
            found.append(hidden.detach())
            gradients.append(_gradient(hidden, small))
            windows = [] if inputs.attention is None else inputs.attention.windows
    finally:
        module.train(training)
    # A window that a layer only puts into its mask would be lost, and a probe of a few tokens is
    # too short to show it.
    expected = sliding_windows(module.model)
    if not windows:
        return "its layers do not call transformers' attention interface"
    if windows != expected:
        return f"its layers ask for sliding windows {windows}, its config says {expected}"
    most = 0.0
    for what, (padded, tree) in {"hidden states": found, "gradients": gradients}.items():
        off = float((padded - tree).abs().max() / padded.abs().max())
        rough = mixed or coarse(module)
        bound = SIXTEEN_BITS if rough else TOLERANCE.get(padded.dtype, SIXTEEN_BITS)
        if not off <= bound:
            return f"{what} differ by {off:.2g} from those of padded rows"
        most = max(most, off)
    return most


def _gradient(rows_N: torch.Tensor, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Of some number made of all rows, with respect to the small parameters: norms and adapters
    of all layers, whose gradients go through attention."""
    numbers = torch.arange(rows_N.numel(), dtype=rows_N.dtype, device=rows_N.device).sin()
    found = (
        torch.autograd.grad((rows_N * numbers.view_as(rows_N)).sum(), parameters, allow_unused=True)
        if parameters
        else []
    )
    return torch.cat([rows_N.new_ones(1), *(g.flatten() for g in found if g is not None)])


def _probe(module: PolicyModule, *, long: bool) -> list[Rollout]:
    """Two small groups: a shared prompt, forks inside the completions, a one-token prompt;
    ``long``: and a prompt of several blocks of a fused kernel."""
    vocabulary = base_of(module.model).config.get_text_config().vocab_size
    shapes = [
        ((1, 2, 3, 4, 5), [(6, 7, 8, 9), (6, 7, 10), (11,), (6, 7, 8, 12, 13, 14)]),
        ((15,), [(16, 17, 18), (19, 20)]),
    ]
    if long:
        width = min(4 * BLOCK, (context_length(module.model) or 4 * BLOCK) - 8)
        shapes.append((tuple(range(21, 21 + width)), [(1, 2, 3), (1, 4)]))
    return [
        Rollout(
            prompt=Prompt(id="probe", content=""),
            prompt_ids=tuple(t % vocabulary for t in prompt),
            group=group,
            sample=sample,
            spans=(
                Span(
                    token_ids=tuple(t % vocabulary for t in ids),
                    logprobs=(0.0,) * len(ids),
                    policy_version=0,
                ),
            ),
            text="",
            finish_reason="stop",
        )
        for group, (prompt, completions) in enumerate(shapes)
        for sample, ids in enumerate(completions)
    ]
