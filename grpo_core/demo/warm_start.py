"""Make the bundled checkpoints: `python -m grpo_core.demo.warm_start --output DIR [--seed N]`.

Every stage ends on an accuracy measured on held-out prompts at temperature 1, never on a step
count: accuracy climbs from 0.4 to 0.8 within 100 steps, so that one count gives very different
models for different seeds and machines.

1. Skill: demonstrations that reason. Where accuracy passes `Goals.plain` the checkpoint `plain` is
   saved, and training goes on to `Goals.skill`.
2. Habit: most demonstrations now answer at once, which the model cannot do in its head. Where
   accuracy has settled within `Goals.habit` the checkpoint `habit` is saved.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from grpo_core.demo.arithmetic import Arithmetic, ChainPrompts
from grpo_core.demo.chain import question, reasoned_completion
from grpo_core.demo.config import ArithmeticConfig
from grpo_core.demo.measuring import Measurement, measure
from grpo_core.demo.saving import measure_saved, save_weights, write_record
from grpo_core.demo.supervised import demonstrations, supervised_steps
from grpo_core.demo.tokenizer import chat_text, train_tokenizer

ROWS_PER_STEP = 64
SKILL_LEARNING_RATE = 3e-3
HABIT_LEARNING_RATE = 5e-4
MAX_STEPS = 1000

IMMEDIATE_SHARE = 0.75
"""Share of the habit demonstrations that answer at once. Measured with 0.75: reasoning in 27 % of
completions, accuracy 0.26, from which 60 GRPO steps reach 0.95; with 0.6 accuracy stays above 0.4,
which leaves little to see."""

SKILL_CHECK_STEPS, HABIT_CHECK_STEPS = 10, 5
CHECK_PROMPTS = 256
"""Fresh ones for each check; the standard error of an accuracy of 0.5 is then 0.03."""

RECORD_PROMPTS = 2048
"""For what `warm_start.json` records. They are never used for stopping a stage: the accuracy that
stops one is a lucky draw, and quoting it would promise too much."""

SETTLED_CHECKS = 3
"""Checks in a row that must lie within `Goals.habit`. One is not enough: measured, accuracy fell to
0.15 after 5 steps, rose to 0.62 after 10 and settled only after 35."""


@dataclass(frozen=True, kw_only=True)
class Goals:
    """Held-out accuracies at temperature 1, in 0..1, at which the stages end."""

    plain: float = 0.5
    skill: float = 0.93
    habit: tuple[float, float] = (0.15, 0.35)
    habit_recorded: tuple[float, float] = (0.1, 0.4)
    """What the written `habit` must have. With less GRPO samples too little reasoning to find its
    way back to it; with more there is little to see."""


class Checks:
    """Accuracy of the model in training, each time on held-out prompts not used before."""

    def __init__(
        self, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, held_out: ChainPrompts
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._prompts = (
            held_out[first : first + CHECK_PROMPTS]
            for first in range(0, len(held_out), CHECK_PROMPTS)
        )

    def measure(self, stage: str, step: int) -> Measurement:
        """Measure, and print one line of progress."""
        found = measure(self._model, self._tokenizer, next(self._prompts))
        print(
            f"{stage} step {step}: accuracy {found.accuracy:.3f}, reasoning {found.reasoning:.3f}",
            flush=True,
        )
        return found


def new_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of every checkpoint made here, whatever the seed.

    Its texts are drawn with seed 0 always: ` +`, ` -` and ` *` are about equally frequent, so that
    with other draws their merges change places, and checkpoints could not share token ids.
    """
    train = Arithmetic(ArithmeticConfig()).train_prompts()
    chains = [train.chain(index) for index in range(500)]
    return train_tokenizer(
        chat_text(question(chain), reasoned_completion(chain)) for chain in chains
    )


def new_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A random Qwen3 of about 0.82 M parameters in float32, for this tokenizer's vocabulary."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def learn_skill(
    steps: Iterator[int], checks: Checks, goals: Goals, save_plain: Callable[[int], None]
) -> int:
    """Train until `goals.skill`, calling `save_plain(step)` once at `goals.plain`; steps taken."""
    saved = False
    for step in steps:
        if step % SKILL_CHECK_STEPS:
            continue
        accuracy = checks.measure("skill", step).accuracy
        if not saved and accuracy >= goals.plain:
            save_plain(step)
            saved = True
        if saved and accuracy >= goals.skill:
            return step
    raise AssertionError("supervised_steps never ends by itself")


def learn_habit(steps: Iterator[int], checks: Checks, goals: Goals) -> int:
    """Train until accuracy has settled and most answers come at once; returns the steps taken."""
    low, high = goals.habit
    settled = 0
    for step in steps:
        if step % HABIT_CHECK_STEPS:
            continue
        found = checks.measure("habit", step)
        settled = settled + 1 if low <= found.accuracy <= high and found.reasoning < 0.5 else 0
        if settled == SETTLED_CHECKS:
            return step
    raise AssertionError("supervised_steps never ends by itself")


def make(output: Path, *, seed: int = 0, goals: Goals | None = None) -> None:
    """Write the checkpoints `plain` and `habit` into directories of these names below `output`.

    The weights are bfloat16, trained in float32. RuntimeError when a stage misses its goal.
    """
    goals = goals or Goals()
    set_seed(seed)
    config = ArithmeticConfig(seed=seed, train_size=100_000, eval_size=300_000)
    task = Arithmetic(config)
    train, held_out = task.train_prompts(), task.eval_prompts()
    tokenizer = new_tokenizer()
    model = new_model(tokenizer)
    checks = Checks(model, tokenizer, held_out[RECORD_PROMPTS:])
    steps: dict[str, dict[str, int]] = {}

    def save(name: str, **taken: int) -> None:
        save_weights(output / name, model, tokenizer)
        steps[name] = taken

    def training(immediate_share: float, learning_rate: float, warmup_steps: int) -> Iterator[int]:
        return supervised_steps(
            model,
            tokenizer,
            demonstrations(train, immediate_share=immediate_share, seed=seed),
            rows_per_step=ROWS_PER_STEP,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            max_steps=MAX_STEPS,
        )

    skill_steps = learn_skill(
        training(0.0, SKILL_LEARNING_RATE, 60),
        checks,
        goals,
        save_plain=lambda step: save("plain", skill=step),
    )
    habit_steps = learn_habit(training(IMMEDIATE_SHARE, HABIT_LEARNING_RATE, 5), checks, goals)
    save("habit", skill=skill_steps, habit=habit_steps)
    recorded: dict[str, float] = {}
    for name, taken in steps.items():
        measured = measure_saved(output / name, held_out[:RECORD_PROMPTS])
        write_record(output / name, seed=seed, steps=taken, measured=measured)
        recorded[name] = measured["sampled"].accuracy
    low, high = goals.habit_recorded
    if not low <= recorded["habit"] <= high:
        raise RuntimeError(
            f"the written `habit` has an accuracy of {recorded['habit']:.3f}, which is not within "
            f"{low} and {high}; try another seed"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m grpo_core.demo.warm_start",
        description="Make the bundled checkpoints `plain` and `habit` (minutes on one CPU core).",
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to create them in")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and sampling")
    arguments = parser.parse_args()
    make(arguments.output, seed=arguments.seed)


if __name__ == "__main__":
    main()
