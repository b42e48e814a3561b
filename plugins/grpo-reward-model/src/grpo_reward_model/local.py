"""A reward model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from grpo_core.types import Abstained, Failed, RewardOutcome, Value
from grpo_reward_model.config import RewardModelConfig
from grpo_reward_model.loading import context_length, load_model, output_index, pad_token_id
from grpo_reward_model.rendering import Renderer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout, ScoreRequest


class RewardModel:
    """The score that a sequence classification model gives to prompt and completion.

    Any ``AutoModelForSequenceClassification``, by folder, Hub id or object, with its own tokenizer,
    chat template, dtype and device; nothing of the policy's settings applies to it. The score is
    its only output as it is (a logit), as in TRL; of several the option ``output`` names one.

    Conversations are rendered by the reward model's own template; plain prompts and completions
    are written one after the other. Inputs are sorted by length and padded on the right, at most
    ``tokens_per_batch`` at a time. What else is in a batch changes a score by rounding only.

    Raises:
        ConfigError: model or tokenizer cannot be loaded, weights are missing (an untrained head),
            or there are several outputs and none was chosen.
        DataError: while scoring, where a conversation cannot be rendered.
    """

    Config = RewardModelConfig
    name = "reward-model"

    def __init__(
        self,
        config: RewardModelConfig,
        context: BuildContext | None = None,
        *,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """
        Args:
            model: in place of what ``config.path`` names; it stays on its device and in its dtype,
                and its padding id is set to the tokenizer's.
            tokenizer: in place of the configured one.
        """
        self._config = config
        self._tokenizer = tokenizer or load_tokenizer(
            config.tokenizer or config.path,
            revision=None if config.tokenizer else config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        self._renderer = Renderer(self._tokenizer, config)
        self._model = model if model is not None else load_model(config)
        self._output = output_index(self._model, config.output)
        self._pad = pad_token_id(self._model, self._tokenizer)
        self._limit = config.max_tokens or context_length(self._model, self._tokenizer)

    def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order."""
        outcomes: list[RewardOutcome | None] = []
        inputs: dict[int, list[int]] = {}
        for position, rollout in enumerate(request.rollouts_B):
            ids = self._renderer.token_ids(rollout)
            refused = self._refused(rollout, ids)
            outcomes.append(refused)
            if refused is None:
                inputs[position] = ids if self._limit is None else ids[-self._limit :]
        for batch in batches(inputs, self._config.tokens_per_batch):
            scores = self._scores([inputs[position] for position in batch])
            for position, score in zip(batch, scores, strict=True):
                outcomes[position] = Value(value=score)
        return [outcome for outcome in outcomes if outcome is not None]

    def _refused(self, rollout: Rollout, ids: Sequence[int]) -> RewardOutcome | None:
        if not ids:
            return Failed(kind="invalid", reason="prompt and completion render to no tokens")
        if self._limit is None or len(ids) <= self._limit:
            return None
        if self._config.too_long == "truncate-left":
            return None
        reason = f"{len(ids)} tokens, the reward model takes {self._limit} (option too_long)"
        if self._config.too_long == "abstain":
            return Abstained(reason=reason)
        return Failed(kind="invalid", reason=reason)

    def _scores(self, rows: Sequence[list[int]]) -> list[float]:
        longest = max(len(ids) for ids in rows)
        device = self._model.device
        padded = [ids + [self._pad] * (longest - len(ids)) for ids in rows]
        mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows]
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(padded, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }
        # The caller may be inside the policy's autocast.
        own_numbers = torch.autocast(device.type, enabled=False)
        with evaluating(self._model), torch.inference_mode(), own_numbers:
            logits = self._model(**inputs).logits
        return [float(score) for score in logits[:, self._output].float().tolist()]


def batches(inputs: dict[int, list[int]], tokens: int) -> Iterator[list[int]]:
    """Positions, similar lengths together, each batch at most ``tokens`` with its padding; an
    input that is longer goes alone."""
    batch: list[int] = []
    for position in sorted(inputs, key=lambda p: len(inputs[p])):
        # Sorted, so that the newest is the longest.
        if batch and len(inputs[position]) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off; a model that somebody trains meanwhile goes back to it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
