"""A transformers model seen as what GRPO needs of it: log-probs and entropies of action tokens."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from grpo_core.policy.head import token_logprobs
from grpo_core.policy.layouts import ModelInputs
from grpo_core.policy.model import base_of, head_transform

logger = logging.getLogger(__name__)


class PolicyModule(nn.Module):
    """Wraps a causal model so that one ``forward`` gives flat log-probs and entropies.

    It is this module that Accelerate prepares: data parallelism hooks into ``forward``, and
    calling the backbone past it would leave the ranks' gradients apart without a word.
    """

    def __init__(
        self, model: nn.Module, *, temperature: float = 1.0, entropy_gradient: bool = True
    ) -> None:
        super().__init__()
        self._entropy_gradient = entropy_gradient
        self.model = model
        self.train(model.training)
        self._transform = replace(head_transform(model), temperature=temperature)
        self.fused = self._head_is_known()
        if not self.fused:
            logger.warning(
                "%s does something to its logits that is not known here: whole logits are "
                "computed instead of fused tiles, which needs more memory",
                type(base_of(model)).__name__,
            )

    def forward(self, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Log-probs of the action tokens and entropies at their positions, ``(N,)`` each, nats."""
        rows_N = self.rows(inputs)
        if not self.fused:
            return self._of_logits(rows_N, inputs.target_N)
        head = self._head()
        return token_logprobs(
            rows_N,
            cast("Tensor", head.weight),
            cast("Tensor | None", getattr(head, "bias", None)),
            inputs.target_N,
            self._transform,
            entropy_gradient=self._entropy_gradient,
        )

    def rows(self, inputs: ModelInputs) -> Tensor:
        """What predicts each action token: ``(N, hidden size)`` hidden states, or ``(N,
        vocabulary)`` logits where the head is not fused."""
        if self.fused:
            found = self._hidden(inputs.forward_kwargs)
        else:
            found = base_of(self.model)(**inputs.forward_kwargs).logits
        return found.flatten(0, 1).index_select(0, inputs.predict_index_N)

    def _hidden(self, kwargs: dict[str, Any]) -> Tensor:
        return cast("Tensor", base_of(self.model).base_model(**kwargs)[0])

    def _head(self) -> nn.Module:
        return cast("nn.Module", base_of(self.model).get_output_embeddings())

    def _of_logits(self, rows_N: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        rows_N = rows_N if rows_N.dtype == torch.float64 else rows_N.float()
        logp = (rows_N / self._transform.temperature).log_softmax(-1)
        entropy = -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)
        return logp.gather(1, target_N[:, None]).squeeze(1), entropy

    @torch.no_grad()
    def _head_is_known(self) -> bool:
        """Whether backbone, head and transform reproduce the model's own logits on a few tokens.

        An architecture with a scale, a cap, an adapter or a norm in its head that is not known
        here would otherwise train on log-probs of another distribution than it samples from.
        """
        base = base_of(self.model)
        head = base.get_output_embeddings()
        if type(head) is not nn.Linear or base.base_model is base:
            return False
        device = head.weight.device
        ids = torch.arange(8, device=device)[None] % head.weight.shape[0]
        training = self.model.training
        self.model.eval()
        try:
            expected = base(input_ids=ids, use_cache=False).logits
            hidden = self._hidden({"input_ids": ids, "use_cache": False})
        finally:
            self.model.train(training)
        found = replace(self._transform, temperature=1.0).apply_(head(hidden))
        tolerance = 0.05 if found.dtype in (torch.bfloat16, torch.float16) else 1e-3
        return found.shape == expected.shape and torch.allclose(
            found.float(), expected.float(), rtol=tolerance, atol=tolerance
        )
