"""A rollout as the reward model reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grpo_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from grpo_core.types import Rollout
    from grpo_reward_model.config import RenderingConfig


def load_tokenizer(
    path: str, *, revision: str | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The reward model's own tokenizer.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"the reward model's tokenizer {path!r}: {error}") from error
    return cast("PreTrainedTokenizerBase", tokenizer)


def messages_of(rollout: Rollout) -> list[dict[str, Any]]:
    """The conversation with the completion; an assistant's message that the prompt begins is
    continued, not followed by a second one."""
    messages = [dict(message) for message in rollout.prompt.content if not isinstance(message, str)]
    completion = rollout.completion
    assert not isinstance(completion, str)
    if messages and messages[-1].get("role") == "assistant":
        begun = messages.pop()
        joined = f"{begun['content']}{completion[0]['content']}"
        return [*messages, {**begun, "content": joined}, *completion[1:]]
    return [*messages, *completion]


class Renderer:
    """Rollouts to token ids, by the reward model's tokenizer and chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: RenderingConfig) -> None:
        """Raises ``ConfigError`` when the chat template's file cannot be read."""
        self._tokenizer = tokenizer
        self._special = config.add_special_tokens
        self._kwargs = dict(config.chat_template_kwargs)
        self._template = tokenizer.chat_template
        if config.chat_template is not None:
            try:
                self._template = Path(config.chat_template).read_text(encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"the reward model's chat_template: {error}") from error

    def text(self, rollout: Rollout) -> str:
        """Prompt and completion, one after the other, or rendered by the chat template.

        Raises:
            DataError: the prompt is a conversation and there is no template, or it fails.
        """
        prompt = rollout.prompt
        if isinstance(prompt.content, str):
            return prompt.content + rollout.text
        if self._template is None:
            raise DataError(
                f"prompt {prompt.id!r} is a conversation, but the reward model's tokenizer has no "
                "chat template; set the option chat_template to a Jinja file"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                messages_of(rollout), chat_template=self._template, tokenize=False, **self._kwargs
            )
        except Exception as error:
            raise DataError(
                f"prompt {prompt.id!r} cannot be rendered by the reward model's chat template: "
                f"{type(error).__name__}: {error}"
            ) from error
        return str(text)

    def token_ids(self, rollout: Rollout) -> list[int]:
        """The tokens of ``text``. Raises ``DataError`` as it does."""
        # A template writes its own special tokens; a second BOS changes every score.
        special = self._special and not rollout.prompt.conversational
        # Without the length's warning: what is too long is decided by the caller.
        ids = self._tokenizer(self.text(rollout), add_special_tokens=special, verbose=False)
        return [int(i) for i in ids["input_ids"]]
