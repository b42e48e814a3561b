"""Prompts to token ids, by the policy's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from grpo_core.types import Prompt


class PromptEncoder:
    """Renders prompts; the ids that it returns are what is sampled from and trained on."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs)

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
        content = prompt.content
        if isinstance(content, str):
            ids = self.tokenizer(content)["input_ids"]
        else:
            if chat_template is None and self.tokenizer.chat_template is None:
                raise DataError(
                    f"prompt {prompt.id!r} is a conversation, but the tokenizer has no chat "
                    "template; set model.chat_template to a Jinja file, or give plain text"
                )
            # A conversation that ends with the assistant is to be continued, not answered.
            unfinished = bool(content) and content[-1].get("role") == "assistant"
            try:
                ids = self.tokenizer.apply_chat_template(
                    [dict(message) for message in content],
                    add_generation_prompt=not unfinished,
                    continue_final_message=unfinished,
                    tokenize=True,
                    return_dict=False,
                    tools=[dict(schema) for schema in tools] or None,
                    chat_template=chat_template,
                    **self.template_kwargs,
                )
            except Exception as error:
                raise DataError(
                    f"prompt {prompt.id!r} cannot be rendered by the chat template: "
                    f"{type(error).__name__}: {error}"
                ) from error
        if not ids:
            raise DataError(f"prompt {prompt.id!r} is empty: it renders to no tokens")
        return tuple(ids)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Text without special tokens; nothing is cleaned up, so that rewards see what is there."""
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
