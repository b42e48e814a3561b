"""The bundled tokenizer encodes any text, and its tags survive decoding."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo_core.demo import checkpoint
from grpo_core.demo.arithmetic import Arithmetic
from grpo_core.demo.config import ArithmeticConfig
from grpo_core.demo.measuring import prompt_token_ids
from grpo_core.demo.tokenizer import TAGS, chat_text
from grpo_core.demo.warm_start import new_tokenizer

tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint("habit"))


@given(st.text())
def test_any_text_comes_back_as_it_was(text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(st.lists(st.one_of(st.sampled_from(TAGS), st.text(max_size=8))).map("".join))
def test_text_with_tags_comes_back_even_where_special_tokens_are_skipped(text: str) -> None:
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    for special in tokenizer.all_special_tokens:
        text = text.replace(special, "")
    assert decoded == text


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_one_token_and_not_special(tag: str) -> None:
    (token_id,) = tokenizer(tag)["input_ids"]
    assert token_id not in tokenizer.all_special_ids
    assert tokenizer.decode([token_id], skip_special_tokens=True) == tag


def test_the_end_token_closes_a_turn_and_padding_is_another_token() -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=True) == ""


def test_a_prompt_is_22_tokens_and_every_digit_is_its_own() -> None:
    prompts = Arithmetic(ArithmeticConfig()).train_prompts()[:64]
    assert {len(ids) for ids in prompt_token_ids(tokenizer, prompts)} == {22}
    digits = {tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"}
    for prompt, ids in zip(prompts, prompt_token_ids(tokenizer, prompts), strict=True):
        assert sum(token_id in digits for token_id in ids) == sum(c.isdigit() for c in prompt.id)


def test_the_template_opens_the_assistants_turn_only_on_request() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 +3 mod 10=?"},
    ]
    closed = tokenizer.apply_chat_template(messages, tokenize=False)
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert closed == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 +3 mod 10=?<|im_end|>\n"
    )
    assert opened == closed + "<|im_start|>assistant\n"


def test_the_training_text_is_what_the_template_writes() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert chat_text("q", "a") == tokenizer.apply_chat_template(messages, tokenize=False)


def test_training_the_tokenizer_again_gives_the_bundled_one(tmp_path: Path) -> None:
    again = new_tokenizer()
    again.save_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (checkpoint("habit") / name).read_text()
    bundled = json.loads((checkpoint("habit") / "tokenizer_config.json").read_text())
    assert bundled["padding_side"] == "left"
