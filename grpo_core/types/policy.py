"""The policy as plugins see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from grpo_core.settings import ModelSettings
    from grpo_core.types.prompts import Prompt
    from grpo_core.types.rollouts import Rollout


class Encoder(Protocol):
    """Text and conversations to token ids, by the policy's own tokenizer and chat template."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """``model.chat_template_kwargs``, which every rendering gets."""

    def encode(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        chat_template: str | None = None,
    ) -> tuple[int, ...]:
        """Token ids of a prompt, never empty.

        Args:
            tools: JSON schemas of functions for the chat template to present.
            chat_template: Jinja text in place of the tokenizer's own.

        Raises:
            DataError: the prompt renders to nothing, or needs a chat template that is missing.
        """


class PolicyHandle(Protocol):
    """What references, savers and generators may do with the policy."""

    @property
    def model(self) -> nn.Module:
        """The unwrapped model, a ``PreTrainedModel`` or a ``PeftModel``."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion: the generation config's and the tokenizer's."""

    @property
    def version(self) -> int:
        """Optimizer steps done."""

    @property
    def settings(self) -> ModelSettings: ...

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files."""

    @property
    def has_adapter(self) -> bool:
        """Whether LoRA adapters are being trained in place of all weights."""

    def logprobs(self, rollouts: Sequence[Rollout], model: nn.Module | None = None) -> list[Tensor]:
        """Log-probs of each rollout's action tokens, without gradient, at the sampling
        temperature, under the policy or under another ``model`` of the same tokenizer.

        Returns one float tensor of shape ``(action_count,)`` per rollout, on the policy's device.
        """

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """The base model alone, within the context; raises ``ConfigError`` without an adapter."""
