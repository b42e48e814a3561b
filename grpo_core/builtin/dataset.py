"""The `dataset` task: prompts from rows, all of them checked before anything else starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from grpo_core.builtin.cells import content_of, prompt_problem
from grpo_core.builtin.loading import open_rows
from grpo_core.errors import ConfigError, DataError
from grpo_core.types import Prompt

if TYPE_CHECKING:
    from grpo_core.builtin.config import DatasetConfig
    from grpo_core.builtin.rows import Rows
    from grpo_core.protocols import BuildContext

COMMON_NAMES = ("question", "problem", "messages", "instruction", "query", "input", "text")
"""What data sets call their prompts when they do not call them `prompt`."""


class DatasetTask:
    """Prompts from JSON Lines, JSON, Parquet or CSV files, a folder, or a Hub data set.

    A prompt is text or a list of messages; every other column goes to the rewards as it is. Rows
    are read when they are asked for.
    """

    def __init__(
        self, config: DatasetConfig | None = None, context: BuildContext | None = None
    ) -> None:
        """Open the data and check every prompt.

        Raises:
            ConfigError: no config; there is no data set to fall back on.
            DataError: data is missing, empty or malformed; names file and line or row.
        """
        if config is None:
            raise ConfigError("the dataset task needs a path: DatasetTask(DatasetConfig(path=...))")
        self._config = config
        rows = open_rows(
            config.path, split=config.split, subset=config.subset, revision=config.revision
        )
        if config.eval_fraction:
            seed = 0 if context is None else context.seed
            held_out = self._held_out(self._checked(rows), seed)
            kept = [index for index in range(len(rows)) if index not in held_out]
            self._train = RowPrompts(rows, kept, "train", config)
            self._eval: Sequence[Prompt] = RowPrompts(rows, sorted(held_out), "eval", config)
        else:
            self._checked(rows)
            self._train = RowPrompts(rows, range(len(rows)), "train", config)
            self._eval = self._open_eval()

    def train_prompts(self) -> Sequence[Prompt]:
        """In the order of the rows; ids are ``train/<row>``."""
        return self._train

    def eval_prompts(self) -> Sequence[Prompt]:
        """Ids are ``eval/<row>``; empty unless the config says what to hold out."""
        return self._eval

    def _open_eval(self) -> Sequence[Prompt]:
        config = self._config
        split = config.eval_split or config.split
        if config.eval_path is not None:
            rows = open_rows(config.eval_path, split=split)
        elif config.eval_split is not None:
            rows = open_rows(
                config.path, split=split, subset=config.subset, revision=config.revision
            )
        else:
            return ()
        self._checked(rows)
        return RowPrompts(rows, range(len(rows)), "eval", config)

    def _checked(self, rows: Rows) -> list[bytes]:
        """A fingerprint of every prompt; raises ``DataError`` at the first that is none."""
        column = self._config.prompt_column
        if column not in rows.columns:
            raise DataError(_no_column(rows, column))
        fingerprints: list[bytes] = []
        first: type | None = None
        for index, value in enumerate(rows.values(column)):
            problem = prompt_problem(value, system=self._config.system_prompt is not None)
            if problem is None and first is None:
                first = type(value)
            elif problem is None and type(value) is not first:
                problem = "is text" if isinstance(value, str) else "is a list of messages"
                problem += f", unlike the one of {rows.where(0)}; one data set holds one kind"
            if problem is not None:
                raise DataError(f"{rows.where(index)}: `{column}` {problem}")
            if self._config.eval_fraction:
                fingerprints.append(json.dumps(value, sort_keys=True, default=str).encode())
        return fingerprints

    def _held_out(self, prompts: Sequence[bytes], seed: int) -> set[int]:
        """Rows to hold out. Rows with the same prompt stay on the same side: a prompt that is
        trained on and then measured would flatter the policy."""
        rows_of: dict[bytes, list[int]] = {}
        for index, prompt in enumerate(prompts):
            key = hashlib.blake2b(prompt, key=str(seed).encode(), digest_size=16).digest()
            rows_of.setdefault(key, []).append(index)
        count = max(1, round(self._config.eval_fraction * len(rows_of)))
        if count >= len(rows_of):
            raise DataError(
                f"eval_fraction={self._config.eval_fraction} of {len(rows_of)} distinct prompts "
                "leaves none to train on"
            )
        return {index for key in sorted(rows_of)[:count] for index in rows_of[key]}


class RowPrompts(Sequence[Prompt]):
    """A view of some rows as prompts, built when they are read."""

    def __init__(
        self, rows: Rows, indices: Sequence[int], label: str, config: DatasetConfig
    ) -> None:
        self._rows = rows
        self._indices = indices
        self._label = label
        self._config = config

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> RowPrompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | RowPrompts:
        if isinstance(index, slice):
            return RowPrompts(self._rows, self._indices[index], self._label, self._config)
        row_index = self._indices[index]
        columns = dict(self._rows[row_index])
        value = columns.pop(self._config.prompt_column)
        return Prompt(
            id=f"{self._label}/{row_index}",
            content=content_of(value, self._config.system_prompt),
            columns=columns,
        )


def _no_column(rows: Rows, column: str) -> str:
    guess = next((name for name in COMMON_NAMES if name in rows.columns), None)
    hint = f", for instance prompt_column: {guess}" if guess else ""
    place = rows.where(0).rpartition(",")[0]
    return (
        f"{place} has no column {column!r}; its columns are: {', '.join(rows.columns)}. "
        f"Set prompt_column to the one that holds the prompts{hint}."
    )
