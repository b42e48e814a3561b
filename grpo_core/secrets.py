"""What looks like a credential does not leave the machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SECRET_NAME = re.compile(r"token$|secret|passw|api_?key|credential|authorization", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"\bhf_\w{8,}|\bsk-[\w-]{8,}|\bgh[opsu]_\w{20,}|\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=token=)[^&\s]+|(?<=api_key=)[^&\s]+|(?<=Bearer )[\w.~+/-]{8,}|(?<=://)[^/\s@]+@"
)
HIDDEN = "(hidden)"


def without_secrets(value: Any, text: Callable[[str], str] = str) -> Any:
    """Plain data with everything that looks like a credential replaced by ``HIDDEN``.

    A value is hidden whole when its key says what it is, and in part where a known form of token,
    or a password in a URL, stands in it. ``text`` is applied to every string before.
    """
    if isinstance(value, Mapping):
        return {
            str(k): HIDDEN
            if v is not None and SECRET_NAME.search(str(k))
            else without_secrets(v, text)
            for k, v in value.items()
        }
    if isinstance(value, str):
        return SECRET_VALUE.sub(HIDDEN, text(value))
    if isinstance(value, Sequence):
        return [without_secrets(v, text) for v in value]
    return value
