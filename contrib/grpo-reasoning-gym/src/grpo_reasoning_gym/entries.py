"""Entries of reasoning-gym datasets, made again from a few words that a prompt carries."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from grpo_core.errors import ConfigError, DataError

COLUMN = "reasoning_gym"
"""The column that says which entry a prompt is: dataset, options, seed and index, as JSON."""


def make_dataset(name: str, options: Mapping[str, Any], *, size: int, seed: int) -> Any:
    """A dataset of ``size`` entries; entry ``i`` depends on name, options, seed and ``i`` alone.

    Raises:
        ConfigError: there is no such dataset, or it does not take these options.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(DATASETS)}"
        raise ConfigError(f"reasoning-gym has no dataset {name!r}; {hint}")
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **options)
    except (AssertionError, TypeError, ValueError) as error:
        known = ", ".join(sorted(DATASETS[name][1].__dataclass_fields__))
        reason = str(error) or "an assertion of its config fails"
        raise ConfigError(
            f"reasoning-gym dataset {name!r} refuses its options {dict(options)}: "
            f"{reason}. Its options are: {known}"
        ) from error


def key_of(name: str, options: Mapping[str, Any], *, size: int, seed: int, index: int) -> str:
    """What goes into ``COLUMN``."""
    words = {"dataset": name, "options": dict(options), "size": size, "seed": seed, "index": index}
    return json.dumps(words, sort_keys=True)


@lru_cache(maxsize=4096)
def entry_of(key: str) -> tuple[Any, Mapping[str, Any]]:
    """The dataset and the entry that a key names.

    Raises:
        DataError: it is no such key.
    """
    try:
        words = json.loads(key)
        name, index = words["dataset"], words["index"]
        options, size, seed = words["options"], words["size"], words["seed"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the column {COLUMN!r} holds {key!r:.100}, which the task reasoning-gym has not "
            "written; this reward scores that task's prompts only"
        ) from error
    dataset = _dataset(name, json.dumps(options, sort_keys=True), size, seed)
    return dataset, dataset[index]


@lru_cache(maxsize=64)
def _dataset(name: str, options: str, size: int, seed: int) -> Any:
    return make_dataset(name, json.loads(options), size=size, seed=seed)
