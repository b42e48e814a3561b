import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.builtin.text import JOINERS, prompt_text, shorten, visible
from grpo_core.types import Prompt


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_steers_and_everything_can_be_written(text: str) -> None:
    shown = visible(text)
    shown.encode()
    for char in shown:
        assert char == "\n" or char in JOINERS or unicodedata.category(char)[0] != "C"
        assert char not in "\u2028\u2029"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本語\n", "plain é 日本語\n"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b", r"\x9b"),
        ("a\tb\r", r"a    b\r"),
        ("\u202egnp", r"\u202egnp"),
        ("\ud83d", r"\ud83d"),
        ("\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467"),
    ],
)
def test_what_is_shown_instead(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_shortened_text_keeps_both_ends() -> None:
    text = "question " + "x" * 1_000_000 + " answer"
    short = shorten(text, 90)
    assert short.startswith("question x")
    assert short.endswith("x answer")
    assert "999,926 characters" in short
    assert len(short) < 130
    assert shorten("short", 5) == "short"


def test_the_last_message_stands_for_a_conversation() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    assert prompt_text(Prompt(id="a", content="plain")) == "plain"
    chat = ({"role": "system", "content": "s"}, {"role": "user", "content": parts})
    assert prompt_text(Prompt(id="a", content=chat)) == "what is it?"
    assert prompt_text(Prompt(id="a", content=({"role": "assistant", "content": None},))) == ""
