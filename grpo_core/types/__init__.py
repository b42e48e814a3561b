"""Everything that crosses a boundary: frozen, keyword-only dataclasses without torch at import."""

from grpo_core.types.evaluation import EvalResult
from grpo_core.types.events import (
    CheckpointSaved,
    Evaluated,
    Metrics,
    Notice,
    RolloutsScored,
    RunEnd,
    RunStart,
    StepEnd,
    WeightsSynced,
)
from grpo_core.types.generation import (
    Completion,
    GeneratedGroup,
    GenerateRequest,
    RolloutRequest,
    WeightUpdate,
)
from grpo_core.types.prompts import Message, Prompt, PromptShare
from grpo_core.types.rewards import (
    Abstained,
    Failed,
    FailureKind,
    RewardLog,
    RewardOutcome,
    ScoredRollouts,
    ScoreRequest,
    TrainerState,
    Value,
)
from grpo_core.types.rollouts import FinishReason, Rollout, Span
from grpo_core.types.saving import SaveRequest
from grpo_core.types.tokens import (
    ActionTokens,
    AdvantageRequest,
    AdvantageResult,
    Aggregation,
    LossOutput,
    Need,
)
from grpo_core.types.turns import SampledTurn, Turn, TurnRequest

__all__ = [
    "Abstained",
    "ActionTokens",
    "AdvantageRequest",
    "AdvantageResult",
    "Aggregation",
    "CheckpointSaved",
    "Completion",
    "EvalResult",
    "Evaluated",
    "Failed",
    "FailureKind",
    "FinishReason",
    "GenerateRequest",
    "GeneratedGroup",
    "LossOutput",
    "Message",
    "Metrics",
    "Need",
    "Notice",
    "Prompt",
    "PromptShare",
    "RewardLog",
    "RewardOutcome",
    "Rollout",
    "RolloutRequest",
    "RolloutsScored",
    "RunEnd",
    "RunStart",
    "SampledTurn",
    "SaveRequest",
    "ScoreRequest",
    "ScoredRollouts",
    "Span",
    "StepEnd",
    "TrainerState",
    "Turn",
    "TurnRequest",
    "Value",
    "WeightUpdate",
    "WeightsSynced",
]
