"""Completions from a JSON Lines file, as rollouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.errors import DataError
from grpo_core.types import Prompt, Rollout, Span

if TYPE_CHECKING:
    from grpo_core.protocols import Task

OWN = ("id", "prompt", "completion", "completions", "truncated")
"""Keys of a line that are not columns."""


def rollouts_of(file: Path, task: Task, encode: Callable[[str], Sequence[int]]) -> list[Rollout]:
    """Rollouts of given completions, sorted by group.

    A line has ``completion`` (text, or messages that end with the assistant's) or ``completions``
    (a list of these), and says what they answer: ``id`` is a prompt of the task (``train/17``),
    ``prompt`` stands for itself, with all other keys as its columns. Lines of one prompt are one
    group.

    Args:
        encode: text to token ids, for lengths and for rewards that look at ids.

    Raises:
        DataError: the file cannot be read, or a line is not of this form; names file and line.
    """
    lines = list(_lines(file))
    wanted = {str(line["id"]) for _, line in lines if "id" in line}
    known = _found(task, wanted)
    groups: dict[str, list[Rollout]] = {}
    for where, line in lines:
        prompt = _prompt(line, known, where)
        key = prompt.id
        if "id" not in line:
            key = json.dumps([prompt.content, dict(prompt.columns)], sort_keys=True, default=str)
        members = groups.setdefault(key, [])
        if members:
            prompt = members[0].prompt
        for text in _texts(line, where):
            members.append(_rollout(prompt, text, line.get("truncated") is True, encode))
    return [
        replace(rollout, group=group, sample=sample)
        for group, members in enumerate(groups.values())
        for sample, rollout in enumerate(members)
    ]


def _lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    empty = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        empty = False
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(row, dict) or ("completion" in row) == ("completions" in row):
            raise DataError(
                f"{where}: expected an object with `completion` or `completions`, such as "
                '{"prompt": "2+2=?", "answer": "4", "completion": "It is 4."}'
            )
        yield where, row
    if empty:
        raise DataError(f"{file} has no completions")


def _found(task: Task, wanted: set[str]) -> dict[str, Prompt]:
    """Prompts of the task by id; looks through all of them only when one is asked for."""
    found: dict[str, Prompt] = {}
    for prompts in (task.train_prompts(), task.eval_prompts()) if wanted else ():
        for prompt in prompts:
            if prompt.id in wanted:
                found[prompt.id] = prompt
            if len(found) == len(wanted):
                return found
    return found


def _prompt(line: Mapping[str, Any], known: Mapping[str, Prompt], where: str) -> Prompt:
    if "id" in line:
        if str(line["id"]) not in known:
            raise DataError(f"{where}: the task has no prompt {str(line['id'])!r}")
        return known[str(line["id"])]
    content = line.get("prompt")
    if isinstance(content, list) and all(isinstance(m, dict) for m in content) and content:
        content = tuple(content)
    elif not isinstance(content, str):
        raise DataError(
            f"{where}: expected `id` of one of the task's prompts, or `prompt`: text "
            "or a list of messages"
        )
    columns = {key: value for key, value in line.items() if key not in OWN}
    return Prompt(id=where, content=content, columns=columns)


def _texts(line: Mapping[str, Any], where: str) -> list[str]:
    several = line.get("completions", [line.get("completion")])
    texts = []
    for value in several if isinstance(several, list) else [several]:
        if isinstance(value, list) and value and isinstance(value[-1], dict):
            value = value[-1].get("content")
        if not isinstance(value, str):
            raise DataError(f"{where}: a completion is {value!r:.80}; expected text")
        texts.append(value)
    return texts


def _rollout(
    prompt: Prompt, text: str, truncated: bool, encode: Callable[[str], Sequence[int]]
) -> Rollout:
    ids = tuple(encode(text))
    # Nobody sampled these tokens, so there are no log-probs that a reward could look at.
    return Rollout(
        prompt=prompt,
        prompt_ids=(0,),
        group=0,
        sample=0,
        spans=(Span(token_ids=ids, logprobs=None, policy_version=None),),
        text=text,
        finish_reason="length" if truncated else "stop",
    )
