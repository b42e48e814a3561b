"""A reward model behind a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_core.endpoint import Endpoint, EndpointError
from grpo_core.errors import DataError
from grpo_core.types import Failed, RewardOutcome, Value
from grpo_reward_model.config import RewardModelServerConfig
from grpo_reward_model.protocols import PATHS, MalformedScoresError, request_body, scores_of
from grpo_reward_model.rendering import Renderer, load_tokenizer

if TYPE_CHECKING:
    import httpx2

    from grpo_core.protocols import BuildContext
    from grpo_core.types import Rollout, ScoreRequest


class RewardModelServer:
    """The score (a logit) that a reward model on a server gives to prompt and completion.

    Speaks vLLM's ``/classify`` and ``/pooling`` and text-embeddings-inference's ``/predict``.
    With the option ``tokenizer`` rollouts are rendered here, exactly as ``reward-model`` does it,
    and vLLM is sent token ids; without it plain text is sent, and conversations are refused. What
    a server refuses or does not answer in time fails the rollouts of that request; an input that
    is too long for it is one it refuses.

    Raises:
        ConfigError: httpx2 is not installed, the key's variable is not set, or the tokenizer
            cannot be loaded.
        DataError: while scoring, where a conversation cannot be rendered.
    """

    Config = RewardModelServerConfig
    name = "reward-model-server"

    def __init__(
        self, config: RewardModelServerConfig, context: BuildContext | None = None
    ) -> None:
        self._config = config
        self._endpoint = Endpoint(config, who=f"reward {self.name!r}")
        self._renderer: Renderer | None = None
        if config.tokenizer is not None:
            tokenizer = load_tokenizer(
                config.tokenizer, revision=config.tokenizer_revision, trust_remote_code=False
            )
            self._renderer = Renderer(tokenizer, config)

    async def score(self, request: ScoreRequest) -> Sequence[RewardOutcome]:
        """One outcome per rollout, in order."""
        inputs = [self._input(rollout) for rollout in request.rollouts_B]
        size = self._config.texts_per_request
        parts = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        async with self._endpoint.session() as client, asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._part(client, part)) for part in parts]
        return [outcome for task in asked for outcome in task.result()]

    def _input(self, rollout: Rollout) -> str | list[int]:
        if self._renderer is not None:
            if self._config.protocol == "tei-predict":
                return self._renderer.text(rollout)
            return self._renderer.token_ids(rollout)
        content = rollout.prompt.content
        if not isinstance(content, str):
            raise DataError(
                f"prompt {rollout.prompt.id!r} is a conversation; set the option tokenizer of "
                f"{self.name} to the reward model's, whose chat template renders it"
            )
        return content + rollout.text

    async def _part(
        self, client: httpx2.AsyncClient, inputs: Sequence[str | list[int]]
    ) -> list[RewardOutcome]:
        body = request_body(self._config, inputs)
        failed: RewardOutcome
        try:
            answer = await self._endpoint.post(client, PATHS[self._config.protocol], body)
            scores = scores_of(self._config, answer, len(inputs))
        except MalformedScoresError as error:
            failed = Failed(kind="invalid", reason=str(error))
        except TimeoutError as error:
            failed = Failed(kind="timeout", reason=str(error))
        except EndpointError as error:
            failed = Failed(kind="error", reason=str(error))
        else:
            return [Value(value=score) for score in scores]
        return [failed] * len(inputs)
