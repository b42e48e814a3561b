"""Against the real package, with tasksets written as its authors would write them."""

import asyncio
import sys
from pathlib import Path

import pytest

from grpo_core.errors import ConfigError, DataError
from grpo_core.protocols import Task
from grpo_core.testing import PluginSuite
from grpo_core.types import Failed, Prompt, Rollout, ScoreRequest, Span, Value
from grpo_verifiers import VerifiersConfig, VerifiersReward, VerifiersRewardConfig, VerifiersTask

TASKSET = """
import asyncio
import verifiers.v1 as vf

class Config(vf.TasksetConfig):
    words: tuple[str, ...] = ("abc", "hello", "no")
    endless: bool = False

class Data(vf.TaskData):
    answer: str

class Reverse(vf.Task[Data]):
    @vf.reward(weight=1.0)
    async def exact(self, trace: vf.Trace) -> float:
        await asyncio.sleep(0)
        if "crash" in trace.last_reply:
            raise KeyError("lost")
        if "sleep" in trace.last_reply:
            await asyncio.sleep(60)
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.5)
    async def short(self, task: Data, trace: vf.Trace) -> dict[str, float]:
        return {"brief": float(len(trace.last_reply) < 6), "cut": -float(trace.is_truncated)}

    @vf.metric
    async def turns(self, trace: vf.Trace) -> float:
        return float(trace.num_turns)

class Taskset(vf.Taskset[Reverse, Config]):
    @property
    def bounded(self):
        return not self.config.endless

    def load(self):
        for word in self.config.words:
            yield Reverse(
                Data(prompt=f"Reverse: {word}", system_prompt="Answer only.", answer=word[::-1]),
                self.config.task,
            )

__all__ = ["Taskset"]
"""

RUNNING = """
import verifiers.v1 as vf

class Prints(vf.Task):
    async def setup(self, trace, runtime) -> None:
        await runtime.write("expected.txt", b"7")

    @vf.reward
    async def output(self, trace: vf.Trace, runtime: vf.Runtime) -> float:
        done = await runtime.run(["sh", "-c", f"test $(cat expected.txt) = {trace.last_reply}"], {})
        return float(done.exit_code == 0)

class Taskset(vf.Taskset[Prints, vf.TasksetConfig]):
    def load(self):
        yield Prints(vf.TaskData(prompt=[vf_user("3+4?")]))

def vf_user(text):
    from verifiers.v1.types import UserMessage
    return UserMessage(content=text)

__all__ = ["Taskset"]
"""

OTHERS = {
    "needs_box": "class T(vf.Task):\n    NEEDS_CONTAINER = True\n",
    "has_tools": "class T(vf.Task):\n    @classmethod\n    def toolsets(cls, config):\n"
    "        return [object()]\n",
    "stops": "class T(vf.Task):\n    @vf.stop\n    def enough(self, trace: vf.Trace) -> bool:\n"
    "        return True\n",
    "no_prompt": "class T(vf.Task):\n    pass\n",
}
REST = """
class Taskset(vf.Taskset[T, vf.TasksetConfig]):
    def load(self):
        yield T(vf.TaskData(prompt=PROMPT))

__all__ = ["Taskset"]
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"reverse_words_v1": TASKSET, "prints_v1": RUNNING, "empty_v1": ""}
    for name, source in OTHERS.items():
        prompt = "None" if name == "no_prompt" else "'x'"
        sources[name] = f"import verifiers.v1 as vf\nPROMPT = {prompt}\n{source}{REST}"
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    from grpo_verifiers import tasks

    tasks._load.cache_clear()


class TestPlugin(PluginSuite):
    distribution = "grpo-verifiers"
    package = "grpo_verifiers"
    options = {"verifiers": {"taskset": "reverse-words-v1"}}

    # The reward of the same name takes other options; both are built below.
    def test_every_component_is_built_and_keeps_its_protocol(self) -> None:
        assert {r.role for r in self.registrations()} == {"task", "reward"}
        assert isinstance(make(), Task)


def make(taskset: str = "reverse-words-v1", **options: object) -> VerifiersTask:
    return VerifiersTask(VerifiersConfig.model_validate({"taskset": taskset, **options}))


def score(prompt: Prompt, *texts: str, cut: bool = False, **options: object) -> list[object]:
    rollouts = tuple(
        Rollout(
            prompt=prompt,
            prompt_ids=(1,),
            group=0,
            sample=sample,
            spans=(Span(token_ids=(2,), logprobs=(-0.5,), policy_version=0),),
            text=text,
            finish_reason="length" if cut else "stop",
        )
        for sample, text in enumerate(texts)
    )
    reward = VerifiersReward(VerifiersRewardConfig.model_validate(options))
    return list(asyncio.run(reward.score(ScoreRequest(step=0, rollouts_B=rollouts))))


def test_tasks_are_prompts() -> None:
    prompts = make(eval_size=1).train_prompts()
    assert [p.id for p in prompts] == ["train/0", "train/1"]
    assert prompts[1].content == (
        {"role": "system", "content": "Answer only."},
        {"role": "user", "content": "Reverse: hello"},
    )
    (held_out,) = make(eval_size=1).eval_prompts()
    assert (held_out.id, held_out.content[-1]["content"]) == ("eval/2", "Reverse: no")
    assert len(make(args={"words": ["x"]}).train_prompts()) == 1


def test_a_finished_rollout_gets_the_weighted_sum() -> None:
    prompt = make().train_prompts()[1]
    assert score(prompt, "olleh", " olleh\n", "hello!", "a long answer") == [
        Value(value=1.5),
        Value(value=1.5),
        Value(value=0.0),
        Value(value=0.0),
    ]
    assert score(prompt, "olleh", cut=True) == [Value(value=1.0)]


def test_what_raises_or_hangs_has_failed_and_the_others_have_values() -> None:
    prompt = make().train_prompts()[0]
    crashed, slept, fine = score(prompt, "crash", "sleep", "cba", timeout=0.2)
    assert isinstance(crashed, Failed)
    assert (crashed.kind, "KeyError: 'lost'" in crashed.reason) == ("error", True)
    assert slept == Failed(kind="timeout", reason="no score within 0.2 s")
    assert fine == Value(value=1.5)


def test_a_taskset_with_a_runtime() -> None:
    prompt = make("prints-v1").train_prompts()[0]
    assert prompt.content == ({"role": "user", "content": "3+4?"},)
    with pytest.raises(ConfigError, match="setup, output of Prints need a runtime"):
        score(prompt, "7")
    assert score(prompt, "7", "8", runtime="subprocess") == [Value(value=1.0), Value(value=0.0)]


@pytest.mark.parametrize(
    ("taskset", "options", "message"),
    [
        ("nowhere-v1", {}, "no taskset 'nowhere-v1'.*install its package"),
        ("empty-v1", {}, "'empty-v1' is no taskset"),
        ("reverse-words-v1", {"args": {"wrods": []}}, "refuses its args(.|\n)*wrods"),
        ("reverse-words-v1", {"args": {"endless": True}}, "never ends; set `size`"),
        ("reverse-words-v1", {"size": 9}, "has 3 tasks; size and eval_size ask for 9"),
        ("reverse-words-v1", {"eval_size": 3}, "has 3 tasks"),
        ("needs-box", {}, "needs a container; only single answers"),
        ("has-tools", {}, "offers tools"),
        ("stops", {}, "steps in between turns"),
        ("no-prompt", {}, "task 0 .* has no prompt"),
    ],
)
def test_what_cannot_be_used_is_said(
    taskset: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        make(taskset, **options)


def test_an_endless_taskset_is_read_as_far_as_needed() -> None:
    task = make(args={"endless": True}, size=2, eval_size=1)
    assert (len(task.train_prompts()), len(task.eval_prompts())) == (2, 1)


def test_prompts_of_other_tasks_are_refused() -> None:
    with pytest.raises(DataError, match="has no column 'verifiers'"):
        score(Prompt(id="train/0", content="x"), "y")
    with pytest.raises(DataError, match="has not written"):
        score(Prompt(id="train/0", content="x", columns={"verifiers": "[]"}), "y")
