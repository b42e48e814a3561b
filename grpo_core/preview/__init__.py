"""What rewards make of completions, before anything is trained: the logic of ``grpo preview``.

``rollouts_of`` (given completions) or ``sampled`` make rollouts, ``examine`` scores them, ``view``
draws the result. Only ``sampled`` loads a model.
"""
