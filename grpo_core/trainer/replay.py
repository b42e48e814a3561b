"""Groups of earlier steps, to be trained on once more where a step has too few with signal."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_core.trainer.dynamic_sampling import ScoredGroup


class ReplayBuffer:
    """The last groups with signal of this rank.

    The oldest leave first, and not those that vary least: rewards of 0 and 1 have a greatest
    variance, and what reaches it early would stay, ever further from the policy. Each is replayed
    at most once.
    """

    def __init__(self, capacity: int) -> None:
        self.groups: deque[ScoredGroup] = deque(maxlen=capacity)

    def add(self, groups: Iterable[ScoredGroup]) -> None:
        """Remember groups; the oldest give way."""
        self.groups.extend(groups)

    def draw(self, count: int, *, seed: tuple[int, ...]) -> list[ScoredGroup]:
        """Take out at most ``count`` groups, each with a probability proportional to the variance
        of its rewards; a function of the content and ``seed``."""
        chance = random.Random(" ".join(map(str, seed)))
        drawn = []
        for _ in range(min(count, len(self.groups))):
            weights = [group.variance for group in self.groups]
            index = chance.choices(range(len(weights)), weights)[0]
            drawn.append(self.groups[index])
            del self.groups[index]
        return drawn
