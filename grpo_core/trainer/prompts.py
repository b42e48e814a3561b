"""Which prompts a step takes, and whether they fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_core.batching import permutation
from grpo_core.errors import DataError
from grpo_core.trainer.turns import Turns
from grpo_core.types import PromptShare

if TYPE_CHECKING:
    from grpo_core.policy import Policy
    from grpo_core.types import Prompt


_REPLACEMENTS = 1


class PromptStream:
    """The task's prompts in a new order every epoch, as a function of (seed, step) alone, so that
    a resumed run neither repeats nor skips any. Parts with weights (``shares``) have epochs of
    their own."""

    def __init__(self, prompts: Sequence[Prompt], *, per_step: int, seed: int) -> None:
        """Raises ``DataError`` when there are no prompts."""
        if not len(prompts):
            raise DataError("the task has no training prompts")
        self._prompts = prompts
        self._per_step = per_step
        self._seed = seed
        whole = (PromptShare(count=len(prompts), weight=1.0),)
        self._turns = Turns(getattr(prompts, "shares", None) or whole, len(prompts))
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def __len__(self) -> int:
        return len(self._prompts)

    def indices(self, step: int, sampling_round: int = 0) -> list[int]:
        """Indices of the ``per_step`` prompts of a step; an epoch's end may fall inside it.

        Args:
            sampling_round: above 0, what may replace them: other prompts of the same part, in an
                order of the step's own, none of them twice while there are any left.
        """
        start = step * self._per_step
        first = [self._draw(position) for position in range(start, start + self._per_step)]
        if not sampling_round:
            return [index for _, index in first]
        found = dict(enumerate(index for _, index in first))
        for part in sorted({part for part, _ in first}):
            places = [place for place, (of, _) in enumerate(first) if of == part]
            # A third number keeps these orders apart from those of the epochs.
            order = self._order(part, step, _REPLACEMENTS)
            taken = {first[place][1] for place in places}
            others = [index for index in order if index not in taken] or order
            size, start = len(others), (sampling_round - 1) * len(places)
            # Once all have been drawn the order is shifted: where the number of places is a
            # multiple of `size`, a place would otherwise be given the same prompt for ever.
            for i, place in enumerate(places, start):
                found[place] = others[(i + i // size) % size]
        return list(found.values())

    def at(self, step: int, sampling_round: int = 0) -> list[Prompt]:
        """The prompts of a step or of one of its later rounds, over all ranks."""
        return [self._prompts[i] for i in self.indices(step, sampling_round)]

    def drawn(self, steps: int) -> list[int]:
        """Indices of all prompts that so many steps take without dynamic sampling, in order."""
        total = len(self._prompts)
        found: set[int] = set()
        for step in range(steps):
            found.update(self.indices(step))
            if len(found) == total:
                break
        return sorted(found)

    def _draw(self, position: int) -> tuple[int, int]:
        """The part that a draw goes to, and the index of its prompt."""
        part, turn = self._turns.at(position)
        epoch, offset = divmod(turn, self._turns.sizes[part])
        if part not in self._orders or self._orders[part][0] != epoch:
            self._orders[part] = epoch, self._order(part, epoch)
        return part, self._orders[part][1][offset]

    def _order(self, part: int, *key: int) -> list[int]:
        # Parts of one size must not be walked through in one order.
        own = (part,) if len(self._turns.sizes) > 1 else ()
        start, size = self._turns.starts[part], self._turns.sizes[part]
        return [start + i for i in permutation(size, (self._seed, *key, *own))]


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
    policy: Policy, prompts: Sequence[Prompt], indices: Sequence[int], *, max_tokens: int
) -> None:
    """Find prompts that do not fit before anything is sampled, not in step 800.

    Args:
        indices: which of the prompts will be drawn.

    Only those that could be too long are tokenised: a byte-level or byte-fallback tokenizer never
    makes more tokens than there are bytes, and what the chat template adds is measured once.
    """
    limit = policy.context_length
    if limit is None:
        return
    overhead: int | None = None
    for index in indices:
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
