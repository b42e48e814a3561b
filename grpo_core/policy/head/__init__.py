"""The language-model head, fused: hidden states to log-probs and entropies, without the logits.

`transform` is what an architecture does to its logits; `tiles` is the arithmetic on one tile of
tokens and vocabulary; `fused` walks the tiles, forward and backward.
"""

from grpo_core.policy.head.fused import token_logprobs
from grpo_core.policy.head.transform import HeadTransform

__all__ = ["HeadTransform", "token_logprobs"]
