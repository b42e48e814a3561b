"""The policy: a model being trained, behind the few verbs that the loop speaks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from grpo_core.errors import ConfigError, NonFiniteGradientError
from grpo_core.policy.layouts import ModelInputs
from grpo_core.policy.layouts.choose import choose_layout
from grpo_core.policy.model import (
    context_length,
    eos_token_ids,
    has_adapter,
    load_model,
    load_tokenizer,
)
from grpo_core.policy.module import PolicyModule
from grpo_core.policy.optimizer import make_optimizer, rate_schedule
from grpo_core.policy.text import PromptEncoder
from grpo_core.policy.weights import named_tensors
from grpo_core.settings import OptimizerSettings
from grpo_core.types import ActionTokens, Need, Rollout, WeightUpdate

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from grpo_core.batching import Minibatch
    from grpo_core.settings import ModelSettings

MAX_SKIPPED = 3
"""Non-finite gradients in a row before the run stops; a single one is an accident of numerics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """What one forward and backward pass is made of; flat tensors on the policy's device."""

    inputs: ModelInputs
    minibatch: Minibatch
    advantages_N: Tensor
    weights_N: Tensor
    """float64: a sum of 10^6 products of 10^-6 is not left to float32."""
    sampling_logprobs_N: Tensor
    old_logprobs_N: Tensor | None
    ref_logprobs_N: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerStep:
    """What came of one optimizer step."""

    grad_norm: float
    """Before clipping."""
    learning_rate: float
    skipped: bool
    """The gradient was not finite, so the weights were left as they were."""


class Policy:
    """Loads a model, computes log-probs of rollouts, takes optimizer steps.

    Stands on Accelerate: the same code runs in one process, under ``accelerate launch`` or
    ``torchrun``.
    """

    def __init__(self, model: ModelSettings, optimizer: OptimizerSettings | None = None) -> None:
        """Load the model and tokenizer.

        Raises:
            ConfigError: the model, its tokenizer or its adapters cannot be made.
        """
        self.settings = model
        self.optimizer_settings = optimizer or OptimizerSettings()
        # Autocast is ours: Accelerate keeps one precision per process for good, and a second
        # policy in a notebook could not have another.
        self.accelerator = Accelerator(mixed_precision="no")
        self._autocast_dtype = _autocast_dtype(model)
        self.model: nn.Module = load_model(model).to(self.device)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        self.eos_token_ids = eos_token_ids(self.model, self.tokenizer)
        self.context_length = context_length(self.model)
        self.encoder = PromptEncoder(self.tokenizer, model.chat_template_kwargs)
        self.version = 0
        self._attempts = 0
        self._skipped_in_a_row = 0
        self._others: dict[int, PolicyModule] = {}

    def prepare(
        self,
        *,
        optimizer_steps: int,
        temperature: float,
        tokens_per_microbatch: int,
        needs: frozenset[Need] = frozenset(),
    ) -> None:
        """Make ready for training; called once, when the run knows its numbers."""
        self._needs = needs
        self._temperature = temperature
        self._tokens_per_microbatch = tokens_per_microbatch
        module = PolicyModule(
            self.model, temperature=temperature, entropy_gradient="entropy" in needs
        )
        self._layout, self.layout = choose_layout(
            self.settings.layout, module, attention=self.settings.attn_implementation
        )
        optimizer = make_optimizer(module, self.optimizer_settings)
        self._rate = rate_schedule(self.optimizer_settings, optimizer_steps)
        self._module, self._optimizer = self.accelerator.prepare(module, optimizer)
        self._module.train(self.settings.gradient_checkpointing)

    # -- facts --------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.accelerator.device)

    @property
    def precision(self) -> str:
        """How forward passes are computed: ``float32``, or ``float32 weights, bf16 autocast``."""
        weights = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return weights if self._autocast_dtype is None else f"{weights} weights, bf16 autocast"

    @property
    def mixed(self) -> bool:
        """Whether anything is computed in 16 bits."""
        return "16" in self.precision

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def ranks(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def has_adapter(self) -> bool:
        return has_adapter(self.model)

    # -- the update ---------------------------------------------------------------------------

    def microbatches(self, minibatch: Minibatch) -> Iterator[MicroBatch]:
        """Split an optimizer step into forward passes within the token budget.

        Gradients are exchanged between ranks only in the last one; the caller's forward and
        backward run inside this generator's context.
        """
        parts = self._layout.microbatches(
            minibatch.rollouts, tokens_per_microbatch=self._tokens_per_microbatch
        )
        for position, inputs in enumerate(parts):
            last = position == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self._module):
                yield self._microbatch(minibatch, inputs.to(self.device))

    def token_logprobs(self, micro: MicroBatch) -> ActionTokens:
        """Run the model; flat log-probs with gradient and everything that a loss may see."""
        with self.autocast():
            logprobs_N, entropy_N = self._module(micro.inputs)
        old_N = micro.old_logprobs_N
        if old_N is None:
            # The policy has not moved since it was sampled from: these *are* the old log-probs.
            old_N = logprobs_N.detach()
            self._remember(micro, old_N)
        dtype = logprobs_N.dtype
        ref_N = micro.ref_logprobs_N
        return ActionTokens(
            logprobs_N=logprobs_N,
            old_logprobs_N=old_N.to(dtype) if "old_logprobs" in self._needs else None,
            sampling_logprobs_N=micro.sampling_logprobs_N.to(dtype),
            ref_logprobs_N=None if ref_N is None else ref_N.to(dtype),
            entropy_N=entropy_N if "entropy" in self._needs else entropy_N.detach(),
            advantages_N=micro.advantages_N.to(dtype),
            rollout_index_N=micro.inputs.rollout_index_N,
            rollouts=len(micro.inputs.rows),
        )

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a scalar that is already weighted; nothing is divided again."""
        self.accelerator.backward(loss)

    def step(self) -> OptimizerStep:
        """Clip, step, clear.

        Raises:
            NonFiniteGradientError: the third NaN or infinite gradient in a row.
        """
        parameters = [p for p in self._module.parameters() if p.requires_grad]
        norm = float(
            self.accelerator.clip_grad_norm_(parameters, self.optimizer_settings.max_grad_norm)
        )
        rate = self._rate(self._attempts)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._attempts += 1
        finite = math.isfinite(norm)
        if finite:
            self._optimizer.step()
            self.version += 1
            self._skipped_in_a_row = 0
        else:
            self._skipped_in_a_row += 1
        self._optimizer.zero_grad(set_to_none=True)
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise NonFiniteGradientError(
                f"the gradient was {norm} in {MAX_SKIPPED} optimizer steps in a row; the weights "
                "are those of the last finite step. Lower optimizer.learning_rate, or look for "
                "an extreme reward or an infinite log-prob in the rollouts"
            )
        return OptimizerStep(grad_norm=norm, learning_rate=rate, skipped=not finite)

    # -- scoring without gradient -------------------------------------------------------------

    @torch.no_grad()
    def logprobs(self, rollouts: Sequence[Rollout], model: nn.Module | None = None) -> list[Tensor]:
        """Log-probs of each rollout's action tokens under the policy, or under ``model``.

        Returns:
            One tensor of shape ``(action_count,)`` per rollout, in nats, at the sampling
            temperature, on the policy's device.
        """
        found = [torch.zeros(0, device=self.device) for _ in rollouts]
        if not rollouts:
            return found
        module = self._module if model is None else self._module_of(model)
        for inputs in self._layout.microbatches(
            rollouts, tokens_per_microbatch=self._tokens_per_microbatch
        ):
            with self.autocast():
                logprobs_N, _ = module(inputs.to(self.device))
            counts = [rollouts[i].action_count for i in inputs.rows]
            if len(logprobs_N):
                for row, part in zip(inputs.rows, logprobs_N.split(counts), strict=True):
                    found[row] = part
        return found

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """The base model alone, within the context.

        Raises:
            ConfigError: there is no adapter.
        """
        if not self.has_adapter:
            raise ConfigError("the policy has no adapter to switch off; set model.lora")
        with cast("Any", self.model).disable_adapter():
            yield

    def tensor(self, values: Sequence[float]) -> Tensor:
        """Numbers as a float64 tensor on the policy's device."""
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of every forward pass, in training, scoring and sampling alike."""
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)

    # -- between processes --------------------------------------------------------------------

    def weight_update(self) -> WeightUpdate:
        """The weights as a generator gets them."""
        return WeightUpdate(
            policy_version=self.version,
            model=self.model,
            tokenizer=self.tokenizer,
            named_tensors=lambda: named_tensors(self.model),
        )

    def gather(self, items: list[Any]) -> list[Any]:
        """Concatenate a list of picklable items over all ranks, in rank order."""
        return list(gather_object(items)) if self.ranks > 1 else items

    def sum_over_ranks(self, numbers: list[int]) -> list[int]:
        """Add up a list of integers over all ranks, entry by entry."""
        return [sum(column) for column in zip(*self.gather([numbers]), strict=True)]

    # -- inside -------------------------------------------------------------------------------

    def _microbatch(self, minibatch: Minibatch, inputs: ModelInputs) -> MicroBatch:
        batch = minibatch.batch
        rows = [minibatch.rows[i] for i in inputs.rows]
        index_N = inputs.rollout_index_N
        sampled = [x for i in rows for x in batch.rollouts[i].sampling_logprobs]
        old = [batch.old_logprobs[i] for i in rows if batch.rollouts[i].action_count]
        known = bool(old) and all(x is not None for x in old)
        ref = batch.ref_logprobs
        return MicroBatch(
            inputs=inputs,
            minibatch=minibatch,
            advantages_N=batch.advantages_B[rows].to(self.device)[index_N],
            weights_N=minibatch.weights_B[list(inputs.rows)].to(self.device)[index_N],
            sampling_logprobs_N=self.tensor(sampled),
            old_logprobs_N=torch.cat(cast("list[Tensor]", old)) if known else None,
            ref_logprobs_N=None if ref is None else torch.cat([ref[i] for i in rows]),
        )

    def _remember(self, micro: MicroBatch, logprobs_N: Tensor) -> None:
        batch = micro.minibatch.batch
        rows = [micro.minibatch.rows[i] for i in micro.inputs.rows]
        counts = [batch.rollouts[i].action_count for i in rows]
        if len(logprobs_N):
            for row, part in zip(rows, logprobs_N.split(counts), strict=True):
                batch.old_logprobs[row] = part

    def _module_of(self, model: nn.Module) -> PolicyModule:
        if id(model) not in self._others:
            self._others[id(model)] = PolicyModule(
                model.to(self.device), temperature=self._temperature
            )
        return self._others[id(model)]


def _autocast_dtype(settings: ModelSettings) -> torch.dtype | None:
    """bf16 where the hardware is fast at it.

    Not on CPUs: measured 5x slower than float32 on one without bf16 units.
    """
    if settings.mixed_precision == "auto":
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        wanted = fast and settings.dtype in ("auto", "float32")
    else:
        wanted = settings.mixed_precision == "bf16"
    return torch.bfloat16 if wanted else None
