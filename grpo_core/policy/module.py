"""A transformers model seen as what GRPO needs of it: log-probs and entropies of action tokens."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from grpo_core.errors import ConfigError
from grpo_core.policy.head import token_logprobs
from grpo_core.policy.layouts import ModelInputs
from grpo_core.policy.model import base_of, head_transform
from grpo_core.policy.routing import experts_per_token, routed

logger = logging.getLogger(__name__)


class PolicyModule(nn.Module):
    """Wraps a causal model so that one ``forward`` gives flat log-probs and entropies.

    It is this module that Accelerate prepares: data parallelism hooks into ``forward``, and
    calling the backbone past it would leave the ranks' gradients apart without a word.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = True,
        routing: bool = False,
        values: bool = False,
    ) -> None:
        """
        Args:
            routing: ``forward`` will be asked what the routers do.
            values: it gets a value head, which begins at 0 everywhere.

        Raises:
            ConfigError: there are none, or their load-balancing loss or the head is not known.
        """
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
        if routing and not self.fused:
            raise ConfigError(
                f"the loss balances the load of experts (router_aux_coef), which needs the fused "
                f"head, and that of {type(base_of(model)).__name__} is not known; set "
                "loss.router_aux_coef to 0"
            )
        self._experts_per_token = experts_per_token(model) if routing else 0
        self.value_head = self._new_value_head() if values else None

    def forward(
        self, inputs: ModelInputs, *, routing: Literal["no", "too", "only"] = "no"
    ) -> tuple[Tensor, ...]:
        """Log-probs of the action tokens and entropies at their positions, ``(N,)`` each, nats;
        with a value head its values too, ``(N,)``.

        Args:
            routing: what the routers do is returned too, or nothing else: the probabilities of
                the experts and which were chosen, ``(N, E)`` each (see ``routing.routed``).
        """
        if routing == "no":
            return self._of_rows(self.rows(inputs), inputs.target_N)
        output = self._backbone({**inputs.forward_kwargs, "output_router_logits": True})
        found = routed(output.router_logits, self._experts_per_token, inputs.predict_index_N)
        if routing == "only":
            return found
        rows_N = self._at(inputs, output[0])
        return (*self._of_rows(rows_N, inputs.target_N), *found)

    def rows(self, inputs: ModelInputs) -> Tensor:
        """What predicts each action token: ``(N, hidden size)`` hidden states, or ``(N,
        vocabulary)`` logits where the head is not fused."""
        if self.fused:
            found = self._backbone(inputs.forward_kwargs)[0]
        else:
            found = base_of(self.model)(**inputs.forward_kwargs).logits
        return self._at(inputs, found)

    def _at(self, inputs: ModelInputs, found: Tensor) -> Tensor:
        return found.flatten(0, 1).index_select(0, inputs.predict_index_N)

    def _of_rows(self, rows_N: Tensor, target_N: Tensor) -> tuple[Tensor, ...]:
        if not self.fused:
            return self._of_logits(rows_N, target_N)
        head = self._head()
        found = token_logprobs(
            rows_N,
            cast("Tensor", head.weight),
            cast("Tensor | None", getattr(head, "bias", None)),
            target_N,
            self._transform,
            entropy_gradient=self._entropy_gradient,
        )
        if self.value_head is None:
            return found
        # Under autocast too in the head's own precision: returns differ by less than 16 bits hold.
        with torch.autocast(rows_N.device.type, enabled=False):
            values_N = self.value_head(rows_N.to(self.value_head.weight.dtype)).squeeze(-1)
        return (*found, values_N)

    def _new_value_head(self) -> nn.Linear:
        base = base_of(self.model)
        if not self.fused:
            raise ConfigError(
                f"a value head needs the hidden states, and the head of {type(base).__name__} is "
                "not known; use an advantage and a loss without values"
            )
        like = next(self.model.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        head = nn.Linear(
            base.config.get_text_config().hidden_size, 1, device=like.device, dtype=dtype
        )
        # At 0, so that before the first update no token is expected to be better than another, and
        # nothing is drawn from a generator that a resumed run would have to know of.
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def _backbone(self, kwargs: dict[str, Any]) -> Any:
        return base_of(self.model).base_model(**kwargs)

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
            hidden = self._backbone({"input_ids": ids, "use_cache": False})[0]
        finally:
            self.model.train(training)
        found = replace(self._transform, temperature=1.0).apply_(head(hidden))
        tolerance = 0.05 if found.dtype in (torch.bfloat16, torch.float16) else 1e-3
        return found.shape == expected.shape and torch.allclose(
            found.float(), expected.float(), rtol=tolerance, atol=tolerance
        )
