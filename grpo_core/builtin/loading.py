"""From what a config calls `path` to a table of rows."""

from __future__ import annotations

import glob
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.builtin.rows import Arrow, Concatenated, InMemory, JsonLines, Rows
from grpo_core.errors import ConfigError, DataError, GRPOError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def open_rows(
    path: str | tuple[str, ...],
    *,
    split: str,
    subset: str | None = None,
    revision: str | None = None,
) -> Rows:
    """Open files, a folder or a Hub data set.

    Raises:
        DataError: nothing is there, it is empty, or it cannot be read; names the place.
        ConfigError: a package that is needed for it is not installed.
    """
    parts = [
        rows
        for place in ((path,) if isinstance(path, str) else path)
        for rows in _open_place(place, split, subset, revision)
    ]
    rows = parts[0] if len(parts) == 1 else Concatenated(parts)
    if len(rows) == 0:
        raise DataError(f"{_spoken(path)} has no rows; a run needs at least one prompt")
    return rows


def _open_place(place: str, split: str, subset: str | None, revision: str | None) -> list[Rows]:
    if Path(place).is_file():
        return [_open_file(Path(place))]
    if Path(place).is_dir():
        return _open_folder(Path(place), split, subset)
    if any(c in place for c in "*?["):
        files = sorted(f for f in glob.glob(place, recursive=True) if Path(f).is_file())
        if not files:
            raise DataError(f"no file matches {place!r} (looked in {Path.cwd()})")
        return [_open_file(Path(file)) for file in files]
    # 'data/train' may be a folder that is missing or a Hub id; a suffix or a leading dot or
    # slash leaves no doubt, and must not become a question to a server.
    if Path(place).suffix in READERS or place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise DataError(f"there is no file or folder {place!r} (looked in {Path.cwd()})")
    return [_open_hub(place, split, subset, revision)]


def _open_file(file: Path) -> Rows:
    reader = READERS.get(file.suffix)
    if reader is None:
        raise DataError(
            f"{file} has suffix {file.suffix!r}, which is not read; these are: {', '.join(READERS)}"
        )
    return reader(file)


def _open_json(file: Path) -> Rows:
    with file.open("rb") as handle:
        array = handle.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not array:
        return JsonLines(file)  # many files called .json hold one object per line
    try:
        rows = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from None
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{file}, row {index} (counted from 0) is a JSON {type(row).__name__}; expected "
                'objects such as {"prompt": "..."}'
            )
    return InMemory(rows, str(file))


def _open_csv(file: Path) -> Rows:
    """Every cell as the text it is: guessed types would turn an answer of 007 into 7."""
    with _attributed(str(file)):
        import pyarrow.csv as pacsv
        from datasets import Dataset

        with file.open("rb") as handle:
            if not handle.read(1024).strip():
                raise DataError(f"{file} is empty; expected a line of column names and rows")
        parsing = pacsv.ParseOptions(newlines_in_values=True)
        with pacsv.open_csv(file, parse_options=parsing) as reader:
            names = reader.schema.names
        options = pacsv.ConvertOptions(column_types=dict.fromkeys(names, "string"))
        table = pacsv.read_csv(file, parse_options=parsing, convert_options=options)
        return Arrow(Dataset(table), str(file))


def _open_parquet(file: Path) -> Rows:
    with _attributed(str(file)):
        from datasets import load_dataset

        # The file's name is a pattern to `datasets`: one with brackets in it would not be found.
        pattern = glob.escape(str(file))
        return Arrow(load_dataset("parquet", data_files=pattern, split="train"), str(file))


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": JsonLines,
    ".json": _open_json,
    ".parquet": _open_parquet,
    ".csv": _open_csv,
}


def _open_folder(folder: Path, split: str, subset: str | None) -> list[Rows]:
    source = f"{folder} (split {split})"
    with _attributed(source):
        import datasets

        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            return [Arrow(_split_of(saved, split, source), source)]
        # Which file belongs to which split is a convention of `datasets`; how JSON and CSV are
        # read is ours, so that a folder gives the same values as its files.
        files = datasets.load_dataset_builder(str(folder), name=subset).config.data_files or {}
        if split in files and all(Path(file).suffix in READERS for file in files[split]):
            return [_open_file(Path(file)) for file in files[split]]
        return [Arrow(datasets.load_dataset(str(folder), name=subset, split=split), source)]


def _split_of(saved: Any, split: str, source: str) -> Any:
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise DataError(f"{source}: there is no such split; there are: {', '.join(saved)}")
    return saved[split]


def _open_hub(name: str, split: str, subset: str | None, revision: str | None) -> Rows:
    source = f"{name} (split {split})"
    hint = f"; there is no file or folder {name!r} in {Path.cwd()}, so it was taken for a Hub id"
    with _attributed(source, hint):
        import datasets

        return Arrow(
            datasets.load_dataset(name, name=subset, split=split, revision=revision), source
        )


@contextmanager
def _attributed(source: str, hint: str = "") -> Iterator[None]:
    """Whatever pyarrow, datasets and the Hub raise becomes one error that names the source."""
    try:
        yield
    except GRPOError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{source} needs the package {error.name!r}: pip install grpo-core[hf]"
        ) from error
    except Exception as error:
        # `datasets` says "an error occurred while generating the dataset"; the cause says which.
        cause = error.__cause__ or error
        text = str(cause).strip() or "no further explanation"
        raise DataError(
            f"{source} cannot be loaded: {type(cause).__name__}: {text}{hint}"
        ) from error


def _spoken(path: str | tuple[str, ...]) -> str:
    return path if isinstance(path, str) else ", ".join(path)
