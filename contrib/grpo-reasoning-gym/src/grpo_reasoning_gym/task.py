"""The `reasoning-gym` task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from reasoning_gym.utils import SYSTEM_PROMPTS

from grpo_core.errors import ConfigError, DataError
from grpo_core.types import Message, Prompt, PromptShare
from grpo_reasoning_gym.entries import COLUMN, key_of, make_dataset
from grpo_reasoning_gym.reward import ReasoningGymReward

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext
    from grpo_reasoning_gym.config import DatasetSpec, ReasoningGymConfig

logger = logging.getLogger(__name__)


class ReasoningGym:
    """Prompts that reasoning-gym (arXiv 2505.24760) generates, with its verifiers as reward.

    Entries are generated when they are asked for, from (dataset, options, seed, index) alone.
    Held-out prompts are the indices behind those of training; one whose question also is a
    training prompt is left out.
    """

    def __init__(
        self, config: ReasoningGymConfig | None = None, context: BuildContext | None = None
    ) -> None:
        """Make the datasets.

        Raises:
            ConfigError: no config, no such dataset, or options that it refuses.
            DataError: every held-out prompt of a dataset is also one of training.
        """
        if config is None:
            raise ConfigError("reasoning-gym needs a dataset: ReasoningGymConfig(dataset='...')")
        seed = config.seed if config.seed is not None else context.seed if context else 0
        self._several = len(config.specs()) > 1
        parts = [_Part(spec, config, seed) for spec in config.specs()]
        self._train = GeneratedPrompts(
            [(part, index) for part in parts for index in range(config.size)], "train"
        )
        weights = [part.spec.weight for part in parts if part.spec.weight is not None]
        self._train.shares = tuple(PromptShare(count=config.size, weight=w) for w in weights)
        held_out = [part.held_out() for part in parts] if config.eval_size else []
        # One of each dataset in turn, so that the first of them stand for all.
        places = sorted(
            (rank, number, index)
            for number, indices in enumerate(held_out)
            for rank, index in enumerate(indices)
        )
        self._eval = GeneratedPrompts([(parts[n], index) for _, n, index in places], "eval")

    def train_prompts(self) -> Sequence[Prompt]:
        """Ids are ``<dataset>/train/<index>``."""
        return self._train

    def eval_prompts(self) -> Sequence[Prompt]:
        """Ids are ``<dataset>/eval/<index>``; empty without ``eval_size``."""
        return self._eval

    def eval_sets(self) -> Mapping[str, Sequence[Prompt]]:
        """The held-out prompts of each dataset by its name, where there are several datasets."""
        if not self._several:
            return {"": self._eval}
        found: dict[str, list[tuple[_Part, int]]] = {}
        for part, index in self._eval.places:
            found.setdefault(part.spec.source, []).append((part, index))
        return {name: GeneratedPrompts(places, "eval") for name, places in found.items()}

    def rewards(self) -> Sequence[ReasoningGymReward]:
        """The datasets' own verifiers, for when the config names no rewards."""
        return (ReasoningGymReward(),)


class _Part:
    """One dataset, its prompts of training and those held out."""

    def __init__(self, spec: DatasetSpec, config: ReasoningGymConfig, seed: int) -> None:
        self.spec = spec
        self._config = config
        self._seed = seed
        self._size = config.size + config.eval_size
        self._dataset = make_dataset(spec.dataset, spec.options, size=self._size, seed=seed)
        system = config.system_prompt
        self._system = SYSTEM_PROMPTS.get(system, system) if system else None

    def held_out(self) -> list[int]:
        first = self._config.size
        known = {self._dataset[index]["question"] for index in range(first)}
        kept = [i for i in range(first, self._size) if self._dataset[i]["question"] not in known]
        if not kept:
            raise DataError(
                f"reasoning-gym dataset {self.spec.dataset!r}: all {self._config.eval_size} "
                "held-out prompts are among the training prompts; its options leave too few "
                "different questions for this size"
            )
        if len(kept) < self._config.eval_size:
            logger.warning(
                "reasoning-gym dataset %r: %d of %d held-out prompts are also training prompts "
                "and are left out",
                *(self.spec.dataset, self._config.eval_size - len(kept), self._config.eval_size),
            )
        return kept

    def prompt(self, index: int, label: str) -> Prompt:
        entry = self._dataset[index]
        answer = entry["answer"]
        return Prompt(
            id=f"{self.spec.source}/{label}/{index}",
            content=self._content(entry["question"]),
            columns={
                "answer": None if answer is None else str(answer),
                COLUMN: key_of(
                    self.spec.dataset,
                    self.spec.options,
                    size=self._size,
                    seed=self._seed,
                    index=index,
                ),
            },
            source=self.spec.source,
        )

    def _content(self, question: str) -> str | tuple[Message, ...]:
        if not self._config.conversational:
            return f"{self._system.rstrip()}\n\n{question}" if self._system else question
        user: dict[str, Any] = {"role": "user", "content": question}
        if self._system is None:
            return (user,)
        return ({"role": "system", "content": self._system}, user)


class GeneratedPrompts(Sequence[Prompt]):
    """Prompts that are generated when they are asked for."""

    shares: tuple[PromptShare, ...] = ()

    def __init__(self, places: Sequence[tuple[_Part, int]], label: str) -> None:
        self.places = places
        self._label = label

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> GeneratedPrompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | GeneratedPrompts:
        if isinstance(index, slice):
            return GeneratedPrompts(self.places[index], self._label)
        part, number = self.places[index]
        return part.prompt(number, self._label)
