"""Tables seen otherwise: columns under other names, prompts made from columns."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from grpo_core.builtin.config import template_columns
from grpo_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from grpo_core.builtin.rows import Rows


class Renamed:
    """A table with some columns under other names."""

    def __init__(self, rows: Rows, names: Mapping[str, str]) -> None:
        """Raises ``DataError`` when there is no such column, or one of the new name already."""
        for old, new in names.items():
            if old not in rows.columns:
                raise DataError(no_column(rows, old, "rename_columns"))
            if new in rows.columns and new not in names:
                raise DataError(
                    f"{place(rows)} has a column {new!r} already, so {old!r} cannot be renamed to "
                    f"it; rename that one too, for instance {new}: old_{new}"
                )
        self._rows = rows
        self._new = {name: names.get(name, name) for name in rows.columns}
        self._old = {new: old for old, new in self._new.items()}
        self.columns = tuple(self._new.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {self._new[name]: value for name, value in self._rows[index].items()}

    def values(self, column: str) -> Iterator[Any]:
        return self._rows.values(self._old[column])

    def where(self, index: int) -> str:
        return self._rows.where(index)


class Templated:
    """A table with one more column (or one replaced): text made from the others."""

    def __init__(self, rows: Rows, column: str, template: str) -> None:
        """Raises ``DataError`` when the template names a column that is not there."""
        self._rows, self._column, self._template = rows, column, template
        self._names = template_columns(template)
        for name in self._names:
            if name not in rows.columns:
                raise DataError(no_column(rows, name, "prompt_template"))
        self.columns = tuple(dict.fromkeys([*rows.columns, column]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self._rows[index]
        text = self._text(index, [row[name] for name in self._names])
        return {**row, self._column: text}

    def values(self, column: str) -> Iterator[Any]:
        if column != self._column:
            return self._rows.values(column)
        cells = zip(*(self._rows.values(name) for name in self._names), strict=True)
        return (self._text(index, values) for index, values in enumerate(cells))

    def where(self, index: int) -> str:
        return self._rows.where(index)

    def _text(self, index: int, values: Sequence[Any]) -> str:
        for name, value in zip(self._names, values, strict=True):
            # "Question: None" is a prompt that nobody would notice.
            if not isinstance(value, (str, int, float)):
                kind = "null" if value is None else f"a {type(value).__name__}"
                raise DataError(
                    f"{self.where(index)}: `{name}`, which prompt_template asks for, is {kind}; "
                    "expected text or a number"
                )
        return self._template.format(**dict(zip(self._names, values, strict=True)))


def no_column(rows: Rows, column: str, option: str) -> str:
    """An error's text: what was asked for by which option, what there is, and the nearest."""
    near = difflib.get_close_matches(column, rows.columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"{place(rows)} has no column {column!r}, which {option} asks for; its columns are: "
        f"{', '.join(rows.columns)}{hint}"
    )


def place(rows: Rows) -> str:
    """What the table was read from, without a row."""
    return rows.where(0).rpartition(",")[0]
