"""From what the policy said to the calls that it makes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from grpo_tools.config import LoopConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call. Example: ``Call(name="add", arguments={"a": 1, "b": 2})``."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why it cannot be understood; the model is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One turn of the policy."""

    content: str
    """What is not a call, special tokens left out."""
    calls: tuple[Call, ...]

    @property
    def message(self) -> dict[str, Any]:
        """As an assistant message."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.name, "arguments": dict(call.arguments)},
                }
                for call in self.calls
            ]
        return message


Parser = Callable[[str, Callable[[], str]], Said]
"""``parser(text, prefix)``: a turn, and a function that decodes what came before it, special tokens
in both. Few parsers look at the prefix, which may be long."""


def make_parser(config: LoopConfig, tokenizer: PreTrainedTokenizerBase) -> Parser:
    """The parser that the options ask for.

    Raises:
        ConfigError: the tokenizer has no response template, and it is to be used.
    """
    has_template = any(
        getattr(tokenizer, name, None) for name in ("response_template", "response_schema")
    )
    if config.parser == "response-template" and not has_template:
        raise ConfigError(
            "environment.parser is 'response-template', but the tokenizer has none; set it to "
            "'pattern', with call_pattern where calls are not written as Hermes does"
        )
    if config.parser == "pattern" or not has_template:
        return _Pattern(config.call_pattern, tokenizer)
    return _ResponseTemplate(tokenizer)


class _Pattern:
    def __init__(self, pattern: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pattern = re.compile(pattern, re.DOTALL)
        self._specials = special_tokens(tokenizer)

    def __call__(self, text: str, prefix: Callable[[], str]) -> Said:
        # An end token is no part of a call that was not closed.
        text = without(text, self._specials, at_end_only=True)
        calls = tuple(_read_json(found) for found in self._pattern.findall(text))
        content = self._pattern.sub("", text) if calls else text
        return Said(content=without(content, self._specials).strip(), calls=calls)


class _ResponseTemplate:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        # transformers 5.0 had no prefix yet; later ones insist on it.
        self._takes_prefix = (
            "prefix" in inspect.signature(self._tokenizer.parse_response).parameters
        )

    def __call__(self, text: str, prefix: Callable[[], str]) -> Said:
        options = {"prefix": prefix()} if self._takes_prefix else {}
        try:
            message = self._tokenizer.parse_response(text, **options)
            calls = tuple(_read_call(c.get("function", c)) for c in message.get("tool_calls") or ())
        except Exception as error:
            problem = f"the call could not be parsed: {error}"
            return Said(content=text, calls=(Call(name="", problem=problem),))
        return Said(content=str(message.get("content") or ""), calls=calls)


def _read_json(text: str) -> Call:
    try:
        return _read_call(json.loads(text))
    except json.JSONDecodeError as error:
        return Call(name="", problem=f"the call is not valid JSON: {error}")


def _read_call(found: object) -> Call:
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
        return Call(name="", problem='a call is an object with "name" and "arguments"')
    arguments = found.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            return Call(name=found["name"], problem=f"the arguments are not valid JSON: {error}")
    if not isinstance(arguments, Mapping):
        return Call(name=found["name"], problem="the arguments are not an object")
    return Call(name=found["name"], arguments=dict(arguments))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Tokens that steer the model and are no text, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
    return tuple(sorted(filter(None, found), key=lambda token: (-len(token), token)))


def without(text: str, tokens: Sequence[str], *, at_end_only: bool = False) -> str:
    """Text without some tokens."""
    if at_end_only:
        for token in tokens:
            text = text.removesuffix(token)
        return text
    for token in tokens:
        text = text.replace(token, "")
    return text


def defused(text: str, tokens: Sequence[str]) -> str:
    """Text in which no special token is left: a web page that says ``<|im_end|>`` must not end the
    tool's turn and speak as the user."""
    for token in tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
