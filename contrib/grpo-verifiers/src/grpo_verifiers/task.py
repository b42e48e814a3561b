"""The `verifiers` task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from grpo_core.errors import ConfigError, DataError
from grpo_core.types import Message, Prompt
from grpo_verifiers.reward import VerifiersReward
from grpo_verifiers.tasks import COLUMN, AnyTask, key_of, load

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_verifiers.config import VerifiersConfig


class VerifiersTask:
    """The tasks of a taskset of Prime Intellect's verifiers, in its order."""

    def __init__(
        self, config: VerifiersConfig | None = None, context: BuildContext | None = None
    ) -> None:
        """Load the taskset.

        Raises:
            ConfigError: no config, or the taskset cannot be loaded or used; says why.
            DataError: there are no tasks, fewer than asked for, or some without a prompt.
        """
        if config is None:
            raise ConfigError("verifiers needs a taskset: VerifiersConfig(taskset='...')")
        count = None if config.size is None else config.size + config.eval_size
        tasks = load(config.taskset, config.args, count)
        train = len(tasks) - config.eval_size
        if train < 1 or (count is not None and len(tasks) < count):
            asked = count if count is not None else config.eval_size + 1
            raise DataError(
                f"taskset {config.taskset!r} has {len(tasks)} tasks; size and eval_size ask for "
                f"{asked}"
            )
        self._train = TaskPrompts(config, tasks, range(train), "train")
        self._eval = TaskPrompts(config, tasks, range(train, len(tasks)), "eval")

    def train_prompts(self) -> Sequence[Prompt]:
        """Ids are ``train/<index in the taskset>``."""
        return self._train

    def eval_prompts(self) -> Sequence[Prompt]:
        """Ids are ``eval/<index in the taskset>``; empty without ``eval_size``."""
        return self._eval

    def rewards(self) -> Sequence[VerifiersReward]:
        """The taskset's own rewards, for when the config names none."""
        return (VerifiersReward(),)


class TaskPrompts(Sequence[Prompt]):
    """Some tasks as prompts."""

    def __init__(
        self, config: VerifiersConfig, tasks: Sequence[AnyTask], indices: range, label: str
    ) -> None:
        self._config, self._tasks = config, tasks
        self._indices, self._label = indices, label
        for index in indices:
            if not tasks[index].data.prompt:
                raise DataError(
                    f"task {index} of taskset {config.taskset!r} has no prompt: somebody else "
                    "opens the conversation, and only single answers are supported here"
                )

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> TaskPrompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | TaskPrompts:
        if isinstance(index, slice):
            return TaskPrompts(self._config, self._tasks, self._indices[index], self._label)
        number = self._indices[index]
        data = self._tasks[number].data
        return Prompt(
            id=f"{self._label}/{number}",
            content=messages_of(data),
            columns={COLUMN: key_of(self._config.taskset, self._config.args, number)},
        )


def messages_of(data: Any) -> tuple[Message, ...]:
    """What the model is shown, as verifiers' own chat harness shows it."""
    found: list[dict[str, Any]] = []
    if data.system_prompt is not None:
        found.append({"role": "system", "content": data.system_prompt})
    if isinstance(data.prompt, str):
        found.append({"role": "user", "content": data.prompt})
    else:
        found += [message.model_dump(exclude_none=True) for message in data.prompt]
    return tuple(found)
