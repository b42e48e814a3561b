"""What servers of reward models are sent, and where the scores stand in their answers.

vLLM: ``/classify`` and ``/pooling`` with ``use_activation`` false, so that the score is a logit as
in this process. text-embeddings-inference: ``/predict`` with ``raw_scores``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_reward_model.config import Protocol, RewardModelServerConfig

PATHS: dict[Protocol, str] = {
    "vllm-classify": "/classify",
    "vllm-pooling": "/pooling",
    "tei-predict": "/predict",
}


class MalformedScoresError(ValueError):
    """The server answered, but not with one score per text."""


def request_body(
    config: RewardModelServerConfig, inputs: Sequence[str | list[int]]
) -> dict[str, Any]:
    """The request for some inputs, as text or (vLLM only) as token ids."""
    if config.protocol == "tei-predict":
        # A list of texts would be one pair of texts; a list of lists is a batch.
        return {"inputs": [[text] for text in inputs], "raw_scores": True, "truncate": False}
    body: dict[str, Any] = {
        "model": config.model,
        "input": list(inputs),
        "use_activation": False,
        "add_special_tokens": config.add_special_tokens,
    }
    if config.protocol == "vllm-pooling":
        body |= {"task": "classify", "encoding_format": "float"}
    return body


def scores_of(config: RewardModelServerConfig, answer: Any, count: int) -> list[float]:
    """One score per input, in order.

    Raises:
        MalformedScoresError: anything else than that.
    """
    try:
        if config.protocol == "tei-predict":
            rows = [{entry["label"]: entry["score"] for entry in row} for row in answer]
        else:
            field = "probs" if config.protocol == "vllm-classify" else "data"
            data = sorted(answer["data"], key=lambda entry: entry["index"])
            if [entry["index"] for entry in data] != list(range(count)):
                raise MalformedScoresError("the answer's indices are not those of the inputs")
            rows = [dict(enumerate(entry[field])) for entry in data]
    except (KeyError, TypeError, AttributeError) as error:
        raise MalformedScoresError(
            f"not an answer of {config.protocol} ({type(error).__name__}: {error}): "
            f"{str(answer)[:300]}"
        ) from error
    if len(rows) != count:
        raise MalformedScoresError(f"{len(rows)} scores for {count} inputs")
    return [_chosen(row, config.output) for row in rows]


def _chosen(row: dict[Any, Any], output: int | str | None) -> float:
    if output is None and len(row) != 1:
        raise MalformedScoresError(
            f"the model has {len(row)} outputs ({', '.join(map(str, row))}); say with the option "
            "output which of them is the score"
        )
    score = next(iter(row.values())) if output is None else row.get(output)
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise MalformedScoresError(f"the score of output {output!r} is {score!r}")
    return float(score)
