"""Is anything being learned? Says so when not, and why; a flat curve alone tells nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from grpo_core.types import Notice

PATIENCE = 3
"""Steps in a row before a condition is reported: one or two happen in every healthy run."""

_Test = Callable[[Mapping[str, float]], bool]


def _is_zero(name: str) -> _Test:
    return lambda metrics: metrics.get(name) == 0.0


def _is_above_zero(name: str) -> _Test:
    return lambda metrics: metrics.get(name, 0.0) > 0.0


def _is_one(name: str) -> _Test:
    return lambda metrics: metrics.get(name) == 1.0


def _nothing_to_learn(metrics: Mapping[str, float]) -> bool:
    # Equal rewards within groups alone say little where the baseline is another: a batch, a critic.
    flat = metrics.get("group/no_signal") == 1.0 and metrics.get("advantage/std") == 0.0
    return flat and "reward/mean" in metrics


def _nothing_scored(metrics: Mapping[str, float]) -> bool:
    return "group/no_signal" in metrics and "reward/mean" not in metrics


_CONDITIONS: tuple[tuple[str, _Test, str], ...] = (
    (
        "no-signal",
        _nothing_to_learn,
        "in every group all completions had the same reward for {steps} steps, so no advantage "
        "differs from 0 and nothing is learned. The reward may be constant, the task far too "
        "hard or already solved, or completions identical (temperature too low). Mean reward: "
        "{reward:.3g}.",
    ),
    (
        "no-reward",
        _nothing_scored,
        "no completion had a reward for {steps} steps: all providers abstained from all of them, "
        "as by returning None. Check that the rewards know the columns of the data and the form of "
        "the completions.",
    ),
    (
        "all-truncated",
        _is_one("length/truncated_share"),
        "every completion was cut off at sampling.max_tokens for {steps} steps: the policy never "
        "reaches an end-of-sequence token. Raise sampling.max_tokens, or check that the chat "
        "template and the model's end tokens belong together.",
    ),
    (
        "zero-gradient",
        _is_zero("optim/grad_norm"),
        "the gradient was exactly 0 for {steps} steps, so the weights do not move.",
    ),
    (
        "too-few-groups",
        _is_above_zero("sampling/unfilled"),
        "dynamic sampling reached its bound for {steps} steps with groups left that have no "
        "signal; they were trained on as they are and teach nothing (sampling/unfilled is their "
        "share). Raise train.dynamic_sampling.max_rounds, or look for prompts that are too hard or "
        "already solved.",
    ),
    (
        "empty-completions",
        _is_zero("length/max"),
        "every completion was empty for {steps} steps: there are no tokens to learn from.",
    ),
)


class Health:
    """Watches the metrics of consecutive steps."""

    def __init__(self, patience: int = PATIENCE) -> None:
        self._patience = patience
        self.streaks = dict.fromkeys((code for code, _, _ in _CONDITIONS), 0)

    def look(self, metrics: Mapping[str, float]) -> Sequence[Notice]:
        """Notices about this step: when a condition has held ``patience`` steps in a row, and
        again each time its streak doubles, so that a log is neither silent nor full of it."""
        notices = []
        for code, test, text in _CONDITIONS:
            self.streaks[code] = self.streaks[code] + 1 if test(metrics) else 0
            streak = self.streaks[code]
            if streak >= self._patience and _doubled(streak, self._patience):
                reward = metrics.get("reward/mean", float("nan"))
                notices.append(Notice(code=code, text=text.format(steps=streak, reward=reward)))
        if metrics.get("optim/skipped", 0.0):
            notices.append(
                Notice(
                    code="non-finite-gradient",
                    text="an optimizer step was skipped because its gradient was NaN or infinite.",
                )
            )
        return notices


def _doubled(streak: int, patience: int) -> bool:
    quotient, remainder = divmod(streak, patience)
    return remainder == 0 and quotient & (quotient - 1) == 0
