"""What stands between two turns of the policy, as the chat template writes it.

Token ids are never made twice. What was sampled stays as it was sampled; what comes behind it, the
results of tools and the header of the next turn, is cut out of a made-up conversation and encoded
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grpo_core.errors import ConfigError
from grpo_tools.parsing import defused, special_tokens

if TYPE_CHECKING:
    from grpo_core.protocols import Encoder
    from grpo_core.types import Prompt

Schemas = Sequence[Mapping[str, Any]]

_USER: Mapping[str, Any] = {"role": "user", "content": "hello"}
_MARK, _RESULT = "grpoMark7c1e", "grpoResult52d0"

_REMEDY = (
    "Set environment.chat_template to a Jinja file that renders tools, assistant messages with "
    "tool_calls and messages of role 'tool', and that only appends, or to 'chatml' if the model "
    "was trained on ChatML (Qwen and many others)"
)


class Chat:
    """One tokenizer and chat template."""

    def __init__(
        self, encoder: Encoder, eos_token_ids: Sequence[int], chat_template: str | None
    ) -> None:
        """Raises ``ConfigError`` when ``chat_template`` is neither ``"chatml"`` nor a file."""
        self._encoder = encoder
        self._tokenizer: Any = encoder.tokenizer
        self._template = _read(chat_template)
        self.specials = special_tokens(encoder.tokenizer)
        self._ends = [str(self._tokenizer.convert_ids_to_tokens(i)) for i in eos_token_ids]
        self._eos_token_ids = frozenset(eos_token_ids)

    def probe(self, tools: Schemas, *, answers: bool) -> None:
        """Try the template on a conversation, before anything is sampled.

        Args:
            answers: the user speaks again after an assistant message without calls.

        Raises:
            ConfigError: tools, calls or results do not appear, no end-of-sequence token closes an
                assistant message, or what was written before changes when messages are added.
        """
        follow: list[Sequence[Mapping[str, Any]]] = []
        if tools:
            follow.append(call_messages([str(tools[0]["function"]["name"])], [_RESULT]))
        if answers:
            user = {"role": "user", "content": _RESULT}
            follow.append([{"role": "assistant", "content": _MARK}, user])
        for messages in follow:
            try:
                problem = self._problem(tools, messages)
            except Exception as error:
                problem = f"fails on them ({type(error).__name__}: {error})"
            if problem:
                kind = "tools" if messages[-1]["role"] == "tool" else "further user messages"
                raise ConfigError(
                    f"the chat template cannot be used with {kind}: it {problem}. {_REMEDY}"
                )

    def encode(self, prompt: Prompt, tools: Schemas) -> tuple[int, ...]:
        """Token ids of a prompt, in which tools are presented."""
        return self._encoder.encode(prompt, tools=tools, chat_template=self._template)

    def text(self, token_ids: Sequence[int]) -> str:
        """Token ids as text, special tokens included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def after_calls(
        self, names: Sequence[str], results: Sequence[str], tools: Schemas, last_token: int
    ) -> tuple[int, ...]:
        """What follows a turn with these calls: its results, and the next turn's header."""
        texts = [defused(result, self.specials) for result in results]
        names = [defused(name, self.specials) for name in names]
        return self._suffix(tools, call_messages(names, texts), last_token)

    def after_answer(self, text: str, tools: Schemas, last_token: int) -> tuple[int, ...]:
        """What follows a turn without calls: the user's message, and the next turn's header."""
        user = {"role": "user", "content": defused(text, self.specials)}
        return self._suffix(tools, [{"role": "assistant", "content": _MARK}, user], last_token)

    def shortened(self, text: str, tokens: int) -> str:
        """The beginning of a text that is too long."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= tokens:
            return text
        kept = str(self._tokenizer.decode(ids[:tokens], skip_special_tokens=False))
        # Half a character at the edge.
        return kept.rstrip("\ufffd")

    def _suffix(
        self, tools: Schemas, messages: Sequence[Mapping[str, Any]], last_token: int
    ) -> tuple[int, ...]:
        full = self._render([_USER, *messages], tools, generate=True)
        end, start = self._end_of_turn(full)
        # A stop string ends a turn without the token that ends it for the model.
        closing = "" if last_token in self._eos_token_ids else full[end:start]
        ids = self._tokenizer(closing + full[start:], add_special_tokens=False)["input_ids"]
        return tuple(cast("list[int]", ids))

    def _end_of_turn(self, rendered: str) -> tuple[int, int]:
        """Where the token that ends the assistant's message stands, and where it ends."""
        at = rendered.rfind(_MARK)
        found = [(rendered.find(end, at), end) for end in self._ends]
        start, end = min(((i, e) for i, e in found if i >= 0), default=(-1, ""))
        return start, start + len(end)

    def _problem(self, tools: Schemas, messages: Sequence[Mapping[str, Any]]) -> str | None:
        full = self._render([_USER, *messages], tools, generate=True)
        name = str(tools[0]["function"]["name"]) if tools else ""
        asked = self._render([_USER], tools, generate=True)
        if name not in asked:
            return "does not present the tools"
        if _MARK not in full:
            return "leaves out the tool calls of assistant messages"
        if full.rfind(_RESULT) < full.rfind(_MARK):
            return "leaves out what tools return"
        end, _ = self._end_of_turn(full)
        if not 0 <= end < full.rfind(_RESULT):
            return (
                "writes none of the end-of-sequence tokens behind an assistant message "
                f"({', '.join(map(repr, self._ends)) or 'there are none'})"
            )
        # Either will do: Phi-3's ends a conversation that is not to be answered with a token of its
        # own, and Qwen3's may put an empty thought into the header of the next turn alone.
        if not full.startswith((asked, self._render([_USER], tools, generate=False))):
            return (
                "writes the beginning of a conversation in another way once there are more "
                "messages (it is not prefix-preserving)"
            )
        return None

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Schemas, *, generate: bool
    ) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=generate,
                tokenize=False,
                chat_template=self._template,
                **self._encoder.template_kwargs,
            )
        )


def call_messages(names: Sequence[str], results: Sequence[str]) -> list[Mapping[str, Any]]:
    """An assistant message with calls, the mark in the arguments of the last one, and results."""
    # Nine letters and digits: what Mistral's templates insist on.
    ids = [f"call{number:05d}" for number in range(len(names))]
    calls = [
        {"type": "function", "id": i, "function": {"name": name, "arguments": {"x": _MARK}}}
        for i, name in zip(ids, names, strict=True)
    ]
    return [
        {"role": "assistant", "content": "", "tool_calls": calls},
        *(
            {"role": "tool", "name": name, "tool_call_id": i, "content": result}
            for i, name, result in zip(ids, names, results, strict=True)
        ),
    ]


def _read(chat_template: str | None) -> str | None:
    if chat_template is None:
        return None
    if chat_template == "chatml":
        return (files("grpo_tools") / "templates" / "chatml.jinja").read_text("utf-8")
    try:
        return Path(chat_template).read_text("utf-8")
    except OSError as error:
        raise ConfigError(
            f"environment.chat_template is {chat_template!r}, which is neither 'chatml' nor a file "
            f"that can be read: {error}"
        ) from error
