"""Stop strings, found while tokens arrive. Tokens are the truth; text is only looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grpo_core.errors import ConfigError

_INCOMPLETE = "\ufffd"
"""What a tokenizer shows for bytes that are no character, or not yet one."""
_LONGEST_CHARACTER = 16
"""Tokens after which an unfinished character is taken for what it is, bytes that are no text.
UTF-8 needs at most 4 bytes; without a bound, noise would be decoded again and again, whole."""


class StopStrings:
    """Tells at which token one completion first contains one of the strings.

    Args:
        decode: token ids to text, special tokens included, spaces left as they are.
        stop: the strings.

    Raises:
        ConfigError: a stop string is empty, which every completion would contain at once.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str]) -> None:
        if "" in stop:
            raise ConfigError(f"sampling.stop is {list(stop)}: an empty string stops everything")
        self._decode = decode
        self._stop = tuple(stop)
        self._keep = max(map(len, stop), default=1) - 1
        self._ids: list[int] = []
        # Text of `_ids[:_read]` is settled. Decoding starts a little earlier, at `_start`, since
        # some tokenizers drop the space before the first token that they are given.
        self._start = self._read = 0
        self._tail = ""

    def completed_by(self, token_id: int) -> bool:
        """Take the next token; whether a stop string now stands in the text."""
        if not self._stop:
            return False
        self._ids.append(token_id)
        settled = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        # A token may end a stop string and begin a character at once, so what stands before the
        # unfinished character is searched now, not when the character is whole.
        seen = self._tail + text[len(settled) :]
        if any(stop in seen for stop in self._stop):
            return True
        pending = len(self._ids) - self._read
        if not text.endswith(_INCOMPLETE) or pending >= _LONGEST_CHARACTER:
            self._start, self._read = self._read, len(self._ids)
            # One character less than the longest string: what was searched cannot match again.
            self._tail = seen[-self._keep :] if self._keep else ""
        return False
