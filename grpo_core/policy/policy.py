"""The policy: a model being trained, behind the few verbs that the loop speaks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from grpo_core.errors import ConfigError, NonFiniteGradientError
from grpo_core.policy.fused import fuse_layers
from grpo_core.policy.gloo import leave_gloo_at_exit
from grpo_core.policy.hardware import autocast_dtype, keep_threads, set_threads
from grpo_core.policy.layouts.choose import choose_layout
from grpo_core.policy.microbatch import (
    MicroBatch,
    OptimizerStep,
    make_microbatch,
    outputs_per_rollout,
)
from grpo_core.policy.model import (
    context_length,
    eos_token_ids,
    has_adapter,
    load_model,
    load_tokenizer,
)
from grpo_core.policy.module import PolicyModule
from grpo_core.policy.optimizer import make_optimizer, rate_schedule
from grpo_core.policy.quantized import coarse
from grpo_core.policy.routing import ExpertLoad
from grpo_core.policy.state import load_optimizer, load_weights, optimizer_state, trained_weights
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


class Policy:
    """Loads a model, computes log-probs of rollouts, takes optimizer steps.

    Stands on Accelerate: the same code runs in one process, under ``accelerate launch`` or
    ``torchrun``.
    """

    def __init__(
        self,
        model: ModelSettings,
        optimizer: OptimizerSettings | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """Load the model and tokenizer; ``seed`` is that of new adapters.

        Raises:
            ConfigError: the model, its tokenizer or its adapters cannot be made.
        """
        self.settings = model
        self.optimizer_settings = optimizer or OptimizerSettings()
        # Autocast is ours: Accelerate keeps one precision per process for good.
        self.accelerator = Accelerator(mixed_precision="no")
        leave_gloo_at_exit()
        self._autocast_dtype, self._why_precision = autocast_dtype(model)
        self.threads = set_threads(model.threads) if self.device.type == "cpu" else "not used"
        self.model: nn.Module = load_model(model, seed=seed, device=self.device)
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
        if not self.settings.gradient_checkpointing:
            # Checkpointing keeps none of this anyway.
            fuse_layers(self.model)
        routing = "router_balance" in needs
        module = PolicyModule(
            self.model,
            temperature=temperature,
            entropy_gradient="entropy" in needs,
            routing=routing,
            values="values" in needs,
        )
        self._trained = module
        self._layout, self.layout = choose_layout(
            self.settings.layout,
            module,
            attention=self.settings.attn_implementation,
            autocast=None if self._autocast_dtype is None else self.autocast(),
        )
        optimizer = make_optimizer(module, self.optimizer_settings)
        self._rate = rate_schedule(self.optimizer_settings, optimizer_steps)
        self._module, self._optimizer = self.accelerator.prepare(module, optimizer)
        self._experts = ExpertLoad(self._module, self.accelerator) if routing else None
        self._module.train(self.settings.gradient_checkpointing)

    # -- facts --------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.accelerator.device)

    @property
    def precision(self) -> str:
        """How forward passes are computed: ``float32``, or ``float32 weights, bf16 autocast``."""
        weights = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        if self.settings.quantization is not None:
            weights = f"{weights} with {self.settings.quantization.type} layers"
        return weights if self._autocast_dtype is None else f"{weights} weights, bf16 autocast"

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen for this model on this machine, and why; after ``prepare``."""
        return {
            "device": str(self.device),
            "precision": f"{self.precision}, {self._why_precision}",
            "threads": self.threads,
            "layout": self.layout,
        }

    @property
    def mixed(self) -> bool:
        """Whether anything is computed in 16 bits."""
        return self._autocast_dtype is not None or coarse(self.model)

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
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return self.accelerator.distributed_type.name in ("FSDP", "DEEPSPEED", "MEGATRON_LM")

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
        shares_E = None
        if self._experts:
            most = max(self.gather([len(parts)]))
            shares_E = self._experts.shares(parts, minibatch.mean_weights_B, most=most)
        for position, inputs in enumerate(parts):
            last = position == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self._module):
                yield make_microbatch(minibatch, inputs.to(self.device), self.tensor, shares_E)

    def token_logprobs(self, micro: MicroBatch) -> ActionTokens:
        """Run the model; flat log-probs with gradient and everything that a loss may see."""
        with self.autocast():
            found = self._module(micro.inputs, routing="too" if self._experts else "no")
        n = len(micro.weights_N)
        index_N, logprobs_N, entropy_N, *rest = (
            x_N[:n] for x_N in (micro.inputs.rollout_index_N, *found)
        )
        values_N = rest.pop(0) if "values" in self._needs else None
        old_N = micro.old_logprobs_N
        if old_N is None:
            # The policy has not moved since it was sampled from: these *are* the old log-probs.
            old_N = logprobs_N.detach()
            self._remember(micro, old_N)
        dtype = logprobs_N.dtype
        return ActionTokens(
            logprobs_N=logprobs_N,
            old_logprobs_N=old_N.to(dtype) if "old_logprobs" in self._needs else None,
            sampling_logprobs_N=micro.sampling_logprobs_N.to(dtype),
            ref_logprobs_N=_like(logprobs_N, micro.ref_logprobs_N),
            entropy_N=entropy_N if "entropy" in self._needs else entropy_N.detach(),
            advantages_N=micro.advantages_N.to(dtype),
            rollout_index_N=index_N,
            rollouts=len(micro.inputs.rows),
            sampler_differs=micro.minibatch.batch.sampler_differs,
            entropy_rank_N=_like(logprobs_N, micro.entropy_rank_N),
            router_balance_N=self._experts.balance(rest, micro) if self._experts else None,
            values_N=values_N,
            old_values_N=_like(values_N, micro.old_values_N),
            value_targets_N=_like(values_N, micro.value_targets_N),
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

    # -- the state of training --------------------------------------------------------------------

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps tried so far, those skipped for a gradient that was not finite too."""
        return self._attempts

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, by name; tensors are not copied.

        Raises:
            ConfigError: the weights are sharded, so that no process has them all.
        """
        if self.sharded:
            raise ConfigError(
                "checkpoints of a policy that is sharded (FSDP, DeepSpeed) are not supported; set "
                "checkpoints to null"
            )
        return {
            "weights": trained_weights(self._trained),
            "optimizer": optimizer_state(self._trained, self._optimizer),
            "threads": torch.get_num_threads(),
            "version": self.version,
            "attempts": self._attempts,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``; to be called after ``prepare``.

        Raises:
            ConfigError: it was saved with another model.
        """
        load_weights(self._trained, state["weights"])
        load_optimizer(self._trained, self._optimizer, state["optimizer"])
        if self.device.type == "cpu":
            self.threads = (
                keep_threads(int(state["threads"]), self.settings.threads) or self.threads
            )
        self.version = int(state["version"])
        self._attempts = int(state["attempts"])
        self._skipped_in_a_row = int(state["skipped_in_a_row"])

    # -- scoring without gradient -------------------------------------------------------------

    @torch.no_grad()
    def logprobs(self, rollouts: Sequence[Rollout], model: nn.Module | None = None) -> list[Tensor]:
        """Log-probs of each rollout's action tokens under the policy, or under ``model``.

        Returns:
            One tensor of shape ``(action_count,)`` per rollout, in nats, at the sampling
            temperature, on the policy's device.
        """
        return [found[0] for found in self._score(rollouts, model)]

    @torch.no_grad()
    def logprobs_and_entropies(self, rollouts: Sequence[Rollout]) -> list[tuple[Tensor, Tensor]]:
        """The same, with the entropies of the distributions that the tokens were drawn from."""
        return [(found[0], found[1]) for found in self._score(rollouts, None)]

    @torch.no_grad()
    def values(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """What the value head says before each action token, in the same form; ``prepare`` was
        told that something needs it."""
        return [found[2] for found in self._score(rollouts, None)]

    def _score(
        self, rollouts: Sequence[Rollout], model: nn.Module | None
    ) -> list[tuple[Tensor, ...]]:
        if not rollouts:
            return []
        module = self._module if model is None else self._module_of(model)
        parts = self._layout.microbatches(
            rollouts, tokens_per_microbatch=self._tokens_per_microbatch
        )
        with self.autocast():
            return outputs_per_rollout(module, rollouts, parts, self.device)

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

    def _remember(self, micro: MicroBatch, logprobs_N: Tensor) -> None:
        batch = micro.minibatch.batch
        rows = [micro.minibatch.rows[i] for i in micro.inputs.rows]
        counts = [batch.rollouts[i].action_count for i in rows]
        if len(logprobs_N):
            for row, part in zip(rows, logprobs_N.split(counts), strict=True):
                batch.old_logprobs[row] = part

    def _module_of(self, model: nn.Module) -> PolicyModule:
        if id(model) not in self._others:
            model = model.to(self.device)
            self._others[id(model)] = PolicyModule(model, temperature=self._temperature)
        return self._others[id(model)]


def _like(values_N: Tensor | None, x_N: Tensor | None) -> Tensor | None:
    return None if values_N is None or x_N is None else x_N.to(values_N.dtype)
