"""The policy engine: the model being trained, its log-probs, its optimizer steps."""

from grpo_core.policy.microbatch import MicroBatch, OptimizerStep
from grpo_core.policy.model import base_of, context_length, head_transform, sliding_windows
from grpo_core.policy.policy import Policy
from grpo_core.policy.weights import dense_weight

__all__ = [
    "MicroBatch",
    "OptimizerStep",
    "Policy",
    "base_of",
    "context_length",
    "dense_weight",
    "head_transform",
    "sliding_windows",
]
