"""Completions that go on after an interruption: as if there had been none, wherever it was."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest

from grpo_generator_vllm_server.answer import Piece
from grpo_generator_vllm_server.drafts import Call, GroupDraft
from grpo_generator_vllm_server.request import Draw, first_draw
from grpo_generator_vllm_server.sampling import decoder


@pytest.fixture(scope="module")
def tokenizer(model_folder) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture
def decode(tokenizer) -> Any:
    return decoder(tokenizer)


def piece(ids: tuple[int, ...], finish: Any = None, first: int = 0) -> Piece:
    logprobs = tuple(-0.01 * (first + at) for at in range(len(ids)))
    return Piece(token_ids=ids, logprobs=logprobs, finish=finish)


def plain(calls: Sequence[Call]) -> list[tuple[Draw, tuple[int, ...]]]:
    return [(call.draw, call.members) for call in calls]


def engine_sees(decode, ids: tuple[int, ...], stops: tuple[str, ...]) -> Piece:
    """As an engine ends a completion: with the token whose text completes a stop string."""
    for end in range(1, len(ids) + 1):
        if any(stop in decode(ids[:end]) for stop in stops):
            return piece(ids[:end], "stop")
    return piece(ids, "length")


@pytest.mark.parametrize("stops", [("=3",), ("mod 10", "2+"), ("1 +2 =3 *4",), ("zzz",), ("é=",)])
def test_a_stop_string_across_any_cut_ends_the_completion_where_it_would_have(
    tokenizer, decode, make_request, stops: tuple[str, ...]
) -> None:
    text = "9 *7 -1 +2 =3 *4 é=5 mod 10=6 2+2 and on"
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    assert len(ids) > 20
    # The prompt ends with what a stop string begins with, which must not count.
    prompt = tuple(tokenizer.encode("1 +2 =", add_special_tokens=False))
    request = make_request(
        prompt_ids_P=(prompt,),
        group_size=1,
        sampling={"max_tokens": len(ids), "stop": stops},
    )
    whole = engine_sees(decode, ids, stops)
    for cut in range(1, len(whole.token_ids)):
        for second in (None, *range(cut + 1, len(whole.token_ids))):
            group = GroupDraft.of_group(request, 0, decode)
            cuts = [cut] if second is None else [cut, second]
            for version, (begin, end) in enumerate(zip([0, *cuts], [*cuts, None], strict=True)):
                if group.is_finished:
                    break
                (call,) = group.due()
                draw = call.draw
                assert draw.token_ids == (*prompt, *ids[:begin])
                assert draw.max_tokens == len(ids) - begin
                # The engine reads each call's text anew, so it sees nothing across a cut.
                seen = engine_sees(decode, ids[begin:], stops)
                if end is not None and len(seen.token_ids) > end - begin:
                    seen = piece(ids[begin:end])
                group.take(call.members, [seen], version)
            (found,), oldest = group.finished()
            assert oldest == 0
            assert found.token_ids == whole.token_ids, (cut, second)
            assert found.finish_reason == whole.finish
            assert len(found.logprobs) == len(found.policy_versions or found.logprobs)
            assert len(found.logprobs) == len(found.token_ids)


def test_members_that_are_finished_stay_and_the_others_go_on(decode, make_request) -> None:
    request = make_request(prompt_ids_P=((5, 6),), group_size=4, sampling={"max_tokens": 5})
    group = GroupDraft.of_group(request, 0, decode)
    first = first_draw(request, 0)
    assert plain(group.due()) == [(first, (0, 1, 2, 3))]
    # Interrupted before it began: the same call again, with the same random numbers.
    group.take(range(4), [piece(())] * 4, 3)
    assert plain(group.due(range(4))) == [(first, (0, 1, 2, 3))]
    group.take(range(4), [piece((7, 2), "stop"), piece((8, 9)), piece(()), piece((4,))], 3)
    due = plain(group.due(range(4)))
    assert [members for _, members in due] == [(1,), (2,), (3,)]
    assert [draw.token_ids for draw, _ in due] == [(5, 6, 8, 9), (5, 6), (5, 6, 4)]
    assert [draw.max_tokens for draw, _ in due] == [3, 5, 4]
    assert {draw.count for draw, _ in due} == {1}
    # Three of four members are three quarters of the load.
    assert sum(call.share for call in group.due()) == Fraction(3, 4)
    # One that has no token yet draws the numbers that it would have drawn.
    assert due[1][0].seed == first.seed + 2
    assert len({draw.seed for draw, _ in due} | {first.seed + i for i in range(4)}) == 6
    group.take([1], [piece((1,))], 4)
    ((again, members),) = plain(group.due([1]))
    assert members == (1,)
    assert again.seed != due[0][0].seed
    group.take([1], [piece((1, 1), "length")], 5)
    group.take([2], [piece((3, 2), "stop")], 5)
    assert not group.is_finished
    group.take([3], [piece((2,), "stop")], 5)
    assert group.is_finished
    assert group.due([3]) == []
    completions, oldest = group.finished()
    assert oldest == 3
    assert [c.policy_versions for c in completions] == [
        None,
        (3, 3, 4, 5, 5),
        (5, 5),
        (3, 5),
    ]
    assert [c.finish_reason for c in completions] == ["stop", "length", "stop", "stop"]
    assert [s.policy_version for s in completions[1].spans(oldest)] == [3, 4, 5]


def test_at_temperature_0_one_is_sampled_and_counted_for_all(decode, make_request) -> None:
    request = make_request(prompt_ids_P=((5,),), group_size=3, sampling={"temperature": 0.0})
    group = GroupDraft.of_group(request, 0, decode)
    group.take([0], [piece((7,))], 1)
    ((draw, members),) = plain(group.due())
    assert (draw.count, members) == (1, (0,))
    group.take([0], [piece((2,), "stop")], 2)
    completions, _ = group.finished()
    assert [c.policy_versions for c in completions] == [(1, 2)] * 3
