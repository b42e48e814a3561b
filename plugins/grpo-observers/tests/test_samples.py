from story import ADVANTAGES, ROLLOUTS, SCORED, rollout

from grpo_core.types import Prompt
from grpo_observers.samples import prompt_text, sample_table


def test_rows_are_whole_groups_with_every_reward_and_why_one_is_missing() -> None:
    table = sample_table("t", 3, ROLLOUTS, SCORED, ADVANTAGES, rows=3, characters=1000)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(r["group"], r["sample"]) for r in rows] == [(0, 0), (0, 1), (1, 0)]
    assert [r["reward/exact-answer"] for r in rows] == [3.0, 2.0, 1.0]
    assert [r["advantage"] for r in rows] == [-1.5, 1.5, -0.5]
    assert [r["reward/judge"] for r in rows] == [None, None, None]
    assert [r["no value"] for r in rows] == [
        "judge: abstained",
        "judge: abstained",
        "judge: timeout: no answer",
    ]
    assert {r["step"] for r in rows} == {3}
    assert rows[0]["prompt"] == "[user] 0+3=?"


def test_an_evaluation_without_scores_has_no_empty_columns() -> None:
    table = sample_table("t", 0, ROLLOUTS, None, None, rows=9, characters=1000)
    assert len(table.rows) == 4
    assert not any("reward" in c or c in ("advantage", "no value") for c in table.columns)


def test_text_can_be_written_and_is_bounded() -> None:
    long = rollout(0, 0, "a" * 900 + "\ud83d" + "the end")
    table = sample_table("t", 0, [long], None, None, rows=1, characters=100)
    text = table.rows[0][table.columns.index("completion")]
    text.encode()
    assert text.startswith("a" * 66)
    assert text.endswith("the end")
    assert len(text) < 140


def test_a_conversation_is_shown_whole() -> None:
    image = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    prompt = Prompt(
        id="a",
        content=({"role": "system", "content": "be brief"}, {"role": "user", "content": image}),
    )
    assert prompt_text(prompt) == "[system] be brief\n\n[user] <image> what is it?"
