"""Which prompts a step takes, and whether they fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_core.batching import permutation
from grpo_core.errors import DataError

if TYPE_CHECKING:
    from grpo_core.policy import Policy
    from grpo_core.types import Prompt


_REPLACEMENTS = 1


class PromptStream:
    """The task's prompts in a new order every epoch, as a function of (seed, step) alone, so that
    a resumed run neither repeats nor skips any."""

    def __init__(self, prompts: Sequence[Prompt], *, per_step: int, seed: int) -> None:
        if not len(prompts):
            raise DataError("the task has no training prompts")
        self._prompts = prompts
        self._per_step = per_step
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def indices(self, step: int, sampling_round: int = 0) -> list[int]:
        """Indices of the ``per_step`` prompts of a step; an epoch's end may fall inside it.

        Args:
            sampling_round: above 0, what may replace them: other prompts of the task, in an order
                of the step's own, none of them twice while there are any left.
        """
        start = step * self._per_step
        first = [self._index(position) for position in range(start, start + self._per_step)]
        if not sampling_round:
            return first
        # A third number keeps these orders apart from those of the epochs.
        order = permutation(len(self._prompts), (self._seed, step, _REPLACEMENTS))
        taken = set(first)
        others = [index for index in order if index not in taken] or order
        size, start = len(others), (sampling_round - 1) * self._per_step
        # Once all have been drawn the order is shifted: where `per_step` is a multiple of `size`,
        # a place would otherwise be given the same prompt for ever.
        return [others[(i + i // size) % size] for i in range(start, start + self._per_step)]

    def at(self, step: int, sampling_round: int = 0) -> list[Prompt]:
        """The prompts of a step or of one of its later rounds, over all ranks."""
        return [self._prompts[i] for i in self.indices(step, sampling_round)]

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._prompts))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(len(self._prompts), (self._seed, epoch))
        return self._order[offset]


def encode_checked(policy: Policy, prompt: Prompt, max_tokens: int) -> tuple[int, ...]:
    """Token ids of a prompt that leaves room for its completion.

    Raises:
        DataError: prompt and completion together do not fit the model's context.
    """
    ids = policy.encoder.encode(prompt)
    limit = policy.context_length
    if limit is not None and len(ids) + max_tokens > limit:
        raise DataError(
            f"prompt {prompt.id!r} has {len(ids)} tokens; with sampling.max_tokens {max_tokens} "
            f"that is more than the model's context of {limit}. Lower sampling.max_tokens to "
            f"{max(0, limit - len(ids))} or less, or leave the prompt out"
        )
    return ids


def check_lengths(
    policy: Policy, prompts: Sequence[Prompt], *, draws: int, max_tokens: int
) -> None:
    """Find prompts that do not fit before anything is sampled, not in step 800.

    Only those that could be too long are tokenised: a byte-level or byte-fallback tokenizer never
    makes more tokens than there are bytes, and what the chat template adds is measured once.
    """
    limit = policy.context_length
    if limit is None:
        return
    overhead: int | None = None
    for index in range(min(draws, len(prompts))):
        prompt = prompts[index]
        if overhead is None:
            overhead = len(policy.encoder.encode(prompt))
        if _bytes(prompt) + overhead + max_tokens > limit:
            encode_checked(policy, prompt, max_tokens)


def _bytes(prompt: Prompt) -> int:
    if isinstance(prompt.content, str):
        return len(prompt.content.encode("utf-8", "surrogatepass"))
    # `repr` also covers content that is a list of blocks.
    return sum(len(repr(dict(m)).encode("utf-8", "surrogatepass")) for m in prompt.content)
