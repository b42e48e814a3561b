"""TRL 1.16's own loss code, on numbers of our choosing.

Collected only where TRL is installed: ``pip install grpo-core[oracle]``.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

collect_ignore_glob = [] if importlib.util.find_spec("trl") else ["test_*.py"]

WIDTH = 9
"""Positions of the padded completions, and ``sampling.max_tokens``."""


@dataclass(frozen=True, kw_only=True)
class Padded:
    """A batch as TRL sees it. What the mask hides is noise that must never be read."""

    mask_B_T: Tensor
    """False for padding and for what a tool wrote."""
    truncated_B: Tensor
    now_B_T: Tensor
    old_B_T: Tensor
    sampled_B_T: Tensor
    ref_B_T: Tensor
    entropy_B_T: Tensor
    advantages_B: Tensor


@pytest.fixture(scope="session")
def make_padded() -> Callable[..., Padded]:
    def make(seed: int, *, rows: int = 6, spread: float = 0.5, even: bool = False) -> Padded:
        rng = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*(shape or (rows, WIDTH)), generator=rng, dtype=torch.float64)

        length_B = torch.randint(1, WIDTH + 1, (rows,), generator=rng)
        if even:
            length_B[:] = WIDTH - 2
        mask = torch.arange(WIDTH) < length_B[:, None]
        if not even:
            mask &= torch.rand(rows, WIDTH, generator=rng) > 0.15
            mask[:, 0] = True
        old = -noise().abs() - 0.1
        return Padded(
            mask_B_T=mask,
            truncated_B=torch.arange(rows) % 3 == 1,
            now_B_T=old + spread * noise(),
            old_B_T=old,
            sampled_B_T=old + 0.4 * noise(),
            ref_B_T=old + 0.5 * noise(),
            # TRL takes its quantile in float32: these are exact there.
            entropy_B_T=noise().abs().float().double(),
            advantages_B=noise(rows),
        )

    return make


DEFAULTS: dict[str, Any] = {
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "beta": 0.0,
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "use_vllm": False,
    "vllm_importance_sampling_correction": True,
}
ARGUMENTS: dict[str, Any] = {
    "use_bias_correction_kl": True,
    "delta": None,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
}


@pytest.fixture(scope="session")
def trl_loss() -> Callable[..., Tensor]:
    """``_compute_loss`` of the real trainer, over one window of gradient accumulation."""

    def compute(
        trainer_class: type,
        batch: Padded,
        now_B_T: Tensor,
        entropy_B_T: Tensor,
        options: dict[str, Any],
        *,
        microbatches: int = 1,
        on_policy: bool = False,
        mask_truncated: bool = False,
        sampler_ratio: Tensor | None = None,
    ) -> Tensor:
        mask = batch.mask_B_T.double()
        if mask_truncated:
            mask = mask * ~batch.truncated_B[:, None]
        total = torch.zeros(()).double()
        for rows in torch.arange(len(mask)).chunk(microbatches):
            found = now_B_T[rows], entropy_B_T[rows], None
            trainer = _trainer(trainer_class, options, microbatches, found)
            inputs: dict[str, Any] = {
                "prompt_ids": torch.zeros(len(rows), 1),
                "prompt_mask": mask[rows, :1],
                "completion_ids": mask[rows],
                "completion_mask": mask[rows],
                "advantages": batch.advantages_B[rows],
                "ref_per_token_logps": batch.ref_B_T[rows],
                "num_items_in_batch": mask.sum(),
            }
            if not on_policy:
                inputs["old_per_token_logps"] = batch.old_B_T[rows]
                inputs["old_logps"] = (batch.old_B_T * mask)[rows].sum(1)
            if options.get("use_vllm") or options.get("off_policy_mask_threshold") is not None:
                inputs["sampling_per_token_logps"] = batch.sampled_B_T[rows]
            if sampler_ratio is not None:
                inputs["importance_sampling_ratio"] = sampler_ratio[rows]
            total = total + trainer._compute_loss(trainer.model, inputs)
        return total

    return compute


def _trainer(trainer_class: type, options: dict[str, Any], microbatches: int, found: Any) -> Any:
    """A trainer without a model: its loss code reads these attributes and no others."""
    trainer: Any = object.__new__(trainer_class)
    chosen = {**DEFAULTS, **{k: v for k, v in options.items() if k not in ARGUMENTS}}
    for name, value in chosen.items():
        setattr(trainer, name, value)
    arguments = {**ARGUMENTS, **{k: v for k, v in options.items() if k in ARGUMENTS}}
    trainer.args = SimpleNamespace(
        **arguments, steps_per_generation=microbatches, report_to=[], entropy_target=None
    )
    trainer.model = SimpleNamespace(training=True)
    trainer.state = SimpleNamespace(global_step=0)
    trainer.current_gradient_accumulation_steps = microbatches
    trainer.max_completion_length = WIDTH
    trainer.aux_loss_enabled = False
    trainer._entropy_bonus_enabled = chosen["entropy_coef"] > 0
    trainer._metrics = {"train": defaultdict(list)}
    trainer.accelerator = SimpleNamespace(
        num_processes=1,
        is_main_process=True,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
    )
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: found
    return trainer
