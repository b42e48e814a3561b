"""The state of a run on disk, so that it goes on from there bit for bit.

A checkpoint is taken between two steps. What is a function of the seed and the step alone has no
state: the order of prompts, every random number of sampling, the plan of minibatches. A step that
was under way when a run was killed is therefore repeated from its beginning, with the same bits.
"""

from grpo_core.trainer.checkpoints.keeper import Checkpoints

__all__ = ["Checkpoints"]
