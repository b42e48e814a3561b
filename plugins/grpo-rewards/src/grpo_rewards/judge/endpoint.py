"""The chat completions protocol: what a question becomes, and where the reply stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpo_core.endpoint import Endpoint, EndpointError

if TYPE_CHECKING:
    import httpx2

    from grpo_rewards.judge.config import LLMJudgeConfig
    from grpo_rewards.judge.questions import Question

PATH = "/chat/completions"


def request_body(config: LLMJudgeConfig, question: Question) -> dict[str, Any]:
    """The request, without the key."""
    body: dict[str, Any] = {
        "model": config.model,
        "messages": question.messages,
        **config.request_options,
    }
    if config.temperature is not None:
        body["temperature"] = config.temperature
    if config.max_tokens is not None:
        body["max_tokens"] = config.max_tokens
    if config.response_format == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif config.response_format == "json_schema":
        schema = {"name": "verdict", "strict": True, "schema": question.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


async def ask(endpoint: Endpoint, client: httpx2.AsyncClient, body: dict[str, Any]) -> str:
    """The text of the reply.

    Raises:
        TimeoutError, EndpointError: see ``Endpoint.post``; also for a reply that is cut off or no
            chat completion.
    """
    answer = await endpoint.post(client, PATH, body)
    try:
        choice = answer["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError(f"no chat completion: {str(answer)[:300]}") from error
    if finish == "length":
        raise EndpointError("the judge's reply is cut off; raise the option max_tokens")
    if not isinstance(text, str):
        raise EndpointError(f"a reply without text: {str(answer)[:300]}")
    return text
