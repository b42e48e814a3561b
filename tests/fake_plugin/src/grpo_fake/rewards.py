"""Two rewards: an object with options, and a plain function."""

from grpo_core.types import Value


class Length:
    """1 at the wanted length, less by `slope` per token of difference."""

    name = "fake-length"

    def __init__(self, config, context=None):
        self.config = config

    def score(self, request):
        wanted, slope = self.config.target, self.config.slope
        return [Value(value=1.0 - slope * abs(r.action_count - wanted)) for r in request.rollouts_B]


def even(prompts, completions, completion_ids, **columns):
    """1 for an even number of tokens."""
    return [float(len(ids) % 2 == 0) for ids in completion_ids]
