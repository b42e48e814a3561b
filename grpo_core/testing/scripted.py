"""A generator that says what it is told, with the log-probs that the policy gives to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch

from grpo_core.errors import SyncError
from grpo_core.policy.model import base_of
from grpo_core.testing.config import ScriptedConfig
from grpo_core.types import (
    Completion,
    GeneratedGroup,
    GenerateRequest,
    SampledTurn,
    TurnRequest,
    WeightUpdate,
)

if TYPE_CHECKING:
    from grpo_core.protocols import BuildContext


class ScriptedGenerator:
    """Completions from a list instead of a distribution; everything else is as in sampling, and
    the log-probs are the policy's own at the request's temperature.

    A text ends with the first end-of-sequence token of the request, unless it is cut off at
    ``sampling.max_tokens``.
    """

    def __init__(self, config: ScriptedConfig, context: BuildContext | None = None) -> None:
        self._texts = config.completions
        self._update: WeightUpdate | None = None

    def sync(self, update: WeightUpdate) -> int:
        self._update = update
        return update.policy_version

    def generate(self, request: GenerateRequest) -> Iterator[GeneratedGroup]:
        """Raises ``SyncError`` before the first ``sync``."""
        update = self._held()
        for index, key in enumerate(request.prompt_keys_P):
            start = key * request.group_size
            yield GeneratedGroup(
                index=index,
                completions_G=tuple(
                    self._completion(
                        request,
                        request.prompt_ids_P[index],
                        self._text(start + s, 0),
                        request.sampling.max_tokens,
                    )
                    for s in range(request.group_size)
                ),
                policy_version=update.policy_version,
            )

    def sample_turns(self, request: TurnRequest) -> Iterator[SampledTurn]:
        """Raises ``SyncError`` before the first ``sync``."""
        update = self._held()
        while turns := request.take(True):
            for turn in turns:
                place = turn.key * request.group_size + turn.sample
                text = self._text(place, turn.number)
                yield SampledTurn(
                    turn=turn,
                    completion=self._completion(request, turn.prompt_ids, text, turn.max_tokens),
                    policy_version=update.policy_version,
                )

    def close(self) -> None:
        self._update = None

    def _held(self) -> WeightUpdate:
        if self._update is None:
            raise SyncError("generator 'scripted' was asked before it had any weights")
        return self._update

    def _text(self, place: int, turn: int) -> str:
        script = self._texts[place % len(self._texts)]
        return script if isinstance(script, str) else script[min(turn, len(script) - 1)]

    def _completion(
        self,
        request: GenerateRequest | TurnRequest,
        prompt: tuple[int, ...],
        text: str,
        limit: int,
    ) -> Completion:
        tokenizer = cast("Any", self._held().tokenizer)
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *request.eos_token_ids[:1]]
        return Completion(
            token_ids=tuple(ids[:limit]),
            logprobs=self._logprobs(prompt, ids[:limit], request.sampling.temperature or 1.0),
            finish_reason="length" if len(ids) > limit else "stop",
        )

    @torch.no_grad()
    def _logprobs(
        self, prompt: tuple[int, ...], ids: list[int], temperature: float
    ) -> tuple[float, ...]:
        model = base_of(self._held().model)
        row = torch.tensor([[*prompt, *ids]], device=next(model.parameters()).device)
        logits = model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logp = (logits.double() / temperature).log_softmax(-1)
        return tuple(logp.gather(1, row[0, len(prompt) :, None]).squeeze(1).tolist())
