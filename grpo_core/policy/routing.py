"""Load balancing of mixture-of-experts models, over the action tokens of an optimizer step.

The loss is that of the Switch Transformer (arXiv 2101.03961, eq. 4 to 6) as transformers has it::

    E * sum_e f_e P_e

with ``f_e`` the times that a token was sent to expert ``e`` (counts, without gradient; they add up
to the experts per token) and ``P_e`` the probability that the router gave it, both means over
layers and tokens. Once ``f`` is known this is a mean over tokens of ``E * sum_e f_e p_e``: a loss
per token like any other. So ``f`` is taken over the whole optimizer step (arXiv 2501.11873), and
neither the split into microbatches nor the number of ranks changes the gradient.

A token counts where it is predicted, once for every action token. Padding, prompts and what an
environment inserted do not count: a prompt would count once for each completion of its group and
outweigh them, and a shared one would count by the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from grpo_core.errors import ConfigError
from grpo_core.policy.model import base_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from grpo_core.policy.layouts import ModelInputs
    from grpo_core.policy.microbatch import MicroBatch

TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts")
"""What configs call the experts per token."""

TOLERANCE = 1e-2
"""Between the balance that is computed here and the model's own on a few tokens; rounding in 16
bits is below it."""


def routed(router_logits: Sequence[Tensor], top_k: int, index_N: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the experts and which were chosen, means over the layers, ``(N, E)`` each.

    Args:
        router_logits: of each layer, one row of ``E`` per position.
        index_N: the positions that count.
    """
    probs, chosen = [], []
    for logits in router_logits:
        logits_NE = logits.flatten(0, -2).index_select(0, index_N)
        logits_NE = logits_NE if logits_NE.dtype == torch.float64 else logits_NE.float()
        probs_NE = logits_NE.softmax(-1)
        best_NK = probs_NE.detach().topk(top_k, dim=-1).indices
        probs.append(probs_NE)
        chosen.append(torch.zeros_like(probs_NE, requires_grad=False).scatter_(1, best_NK, 1.0))
    return torch.stack(probs).mean(0), torch.stack(chosen).mean(0)


def balance(probs_NE: Tensor, shares_E: Tensor) -> Tensor:
    """What each token has in the load-balancing loss, ``(N,)``; experts per token when even."""
    return probs_NE.shape[1] * (probs_NE * shares_E.to(probs_NE.dtype)).sum(1)


@torch.no_grad()
def experts_per_token(model: nn.Module) -> int:
    """How many experts each token is sent to, tried against the model's own loss.

    Raises:
        ConfigError: the model has no experts, or a load-balancing loss that is not this one.
    """
    base = base_of(model)
    config: Any = base.config.get_text_config()
    asked = f"the loss balances the load of experts (router_aux_coef), but {type(base).__name__}"
    found = [k for name in TOP_K if isinstance(k := getattr(config, name, None), int)]
    if not found:
        raise ConfigError(f"{asked} is no mixture of experts; set loss.router_aux_coef to 0")
    device = next(model.parameters()).device
    ids = torch.arange(8, device=device)[None] % config.vocab_size
    training = model.training
    model.eval()
    try:
        kwargs = {"input_ids": ids, "use_cache": False, "output_router_logits": True}
        logits = getattr(base.base_model(**kwargs), "router_logits", None)
        own = getattr(base(**kwargs), "aux_loss", None) if logits else None
    except TypeError as error:
        raise ConfigError(f"{asked} does not tell what its routers do: {error}") from error
    finally:
        model.train(training)
    if logits is None or own is None:
        raise ConfigError(
            f"{asked} has no load-balancing loss in transformers; set loss.router_aux_coef to 0"
        )
    probs_NE, chosen_NE = routed(logits, found[0], torch.arange(ids.numel(), device=device))
    here = float(balance(probs_NE, chosen_NE.mean(0)).mean())
    if not abs(here - float(own)) <= TOLERANCE * abs(float(own)):
        raise ConfigError(
            f"{asked} has another load-balancing loss: its own is {float(own):.6g} where this one "
            f"is {here:.6g}; set loss.router_aux_coef to 0"
        )
    return found[0]


class ExpertLoad:
    """The load of the experts over one optimizer step, which all ranks agree on."""

    def __init__(self, module: nn.Module, accelerator: Accelerator) -> None:
        """``module``: the prepared policy module, made with ``routing``."""
        self._module = module
        self._accelerator = accelerator
        self._ranks = int(accelerator.num_processes)

    def shares(
        self, parts: Sequence[ModelInputs], weights_B: Tensor, *, most: int
    ) -> Tensor | None:
        """``f`` of the step, ``(E,)``, by a forward pass without gradient: what the routers will
        do is not known before.

        Args:
            parts: this rank's microbatches.
            weights_B: of an action token of each row; those of all tokens add up to the ranks.
            most: microbatches of the rank that has most.

        Returns:
            ``None`` where every rank has one microbatch, which then tells it by itself.
        """
        if most == 1:
            return None
        device = self._accelerator.device
        total: Tensor | float = 0.0
        with torch.no_grad():
            for inputs in parts:
                _, chosen_NE = self._module(inputs.to(device), routing="only")
                weights_N = weights_B[list(inputs.rows)][inputs.rollout_index_N]
                total = total + self._share(chosen_NE, weights_N.to(device))
        return self._summed(cast("Tensor", total))

    def balance(self, routing: Sequence[Tensor], micro: MicroBatch) -> Tensor:
        """What each token of a microbatch has in the load-balancing loss, ``(N,)``.

        Args:
            routing: what the module returned of it, ``(N, E)`` each.
        """
        probs_NE, chosen_NE = (x[: len(micro.weights_N)] for x in routing)
        shares_E = micro.expert_shares_E
        if shares_E is None:
            shares_E = self._summed(self._share(chosen_NE, micro.mean_weights_N))
        return balance(probs_NE, shares_E)

    def _share(self, chosen_NE: Tensor, weights_N: Tensor) -> Tensor:
        return (weights_N.double() / self._ranks) @ chosen_NE.detach().double()

    def _summed(self, share_E: Tensor) -> Tensor:
        return cast("Tensor", self._accelerator.reduce(share_E, reduction="sum"))
