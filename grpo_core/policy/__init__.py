"""The policy engine: the model being trained, its log-probs, its optimizer steps."""

from grpo_core.policy.microbatch import MicroBatch, OptimizerStep
from grpo_core.policy.model import (
    base_of,
    context_length,
    has_adapter,
    head_transform,
    sliding_windows,
)
from grpo_core.policy.policy import Policy
from grpo_core.policy.quantized import coarse, whole
from grpo_core.policy.weights import dense_weight, merge_rounding, named_tensors

__all__ = [
    "MicroBatch",
    "OptimizerStep",
    "Policy",
    "base_of",
    "coarse",
    "context_length",
    "dense_weight",
    "has_adapter",
    "head_transform",
    "merge_rounding",
    "named_tensors",
    "sliding_windows",
    "whole",
]
