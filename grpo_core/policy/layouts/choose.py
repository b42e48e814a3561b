"""Which layout a model gets, decided by trying it: not by a list of architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from grpo_core.errors import ConfigError
from grpo_core.policy.layouts.attention import IMPLEMENTATION
from grpo_core.policy.layouts.base import ENOUGH_ON_A_CPU
from grpo_core.policy.layouts.padded import PaddedLayout
from grpo_core.policy.layouts.tree import PackedLayout, PrefixTreeLayout
from grpo_core.policy.model import base_of, sliding_windows
from grpo_core.policy.quantized import coarse
from grpo_core.types import Prompt, Rollout, Span

if TYPE_CHECKING:
    from grpo_core.policy.layouts.base import Layout
    from grpo_core.policy.module import PolicyModule

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Largest difference between layouts that is rounding, as a share of the hidden states' largest
entry; 0.05 in 16 bits. Measured: 1e-6 in float32, and in float64 too, where the norms of many
models are computed in float32. A token that sees a wrong one is off by 0.1 and more."""

SMALL = 1 << 16
"""Entries of a parameter up to which its gradient is compared too: the layouts' attention has a
backward of its own, and the trial must not take the memory of a whole model's gradient."""


def choose_layout(
    name: str, module: PolicyModule, *, attention: str | None = None
) -> tuple[Layout, str]:
    """The layout, and how to call it: its name, with the reason where it is second choice.

    ``auto`` is the prefix tree wherever that gives the log-probs of padded rows.

    Args:
        attention: the attention implementation that the user asked for, if any.

    Raises:
        ConfigError: a layout was asked for by name that is wrong for this model.
    """
    on_cpu = next(module.parameters()).device.type == "cpu"
    enough = ENOUGH_ON_A_CPU if on_cpu else None
    if name == "padded":
        return PaddedLayout(enough=enough), name
    obstacle = _obstacle(module, attention)
    if obstacle is None:
        if name == "packed":
            return PackedLayout(enough=enough), name
        return PrefixTreeLayout(enough=enough), "prefix-tree"
    if name != "auto":
        raise ConfigError(
            f"model.layout {name!r} does not work for {type(base_of(module.model)).__name__}: "
            f"{obstacle}; use auto or padded"
        )
    return PaddedLayout(
        enough=enough
    ), f"padded, because prefix-tree does not work here: {obstacle}"


def _obstacle(module: PolicyModule, attention: str | None) -> str | None:
    """Why segments cannot be used, or ``None`` after switching the model's attention to them."""
    base = base_of(module.model)
    before = base.config.get_text_config()._attn_implementation
    if before == IMPLEMENTATION:
        return None
    if attention not in (None, "sdpa"):
        return f"model.attn_implementation {attention!r} was asked for, and segments need 'sdpa'"
    try:
        base.set_attn_implementation(IMPLEMENTATION)
        obstacle = _difference(module)
    except Exception as error:
        # Whatever an unknown architecture does with a flat batch, padding still works.
        obstacle = f"{type(error).__name__}: {error}"
    if obstacle is not None:
        base.set_attn_implementation(before)
    return obstacle


def _difference(module: PolicyModule) -> str | None:
    """What the layouts disagree about, in hidden states or in their gradients."""
    rollouts = _probe(module)
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
    if windows != expected:
        return f"its layers ask for sliding windows {windows}, its config says {expected}"
    for what, (padded, tree) in {"hidden states": found, "gradients": gradients}.items():
        off = float((padded - tree).abs().max() / padded.abs().max())
        bound = 0.05 if coarse(module) else TOLERANCE.get(padded.dtype, 0.05)
        if not off <= bound:
            return f"{what} differ by {off:.2g} from those of padded rows"
    return None


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


def _probe(module: PolicyModule) -> list[Rollout]:
    """Two small groups: a shared prompt, forks inside the completions, a one-token prompt."""
    vocabulary = base_of(module.model).config.get_text_config().vocab_size
    shapes = [
        ((1, 2, 3, 4, 5), [(6, 7, 8, 9), (6, 7, 10), (11,), (6, 7, 8, 12, 13, 14)]),
        ((15,), [(16, 17, 18), (19, 20)]),
    ]
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
