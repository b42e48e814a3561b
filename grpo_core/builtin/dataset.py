"""The `dataset` task: prompts from rows, all of them checked before anything else starts."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, overload

from grpo_core.builtin.cells import characters, content_of, prompt_problem
from grpo_core.builtin.loading import open_rows
from grpo_core.builtin.views import Renamed, Templated, place
from grpo_core.errors import ConfigError, DataError
from grpo_core.types import Prompt

if TYPE_CHECKING:
    from grpo_core.builtin.config import DatasetConfig
    from grpo_core.builtin.rows import Rows
    from grpo_core.protocols import BuildContext

logger = logging.getLogger(__name__)

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
        self._seed = 0 if context is None else context.seed
        rows = self._seen(
            open_rows(
                config.path, split=config.split, subset=config.subset, revision=config.revision
            )
        )
        fingerprints = self._checked(rows)
        held_out: set[int] = set()
        if config.eval_fraction:
            held_out = self._held_out(fingerprints)
            self._eval: Sequence[Prompt] = RowPrompts(rows, sorted(held_out), "eval", config)
        else:
            self._eval = self._open_eval()
        kept = self._limited([index for index in fingerprints if index not in held_out])
        self._train = RowPrompts(rows, kept, "train", config)

    def train_prompts(self) -> Sequence[Prompt]:
        """In the order of the rows; ids are ``train/<row>``."""
        return self._train

    def eval_prompts(self) -> Sequence[Prompt]:
        """Ids are ``eval/<row>``; empty unless the config says what to hold out."""
        return self._eval

    def _seen(self, rows: Rows) -> Rows:
        """The table under the names, and with the prompts, that the config asks for."""
        config = self._config
        if config.rename_columns:
            rows = Renamed(rows, config.rename_columns)
        if config.prompt_template is not None:
            rows = Templated(rows, config.prompt_column, config.prompt_template)
        return rows

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
        rows = self._seen(rows)
        return RowPrompts(rows, list(self._checked(rows)), "eval", config)

    def _checked(self, rows: Rows) -> dict[int, bytes]:
        """Fingerprints of the prompts that are kept, by row; raises ``DataError`` at the first
        that is none."""
        column = self._config.prompt_column
        if column not in rows.columns:
            raise DataError(_no_column(rows, column))
        found: dict[int, bytes] = {}
        first: type | None = None
        longest = self._config.max_prompt_chars
        for index, value in enumerate(rows.values(column)):
            problem = prompt_problem(value, system=self._config.system_prompt is not None)
            if problem is None and first is None:
                first = type(value)
            elif problem is None and type(value) is not first:
                problem = "is text" if isinstance(value, str) else "is a list of messages"
                problem += f", unlike the one of {rows.where(0)}; one data set holds one kind"
            if problem is not None:
                raise DataError(f"{rows.where(index)}: `{column}` {problem}")
            if longest is None or characters(value) <= longest:
                found[index] = self._fingerprint(value)
        if not found:
            raise DataError(
                f"{place(rows)}: every prompt has more than {longest} characters; raise "
                "max_prompt_chars"
            )
        if len(found) < len(rows):
            logger.warning(
                "%s: %d of %d prompts have more than %d characters and are left out "
                "(max_prompt_chars)",
                *(place(rows), len(rows) - len(found), len(rows), longest),
            )
        return found

    def _fingerprint(self, value: object) -> bytes:
        # Only needed to hold prompts out; a large data set need not be hashed for nothing.
        if not self._config.eval_fraction:
            return b""
        return json.dumps(value, sort_keys=True, default=str).encode()

    def _held_out(self, prompts: Mapping[int, bytes]) -> set[int]:
        """Rows to hold out. Rows with the same prompt stay on the same side: a prompt that is
        trained on and then measured would flatter the policy."""
        rows_of: dict[bytes, list[int]] = {}
        for index, prompt in prompts.items():
            rows_of.setdefault(self._key(prompt), []).append(index)
        count = max(1, round(self._config.eval_fraction * len(rows_of)))
        if count >= len(rows_of):
            raise DataError(
                f"eval_fraction={self._config.eval_fraction} of {len(rows_of)} distinct prompts "
                "leaves none to train on"
            )
        return {index for key in sorted(rows_of)[:count] for index in rows_of[key]}

    def _limited(self, kept: list[int]) -> list[int]:
        """``fraction`` and ``max_prompts`` of the rows, in their order."""
        count = max(1, round(self._config.fraction * len(kept)))
        count = min(count, self._config.max_prompts or count)
        if count == len(kept):
            return kept
        # By the row's number and not by its text: rows with one prompt are chosen apart.
        chosen = sorted(kept, key=lambda index: self._key(str(index).encode()))
        return sorted(chosen[:count])

    def _key(self, text: bytes) -> bytes:
        return hashlib.blake2b(text, key=str(self._seed).encode(), digest_size=16).digest()


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
            content=content_of(
                value, self._config.system_prompt, conversational=self._config.conversational
            ),
            columns=columns,
        )


def _no_column(rows: Rows, column: str) -> str:
    guess = next((name for name in COMMON_NAMES if name in rows.columns), None)
    guess = guess or next(iter(difflib.get_close_matches(column, rows.columns, n=1)), None)
    hint = f", for instance prompt_column: {guess}" if guess else ""
    return (
        f"{place(rows)} has no column {column!r}; its columns are: {', '.join(rows.columns)}. "
        f"Set prompt_column to the one that holds the prompts{hint}."
    )
