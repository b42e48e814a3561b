"""Against the real package: its entries as prompts, its verifiers as reward."""

from collections import Counter

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS
from reasoning_gym.utils import SYSTEM_PROMPTS

from grpo_core.errors import ConfigError, DataError
from grpo_core.protocols import BuildContext, Task
from grpo_core.testing import PluginSuite
from grpo_core.trainer.prompts import PromptStream
from grpo_core.types import Failed, Prompt, Rollout, ScoreRequest, Span, Value
from grpo_reasoning_gym import (
    ReasoningGym,
    ReasoningGymConfig,
    ReasoningGymReward,
    ReasoningGymRewardConfig,
)

EASY = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


class TestPlugin(PluginSuite):
    distribution = "grpo-reasoning-gym"
    package = "grpo_reasoning_gym"
    options = {"reasoning-gym": {"dataset": "chain_sum"}}

    # The reward of the same name takes other options; both are built below.
    def test_every_component_is_built_and_keeps_its_protocol(self) -> None:
        assert {r.role for r in self.registrations()} == {"task", "reward"}
        assert isinstance(make(dataset="chain_sum"), Task)


def make(seed: int = 7, **options: object) -> ReasoningGym:
    context = BuildContext(role="task", name="reasoning-gym", seed=seed, run_dir=None)
    return ReasoningGym(ReasoningGymConfig.model_validate(options), context)


def score(prompt: Prompt, *texts: str, **options: object) -> list[object]:
    rollouts = tuple(
        Rollout(
            prompt=prompt,
            prompt_ids=(1,),
            group=0,
            sample=sample,
            spans=(Span(token_ids=(2,), logprobs=(-0.5,), policy_version=0),),
            text=text,
            finish_reason="stop",
        )
        for sample, text in enumerate(texts)
    )
    reward = ReasoningGymReward(ReasoningGymRewardConfig.model_validate(options))
    return list(reward.score(ScoreRequest(step=0, rollouts_B=rollouts)))


def test_prompts_are_the_packages_own_entries() -> None:
    prompts = make(dataset="chain_sum", size=5, options=EASY).train_prompts()
    theirs = reasoning_gym.create_dataset("chain_sum", size=5, seed=7, **EASY)
    assert [p.content[-1]["content"] for p in prompts] == [e["question"] for e in theirs]
    assert [p.columns["answer"] for p in prompts] == [e["answer"] for e in theirs]
    assert prompts[0].content[0] == {"role": "system", "content": SYSTEM_PROMPTS["default"]}
    assert prompts[3].id == "chain_sum/train/3"


def test_plain_prompts_and_system_prompts_of_ones_own() -> None:
    (prompt,) = make(
        dataset="chain_sum", size=1, conversational=False, system_prompt="Be brief."
    ).train_prompts()
    assert str(prompt.content).startswith("Be brief.\n\nState the final answer")
    (prompt,) = make(dataset="chain_sum", size=1, system_prompt=None).train_prompts()
    assert [m["role"] for m in prompt.content] == ["user"]


def test_the_score_is_the_verifiers() -> None:
    prompt = make(dataset="chain_sum", size=1).train_prompts()[0]
    right = prompt.columns["answer"]
    assert score(
        prompt, f"so <answer>{right}</answer>", "<answer>x</answer>", right, f"<answer>{right}"
    ) == [Value(value=1.0), Value(value=0.0), Value(value=0.0), Value(value=0.0)]
    assert score(prompt, f"<answer>1x</answer><answer> {right} </answer>") == [Value(value=1.0)]
    assert score(prompt, f" {right}\n", answer_tag=None) == [Value(value=1.0)]
    assert score(prompt, f"<final>{right}</final>", answer_tag="final") == [Value(value=1.0)]


def test_a_verifier_that_accepts_many_answers() -> None:
    """Countdown has no single right answer: any expression that comes to the target counts."""
    for prompt in make(dataset="countdown", size=3).train_prompts():
        entry = reasoning_gym.create_dataset("countdown", size=3, seed=7)[
            int(prompt.id.rpartition("/")[2])
        ]
        expression = entry["metadata"]["expression"]
        swapped = f"({expression})"
        found = score(prompt, f"<answer>{swapped}</answer>", "<answer>1</answer>")
        assert found[0] == Value(value=1.0)
        assert isinstance(found[1], Value)
        assert found[1].value < 1.0


# One of each category that the package has, the slow generators left out.
SOME = (
    *("basic_arithmetic", "base_conversion", "caesar_cipher", "countdown", "family_relationships"),
    *("fraction_simplification", "gcd", "leg_counting", "number_sorting", "propositional_logic"),
    *("quantum_lock", "rectangle_count", "shortest_path", "simple_equations", "spell_backward"),
)


@pytest.mark.parametrize("name", SOME)
def test_the_datasets_own_answer_is_right(name: str) -> None:
    assert name in DATASETS
    for prompt in make(dataset=name, size=2).train_prompts():
        answer = prompt.columns["answer"]
        if answer is not None:
            (outcome,) = score(prompt, f"<think>..</think><answer>{answer}</answer>")
            assert isinstance(outcome, Value)
            assert outcome.value == pytest.approx(1.0), prompt


def test_held_out_prompts_are_none_of_training(caplog: pytest.LogCaptureFixture) -> None:
    task = make(dataset="chain_sum", size=60, eval_size=60, options=EASY)
    train = {p.content[-1]["content"] for p in task.train_prompts()}
    held_out = [p.content[-1]["content"] for p in task.eval_prompts()]
    assert held_out
    assert train.isdisjoint(held_out)
    assert f"{60 - len(held_out)} of 60 held-out prompts" in caplog.text
    with pytest.raises(DataError, match="among the training prompts"):
        make(dataset="chain_sum", size=4000, eval_size=1, options=EASY)


def test_several_datasets_are_drawn_by_weight() -> None:
    task = make(
        datasets=[
            {"dataset": "chain_sum", "weight": 3},
            {"dataset": "gcd", "weight": 1},
        ],
        size=20,
        eval_size=4,
    )
    stream = PromptStream(task.train_prompts(), per_step=4, seed=0)
    for step in range(10):
        assert Counter(p.source for p in stream.at(step)) == {"chain_sum": 3, "gcd": 1}
    assert [p.source for p in task.eval_prompts()[:4]] == ["chain_sum", "gcd"] * 2
    sets = task.eval_sets()
    assert {name: {p.source for p in found} for name, found in sets.items()} == {
        "chain_sum": {"chain_sum"},
        "gcd": {"gcd"},
    }
    assert list(make(dataset="gcd", eval_size=2).eval_sets()) == [""]


def test_a_prompt_is_the_same_in_another_process_and_another_seed_is_not() -> None:
    one, again, other = (make(seed, dataset="gcd", size=3).train_prompts()[2] for seed in (1, 1, 2))
    assert one == again
    assert one.content != other.content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "chain_sums"}, "no dataset 'chain_sums'; did you mean chain_sum"),
        ({"dataset": "chain_sum", "options": {"terms": 2}}, "refuses its options.*min_terms"),
        ({"dataset": "chain_sum", "options": {"min_terms": 0}}, "refuses its options"),
        ({"dataset": "chain_sum", "options": {"seed": 1}}, "seed is an option of the task"),
        ({}, "either `dataset` or `datasets`"),
        ({"datasets": [{"dataset": "gcd"}, {"dataset": "gcd"}]}, "two datasets are called 'gcd'"),
    ],
)
def test_what_cannot_be_made_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        make(**options)


def test_prompts_of_other_tasks_are_refused() -> None:
    with pytest.raises(DataError, match="has no column 'reasoning_gym'"):
        score(Prompt(id="train/0", content="x"), "y")
    with pytest.raises(DataError, match="has not written"):
        score(Prompt(id="train/0", content="x", columns={"reasoning_gym": "{}"}), "y")


def test_a_verifier_that_raises_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = make(dataset="gcd", size=1).train_prompts()[0]
    monkeypatch.setattr(DATASETS["gcd"][0], "score_answer", lambda *_, **__: 1 / 0)
    (outcome,) = score(prompt, "<answer>1</answer>")
    assert isinstance(outcome, Failed)
    assert "ZeroDivisionError" in outcome.reason
