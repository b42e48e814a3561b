"""The policy engine: the model being trained, its log-probs, its optimizer steps."""

from grpo_core.policy.model import base_of, context_length
from grpo_core.policy.policy import MicroBatch, OptimizerStep, Policy

__all__ = ["MicroBatch", "OptimizerStep", "Policy", "base_of", "context_length"]
