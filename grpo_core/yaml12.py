"""YAML by the 1.2 core schema, out of PyYAML, which speaks 1.1.

In YAML 1.1 ``1e-6`` is a string, ``no`` is false and ``010`` is eight: each of these would start a
run with another setting than the one written. So numbers are read as people write them, and true
and false are the only booleans.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"""[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$
       |[-+]?[0-9]+[eE][-+]?[0-9]+$
       |[-+]?\.(inf|Inf|INF)$
       |\.(nan|NaN|NAN)$""",
    re.VERBOSE,
)
CORE_SCHEMA = {
    "null": (re.compile(r"~$|null$|Null$|NULL$|$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true$|True$|TRUE$|false$|False$|FALSE$"), list("tTfF")),
    "int": (re.compile(r"[-+]?[0-9]+$|0o[0-7]+$|0x[0-9a-fA-F]+$"), list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
}


class Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would take for something other than the string it is."""

    yaml_implicit_resolvers = {
        first: list(resolvers)
        for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _name, (_pattern, _first) in CORE_SCHEMA.items():
    Loader.add_implicit_resolver(TAG + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(TAG + _name, _pattern, _first)


def dump(data: Any, *, ascii_only: bool = False) -> str:
    """Plain data as YAML in the order given; reading it gives the same back.

    ``ascii_only`` writes every other character as an escape, for output that a terminal shows.
    """
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only, width=100)
    # YAML 1.1 breaks lines at these, and a break inside a value is read back as a space.
    if not ascii_only and any(c in text for c in "\x85\u2028\u2029"):
        return dump(data, ascii_only=True)
    return text
