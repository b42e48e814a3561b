"""What somebody types, and what a package is then called."""

import pytest

from grpo_core.errors import ConfigError
from grpo_core.plugins import Registry
from grpo_core.scaffold.names import OWN, Names, names_of


@pytest.mark.parametrize(
    "typed", ["Near Miss", "near_miss", "near-miss", " NEAR..miss ", "grpo-rewards-near-miss"]
)
def test_every_spelling_is_the_same_package(typed: str) -> None:
    assert names_of(typed, "reward") == Names(
        distribution="grpo-rewards-near-miss",
        package="grpo_rewards_near_miss",
        component="near-miss",
        cls="NearMiss",
    )


def test_a_full_name_is_kept() -> None:
    assert names_of("grpo-acme", "loss").distribution == "grpo-acme"
    assert names_of("grpo-acme", "loss").component == "acme"
    assert names_of("x2", "loss").distribution == "grpo-losses-x2"


@pytest.mark.parametrize("typed", ["", "1st", "../evil", "a/b", "ümlaut", "a b;c", "$x", "-"])
def test_what_is_no_name(typed: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a package"):
        names_of(typed, "reward")


@pytest.mark.parametrize(
    ("typed", "kind", "message"),
    [
        ("grpo-rewards", "reward", "one of grpo-core's own"),
        ("grpo-core", "reward", "one of grpo-core's own"),
        ("dapo", "loss", "grpo-losses has a loss 'dapo' already"),
        ("dataset", "task", "grpo-core has a task 'dataset' already"),
        ("a" * 31, "reward", "31 characters"),
        ("grpo-rewards-1st", "reward", "must begin with a letter"),
    ],
)
def test_names_that_are_taken_or_cannot_work(typed: str, kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        names_of(typed, kind)  # type: ignore[arg-type]


def test_the_cores_own_names_are_those_that_it_registers() -> None:
    found: dict[str, list[str]] = {}
    for registration in Registry.installed().discovery.registrations:
        if registration.source.distribution == "grpo-core":
            found.setdefault(registration.role, []).append(registration.name)
    assert {role: sorted(names) for role, names in found.items()} == {
        role: sorted(names) for role, names in OWN.items()
    }
