"""Tables of rows, opened but not loaded: what lies under the `dataset` task."""

from __future__ import annotations

import bisect
import json
import os
from array import array
from typing import TYPE_CHECKING, Any, Protocol

from grpo_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


class Rows(Protocol):
    """Rows by position. Positions count from 0, lines in files from 1."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def values(self, column: str) -> Iterator[Any]:
        """One column from top to bottom; ``None`` where a row lacks it."""

    def where(self, index: int) -> str:
        """A row's place as a person would look it up: ``"data.jsonl, line 17"``."""


class JsonLines:
    """A JSON Lines file, of which only the positions of the lines are held in memory.

    Read here and not with ``datasets``, whose reader turns strings that look like dates into
    ``datetime`` objects: an answer of ``"2024-01-01"`` would never again equal the model's text.
    """

    def __init__(self, file: Path) -> None:
        """Parse every line once.

        Raises:
            DataError: a line is not a JSON object; names file and line.
        """
        self.file = file
        self._handle = file.open("rb")
        self._starts = array("Q")
        self._lengths = array("Q")
        names: dict[str, None] = {}
        start = 0
        for number, line in enumerate(self._handle, 1):
            if line.strip():
                names.update(dict.fromkeys(self._parsed(line, number)))
                self._starts.append(start)
                self._lengths.append(len(line))
            start += len(line)
        self.columns = tuple(names)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self._read(index)
        return {name: row.get(name) for name in self.columns}

    def values(self, column: str) -> Iterator[Any]:
        return (self._read(index).get(column) for index in range(len(self)))

    def where(self, index: int) -> str:
        with self.file.open("rb") as handle:
            lines = handle.read(self._starts[index]).count(b"\n")
        return f"{self.file}, line {lines + 1}"

    def _read(self, index: int) -> dict[str, Any]:
        # pread leaves the file's position alone, so that threads may read at the same time.
        line = os.pread(self._handle.fileno(), self._lengths[index], self._starts[index])
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{self.file} was changed while a run was reading it; start again")
        return row

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            cut = "" if line.endswith(b"\n") else "; it has no newline: was the file cut off?"
            raise DataError(f"{self.file}, line {number} is not valid JSON: {error}{cut}") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{self.file}, line {number} is a JSON {type(row).__name__}; expected one object "
                'per line, such as {"prompt": "..."}'
            )
        return row


class InMemory:
    """The rows of a JSON array."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], source: str) -> None:
        self._rows = rows
        self._source = source
        self.columns = tuple(dict.fromkeys(name for row in rows for name in row))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {name: self._rows[index].get(name) for name in self.columns}

    def values(self, column: str) -> Iterator[Any]:
        return (row.get(column) for row in self._rows)

    def where(self, index: int) -> str:
        return f"{self._source}, row {index} (counted from 0)"


class Arrow:
    """A ``datasets.Dataset``, which reads its memory-mapped table row by row."""

    def __init__(self, dataset: Any, source: str) -> None:
        # A format saved with the data (torch, numpy) would hand tensors to rewards.
        self._dataset = dataset.with_format(None)
        self._source = source
        self.columns: tuple[str, ...] = tuple(dataset.column_names)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row: Mapping[str, Any] = self._dataset[index]
        return row

    def values(self, column: str) -> Iterator[Any]:
        for batch in self._dataset.select_columns([column]).iter(batch_size=4096):
            yield from batch[column]

    def where(self, index: int) -> str:
        return f"{self._source}, row {index} (counted from 0)"


class Concatenated:
    """Several tables, one after the other; a column that one of them lacks is ``None`` there."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part))
        self.columns = tuple(dict.fromkeys(name for part in parts for name in part.columns))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        part, within = self._find(index)
        row = part[within]
        return {name: row.get(name) for name in self.columns}

    def values(self, column: str) -> Iterator[Any]:
        for part in self._parts:
            if column in part.columns:
                yield from part.values(column)
            else:
                yield from (None for _ in range(len(part)))

    def where(self, index: int) -> str:
        part, within = self._find(index)
        return part.where(within)

    def _find(self, index: int) -> tuple[Rows, int]:
        position = bisect.bisect_right(self._starts, index) - 1
        return self._parts[position], index - self._starts[position]
