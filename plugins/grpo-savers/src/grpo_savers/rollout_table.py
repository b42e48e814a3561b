"""Scored rollouts as an Arrow table.

Schema version 3, one row per rollout:

=====================  ============  =========================================================
column                 type          meaning
=====================  ============  =========================================================
step                   int64         counted from 0
group, sample          int32         position of the prompt in the step, and in its group
prompt_id              string        ``Prompt.id``
prompt                 string, JSON  the text or the messages
prompt_token_ids       list<int32>   as the model saw them
completion             string        a view without special tokens
token_ids              list<int32>   the completion, inserted text included
action_positions       list<int32>   indices into ``token_ids`` of the sampled ones
sampling_logprobs      list<double>  of the sampled tokens under softmax(logits / T), in nats
kept_logmass           list<double>  log of the share of it that truncation left to draw from;
                                     null when nothing was cut off, or it is not known
policy_version         int64         the oldest behind a sampled token
finish_reason          string        stop, length or error
error                  string        why the environment gave up
advantage              double
columns                string, JSON  the task's other columns
extra                  string, JSON  what the environment added
messages               string, JSON  the completion as a conversation, where it has several turns
reward/<provider>      double        null when there is no value
outcome/<provider>     string        value, abstained, error, timeout or invalid
reason/<provider>      string        why there is no value
dropped                bool          a reward failed on it or on its group: it took no part
logged/<provider>/...  string, JSON  what the provider gave to ``log_extra``; null where nothing
=====================  ============  =========================================================

The weights of the providers and the version stand in the schema's metadata.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from grpo_core.types import Failed, Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from grpo_core.types import RewardOutcome, Rollout, RolloutsScored, ScoredRollouts

SCHEMA_VERSION = 3
VERSION_KEY = "grpo_core.rollouts.schema"
WEIGHTS_KEY = "grpo_core.rollouts.weights"

FIELDS = (
    pa.field("step", pa.int64(), nullable=False),
    pa.field("group", pa.int32(), nullable=False),
    pa.field("sample", pa.int32(), nullable=False),
    pa.field("prompt_id", pa.string(), nullable=False),
    pa.field("prompt", pa.string(), nullable=False),
    pa.field("prompt_token_ids", pa.list_(pa.int32()), nullable=False),
    pa.field("completion", pa.string(), nullable=False),
    pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
    pa.field("action_positions", pa.list_(pa.int32()), nullable=False),
    pa.field("sampling_logprobs", pa.list_(pa.float64()), nullable=False),
    pa.field("kept_logmass", pa.list_(pa.float64())),
    pa.field("policy_version", pa.int64()),
    pa.field("finish_reason", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("advantage", pa.float64(), nullable=False),
    pa.field("columns", pa.string(), nullable=False),
    pa.field("extra", pa.string(), nullable=False),
    pa.field("messages", pa.string()),
)


def rollout_schema(scored: ScoredRollouts, logged: Iterable[str] = ()) -> pa.Schema:
    """The columns above, with three for each provider.

    Args:
        logged: ``<provider>/<column>`` of what rewards have logged, in this step or before.
    """
    fields = list(FIELDS)
    for name in scored.providers_F:
        fields += [
            pa.field(f"reward/{name}", pa.float64()),
            pa.field(f"outcome/{name}", pa.string(), nullable=False),
            pa.field(f"reason/{name}", pa.string()),
        ]
    fields.append(pa.field("dropped", pa.bool_(), nullable=False))
    fields += [pa.field(f"logged/{name}", pa.string()) for name in logged]
    weights = dict(zip(scored.providers_F, scored.weights_F, strict=True))
    metadata = {VERSION_KEY: str(SCHEMA_VERSION), WEIGHTS_KEY: json.dumps(weights)}
    return pa.schema(fields, metadata=metadata)


def rollout_table(event: RolloutsScored, logged: Iterable[str] = ()) -> pa.Table:
    """All rollouts of a step.

    Args:
        logged: columns that earlier steps had, so that all files of a run agree where they can.
    """
    rows = [
        {"step": event.step, "advantage": advantage, **_rollout(rollout)}
        for rollout, advantage in zip(event.rollouts_B, event.advantages_B, strict=True)
    ]
    scored = event.scored
    for name, outcomes in zip(scored.providers_F, scored.outcomes_F_B, strict=True):
        for row, outcome in zip(rows, outcomes, strict=True):
            row.update(_outcome(name, outcome))
    for row, dropped, columns in zip(rows, scored.dropped_B, scored.logged_B, strict=True):
        row["dropped"] = dropped
        row.update({f"logged/{name}": _json(value) for name, value in columns.items()})
    return pa.Table.from_pylist(rows, schema=rollout_schema(scored, logged_names(scored, logged)))


def logged_names(scored: ScoredRollouts, before: Iterable[str] = ()) -> list[str]:
    """``<provider>/<column>`` of what was logged, sorted."""
    return sorted({name for row in scored.logged_B for name in row} | set(before))


def _rollout(rollout: Rollout) -> dict[str, Any]:
    content = rollout.prompt.content
    return {
        "group": rollout.group,
        "sample": rollout.sample,
        "prompt_id": _text(rollout.prompt.id),
        "prompt": _json(content if isinstance(content, str) else [dict(m) for m in content]),
        "prompt_token_ids": rollout.prompt_ids,
        "completion": _text(rollout.text),
        "token_ids": rollout.token_ids,
        "action_positions": rollout.action_positions,
        "sampling_logprobs": rollout.sampling_logprobs,
        "kept_logmass": rollout.kept_logmass,
        "policy_version": rollout.policy_version,
        "finish_reason": rollout.finish_reason,
        "error": None if rollout.error is None else _text(rollout.error),
        "columns": _json(dict(rollout.prompt.columns)),
        "extra": _json(dict(rollout.extra)),
        "messages": _json([dict(m) for m in rollout.messages]) if rollout.messages else None,
    }


def _outcome(name: str, outcome: RewardOutcome) -> Iterator[tuple[str, Any]]:
    value = outcome.value if isinstance(outcome, Value) else None
    kind = "value" if value is not None else "abstained"
    if isinstance(outcome, Failed):
        kind = outcome.kind
    yield f"reward/{name}", value
    yield f"outcome/{name}", kind
    yield f"reason/{name}", _text(getattr(outcome, "reason", "")) or None


def _text(text: str) -> str:
    # A lone surrogate, from a broken file or half an emoji, cannot be written as UTF-8: Arrow
    # would raise, and one odd prompt would end the run.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, default=_plain)
    return text


def _plain(value: Any) -> Any:
    """What JSON does not know: arrays as lists, raw bytes by their size, the rest as text."""
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    return value.tolist() if hasattr(value, "tolist") else str(value)
