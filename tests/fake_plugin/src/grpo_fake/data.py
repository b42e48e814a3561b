"""A task."""

from grpo_core.types import Prompt


class Digits:
    """Asks for each digit's successor."""

    def __init__(self, config=None, context=None):
        self._prompts = [
            Prompt(id=f"digit/{d}", content=f"{d}+1=", columns={"answer": str(d + 1)})
            for d in range(10)
        ]

    def train_prompts(self):
        return self._prompts[:8]

    def eval_prompts(self):
        return self._prompts[8:]

    def rewards(self):
        from grpo_fake.rewards import even

        return [even]
