"""YAML as people write it, and where each value was written."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_core.config.problems import Problems
from grpo_core.config.tree import Place
from grpo_core.config.yaml_text import read_text
from grpo_core.errors import ConfigError
from grpo_core.yaml12 import dump


def read(text: str) -> object:
    problems = Problems()
    node = read_text(text, "a.yaml", problems)
    problems.raise_if_any()
    assert node is not None
    return node.plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),  # a string to PyYAML
        ("2E5", 2e5),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),  # 8 to PyYAML
        ("1:30", "1:30"),  # 90 to PyYAML
        ("no", "no"),  # False to PyYAML
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("2024-01-01", "2024-01-01"),  # a date to PyYAML
        ("1_000", "1_000"),
        ("'1e-6'", "1e-6"),
        ("!!str 12", "12"),
        ("-.inf", -math.inf),
        ("e5", "e5"),
        ("my_rewards.py:score", "my_rewards.py:score"),
        ("{1: a, true: b}", {"1": "a", "true": "b"}),
        ("[1, [2, {a: 3}]]", [1, [2, {"a": 3}]]),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
    ],
)
def test_scalars_are_read_as_they_are_written(text: str, value: object) -> None:
    found = read(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(read(".nan"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "a.yaml:3: key 'a' is already given at a.yaml:1"),
        ("a:\n\tb: 1", "a.yaml:2: not valid YAML: found character '\\t'"),
        ("a: [1, 2", "a.yaml:1: not valid YAML"),
        ("a: 1\n---\nb: 2", "a.yaml:2: not valid YAML: but found another document"),
        ("a: !!python/object:os.system x", "a.yaml:1: the tag"),
        ("a: !secret x", "a.yaml:1: the tag '!secret' is not supported"),
        ("a: 1\nb: &b {c: *b}", "a.yaml:2: the anchor refers to itself"),
        ("x: &x {a: 1}\ny:\n  <<: *x", "a.yaml:3: merge keys (<<) are not supported"),
        ("? [1]\n: 2", "a.yaml:1: a key must be a plain word"),
        ("a: !!int x", "a.yaml:1: 'x' is no int"),
        ("a: \x07", "a.yaml: not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert message in str(caught.value)


def test_every_value_knows_its_line() -> None:
    node = read_text("a: 1\nb:\n  c: 2\n  d:\n    - 3\n    - e: 4\n", "a.yaml", Problems())
    assert node is not None
    assert node["a"].place == Place("a.yaml", 1)
    assert node["b"]["c"].place == Place("a.yaml", 3)
    assert node["b"]["d"][1].place == Place("a.yaml", 6)
    assert node.place_of(("b", "d", 1, "e")) == Place("a.yaml", 6)
    assert node.place_of(("b", "missing", "x")) == Place("a.yaml", 2)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["1e-6", "no", "0o7", "1:30", "~", "", " x ", "1_0", "<<", "=", ".inf", "-"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda k: k != "<<"), inner),
)


@settings(max_examples=50)
@given(PLAIN, st.booleans())
def test_what_is_dumped_reads_the_same(data: object, ascii_only: bool) -> None:
    text = dump({"x": data}, ascii_only=ascii_only)
    assert read(text) == {"x": data}
    assert text.isascii() or not ascii_only


@settings(max_examples=50)
@given(PLAIN)
def test_what_is_dumped_reads_the_same_for_pyyaml(data: object) -> None:
    # People read config.yaml with what they have, which is YAML 1.1.
    assert yaml.safe_load(dump({"x": data})) == {"x": data}
