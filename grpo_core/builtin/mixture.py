"""The `mixture` task: several data sets, drawn from by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, overload

from grpo_core.builtin.dataset import DatasetTask
from grpo_core.errors import ConfigError
from grpo_core.types import Prompt, PromptShare

if TYPE_CHECKING:
    from grpo_core.builtin.config import MixtureConfig
    from grpo_core.protocols import BuildContext, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One task of a mixture. Example: ``Part(source="gsm8k", task=task, weight=2.0)``."""

    source: str
    task: Task
    weight: float | None = None
    """``None`` for all parts draws every prompt equally often."""


class Mixture:
    """Prompts of several tasks as one.

    With weights every step has the mixture that was asked for, and each source has epochs of its
    own: none of its prompts comes again before all of them have come. Without, every prompt of
    all sources comes once per epoch. Prompt ids are ``<source>/train/<row>``.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Raises ``ConfigError`` when only some parts have a weight, or two share a name."""
        names = [part.source for part in parts]
        weights = [part.weight for part in parts if part.weight is not None]
        if not parts or len(set(names)) < len(names) or len(weights) not in (0, len(parts)):
            raise ConfigError(
                "a mixture needs parts with names of their own, and a weight for all of them or "
                f"for none; got {[(part.source, part.weight) for part in parts]}"
            )
        train = [(part.source, part.task.train_prompts()) for part in parts]
        places = [(i, j) for i, (_, prompts) in enumerate(train) for j in range(len(prompts))]
        self._train = MixedPrompts(train, places)
        if weights:
            self._train.shares = tuple(
                PromptShare(count=len(prompts), weight=weight)
                for (_, prompts), weight in zip(train, weights, strict=True)
            )
        self._parts = tuple(parts)
        held_out = [(part.source, part.task.eval_prompts()) for part in parts]
        self._eval = MixedPrompts(held_out, _spread([len(prompts) for _, prompts in held_out]))

    def train_prompts(self) -> Sequence[Prompt]:
        return self._train

    def eval_prompts(self) -> Sequence[Prompt]:
        """Those of all sources, interleaved, so that the first of them stand for all."""
        return self._eval

    def eval_sets(self) -> Mapping[str, Sequence[Prompt]]:
        """The held-out prompts of each source that has some, by its name: they are evaluated apart,
        since a mean over all hides that one of them gets worse. A task that has several sets of its
        own adds their names: ``sums-hard``."""
        found: dict[str, Sequence[Prompt]] = {}
        for part in self._parts:
            own = getattr(part.task, "eval_sets", None)
            sets = own() if own is not None else {"": part.task.eval_prompts()}
            for name, prompts in sets.items():
                if len(prompts):
                    places = [(0, index) for index in range(len(prompts))]
                    label = "-".join(word for word in (part.source, name) if word)
                    found[label] = MixedPrompts([(part.source, prompts)], places)
        return found


class MixtureTask(Mixture):
    """Prompts from several data sets (files, folders, Hub ids), each with its own options."""

    def __init__(
        self, config: MixtureConfig | None = None, context: BuildContext | None = None
    ) -> None:
        """Open all sources and check every prompt.

        Raises:
            ConfigError: no config; there is nothing to mix.
            DataError: data is missing, empty or malformed; names source, and file and line or row.
        """
        if config is None:
            raise ConfigError("a mixture needs sources: MixtureTask(MixtureConfig(sources=[...]))")
        super().__init__(
            [
                Part(source=s.source, task=DatasetTask(s, context), weight=s.weight)
                for s in config.sources
            ]
        )


class MixedPrompts(Sequence[Prompt]):
    """Prompts of several sequences, which are read when they are asked for."""

    shares: tuple[PromptShare, ...] = ()

    def __init__(
        self,
        parts: Sequence[tuple[str, Sequence[Prompt]]],
        places: Sequence[tuple[int, int]],
    ) -> None:
        self._parts = parts
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> MixedPrompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | MixedPrompts:
        if isinstance(index, slice):
            return MixedPrompts(self._parts, self._places[index])
        part, within = self._places[index]
        source, prompts = self._parts[part]
        prompt = prompts[within]
        return replace(prompt, id=f"{source}/{prompt.id}", source=source)


def _spread(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """All places of all parts, each part spread evenly over the whole."""
    places = [((j + 0.5) / size, i, j) for i, size in enumerate(sizes) for j in range(size)]
    return [(i, j) for _, i, j in sorted(places)]
