"""The bundled `arithmetic` task: a model of 0.8 M parameters can learn it on a CPU in minutes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from grpo_core.demo.chain import Chain, Split, answer, capacity, nth_chain, question
from grpo_core.demo.config import ArithmeticConfig
from grpo_core.types import Prompt

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext


class Arithmetic:
    """Prompts such as `2 -1 *1 *7 *6 mod 10=?`, evaluated from left to right.

    Each prompt is one user message, has the chain as its id, and carries the columns `answer`
    (str, one digit) and `operations` (int). Training and held-out prompts are disjoint for all
    seeds and sizes (see `chain.nth_chain`).
    """

    def __init__(
        self, config: ArithmeticConfig | None = None, context: BuildContext | None = None
    ) -> None:
        self._config = config or ArithmeticConfig()
        self._known: dict[Split, ChainPrompts] = {}

    def train_prompts(self) -> ChainPrompts:
        """`train_size` different prompts in an order given by the seed."""
        return self._drawn("train", self._config.train_size)

    def eval_prompts(self) -> ChainPrompts:
        """`eval_size` different held-out prompts in an order given by the seed."""
        return self._drawn("eval", self._config.eval_size)

    def _drawn(self, split: Split, size: int) -> ChainPrompts:
        if split not in self._known:
            operations = self._config.operations
            generator = random.Random(f"{self._config.seed} {split}")
            numbers = generator.sample(range(capacity(split, operations)), size)
            self._known[split] = ChainPrompts(split, operations, numbers)
        return self._known[split]


class ChainPrompts(Sequence[Prompt]):
    """Prompts that are built when they are read: a chain number is all that is stored."""

    def __init__(self, split: Split, operations: int, numbers: Sequence[int]) -> None:
        self._split: Split = split
        self._operations = operations
        self._numbers = tuple(numbers)

    def chain(self, index: int) -> Chain:
        """The chain behind prompt `index`, for writing demonstrations of it."""
        return nth_chain(self._split, self._operations, self._numbers[index])

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> ChainPrompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | ChainPrompts:
        if isinstance(index, slice):
            return ChainPrompts(self._split, self._operations, self._numbers[index])
        return prompt_of(self.chain(index))


def prompt_of(chain: Chain) -> Prompt:
    """The prompt that asks for a chain's value."""
    text = question(chain)
    return Prompt(
        id=text.removesuffix("=?"),
        content=({"role": "user", "content": text},),
        columns={"answer": answer(chain), "operations": len(chain.operations)},
    )
