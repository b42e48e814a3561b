"""Prompts to token ids: the chat template, and what cannot be rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from grpo_core.demo import checkpoint
from grpo_core.errors import DataError
from grpo_core.policy.text import PromptEncoder
from grpo_core.types import Prompt

TOKENIZER = AutoTokenizer.from_pretrained(checkpoint("habit"))


def encoder(**template: Any) -> PromptEncoder:
    return PromptEncoder(TOKENIZER, template)


def rendered(*messages: tuple[str, str]) -> str:
    content = tuple({"role": role, "content": text} for role, text in messages)
    ids = encoder().encode(Prompt(id="p", content=content))
    return str(TOKENIZER.decode(list(ids), skip_special_tokens=False))


def test_a_conversation_ends_with_the_assistants_turn_open() -> None:
    text = rendered(("user", "1 +1"))
    assert text.startswith("<|im_start|>user\n1 +1<|im_end|>")
    assert text.endswith("<|im_start|>assistant\n")


def test_an_unfinished_answer_is_continued() -> None:
    assert rendered(("user", "1 +1"), ("assistant", "<think>1+")).endswith("<think>1+")


@settings(max_examples=50)
@given(st.text(min_size=1).filter(lambda s: not any("\ud800" <= c <= "\udfff" for c in s)))
def test_plain_text_round_trips(text: str) -> None:
    ids = encoder().encode(Prompt(id="p", content=text))
    assert encoder().decode(ids) == text


def test_a_conversation_without_a_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("habit"))
    tokenizer.chat_template = None
    prompt = Prompt(id="row 7", content=({"role": "user", "content": "x"},))
    with pytest.raises(DataError, match=r"'row 7' is a conversation.*model.chat_template"):
        PromptEncoder(tokenizer, {}).encode(prompt)


def test_a_template_that_refuses_names_the_prompt() -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("habit"))
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    prompt = Prompt(id="row 7", content=({"role": "system", "content": "x"},))
    with pytest.raises(DataError, match=r"'row 7' cannot be rendered.*no system role"):
        PromptEncoder(tokenizer, {}).encode(prompt)


def test_template_arguments_arrive(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("habit"))
    tokenizer.chat_template = "{% if enable_thinking %}yes{% else %}no{% endif %}"
    prompt = Prompt(id="p", content=({"role": "user", "content": "x"},))
    for value, text in ((True, "yes"), (False, "no")):
        found = PromptEncoder(tokenizer, {"enable_thinking": value})
        assert found.decode(found.encode(prompt)) == text
