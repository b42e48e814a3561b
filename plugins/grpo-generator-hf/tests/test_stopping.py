"""Stop strings found token by token, against decoding everything anew after each token."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerFast

from grpo_core.errors import ConfigError
from grpo_generator_hf.stopping import StopStrings

TEXT = "so</answer>. naïve 東京 café 🙂🙂 ]]>\n\n<answer>12</answer>\n\nthen</think>é"


def first_hit(tokenizer: PreTrainedTokenizerFast, ids: list[int], stop: list[str]) -> int | None:
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)
        if any(string in text for string in stop):
            return count
    return None


def found_at(tokenizer: PreTrainedTokenizerFast, ids: list[int], stop: list[str]) -> int | None:
    matcher = StopStrings(
        lambda some: tokenizer.decode(some, clean_up_tokenization_spaces=False), stop
    )
    for count, token_id in enumerate(ids, 1):
        if matcher.completed_by(token_id):
            return count
    return None


def spelled(tokenizer: PreTrainedTokenizerFast, text: str, rng: random.Random) -> list[int]:
    """Token ids of a text cut at random bytes, as a policy may sample them."""
    alphabet = tokenizer.backend_tokenizer.pre_tokenizer
    ids: list[int] = []
    mapped = "".join(piece for piece, _ in alphabet.pre_tokenize_str(text))
    vocabulary = tokenizer.get_vocab()
    at = 0
    while at < len(mapped):
        fitting = [n for n in range(1, 12) if mapped[at : at + n] in vocabulary]
        length = rng.choice([n for n in fitting if at + n <= len(mapped)])
        ids.append(vocabulary[mapped[at : at + length]])
        at += length
    return ids


def test_the_tokenizer_is_worth_testing_with(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert any("</" in piece and len(piece) > 3 for piece in pieces)
    rng = random.Random(0)
    assert len({tuple(spelled(tokenizer, TEXT, rng)) for _ in range(10)}) == 10
    assert tokenizer.decode(spelled(tokenizer, TEXT, rng)) == TEXT


@pytest.mark.parametrize("seed", range(4))
def test_as_early_as_decoding_everything(tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        text = "".join(rng.choice([TEXT, "x", "é", "🙂", "</", "answer"]) for _ in range(3))
        ids = spelled(tokenizer, text, rng)
        start = rng.randrange(len(text))
        stop = [text[start : start + rng.randint(1, 9)], "never there"]
        expected = first_hit(tokenizer, ids, stop)
        assert expected is not None
        assert found_at(tokenizer, ids, stop) == expected


def test_bytes_that_are_no_text(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(1)
    for length in (0, 3, 15, 16, 17, 40):
        noise = [rng.randrange(1, 257) for _ in range(length)]
        ids = [*noise, *tokenizer.encode("abc</think>d")]
        assert found_at(tokenizer, ids, ["</think>"]) == first_hit(tokenizer, ids, ["</think>"])


def test_a_token_that_ends_the_string_and_begins_a_character() -> None:
    pieces = [b"n", b"</think>\xc3", b"\xa9"]

    def decode(ids: list[int]) -> str:
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    matcher = StopStrings(decode, ["</think>"])
    assert [matcher.completed_by(0), matcher.completed_by(1)] == [False, True]


def test_special_tokens_can_be_stop_strings(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [*tokenizer.encode("so"), tokenizer.eos_token_id, *tokenizer.encode("on")]
    assert found_at(tokenizer, ids, ["<|end|>"]) == len(tokenizer.encode("so")) + 1


def test_no_strings_never_stop_and_never_decode() -> None:
    def decode(ids: list[int]) -> str:
        raise AssertionError(ids)

    assert not StopStrings(decode, ()).completed_by(3)


def test_an_empty_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty string stops everything"):
        StopStrings(lambda ids: "", ["a", ""])
