"""A name leads to one component, or to a sentence that says what to do."""

from __future__ import annotations

import pytest

from grpo_core.errors import ComponentCollisionError, PluginError, UnknownComponentError
from grpo_core.plugins import ROLES, Discovery, Registry, Source, discover
from grpo_core.plugins.catalog import FIRST_PARTY
from grpo_core.plugins.registry import require_sound


def test_two_distributions_with_one_name(distribution, offers) -> None:
    distribution("grpo-left", offers("loss", "same"), version="1.0")
    distribution("grpo-right", offers("loss", "same"), version="2.0")
    registry = Registry.installed()
    with pytest.raises(ComponentCollisionError) as caught:
        registry.get("loss", "same")
    message = str(caught.value)
    assert "loss 'same' is offered by grpo-left 1.0 and grpo-right 2.0" in message
    assert "--disable-plugin grpo-left" in message
    # Which is what helps:
    remaining = Registry.installed(disable=["grpo-left"]).get("loss", "same")
    assert remaining.source.distribution == "grpo-right"


def test_one_name_in_two_roles_is_no_collision(distribution, offers) -> None:
    distribution("grpo-left", offers("loss", "same"))
    distribution("grpo-right", offers("reward", "same"))
    registry = Registry.installed()
    assert registry.get("loss", "same").source.plugin == "grpo-left"
    assert registry.get("reward", "same").source.plugin == "grpo-right"


def test_an_unknown_name_gets_the_nearest_and_all(distribution, offers) -> None:
    distribution("grpo-mine", offers("observer", "telescope"))
    with pytest.raises(UnknownComponentError) as caught:
        Registry.installed().get("observer", "telescop")
    message = str(caught.value)
    assert "there is no observer 'telescop'; did you mean 'telescope'?" in message
    assert "telescope" in message.partition("Installed: ")[2]
    assert "name it 'package.module:Name'" in message


def test_a_first_party_name_says_which_package() -> None:
    source = Source(plugin="grpo-losses", distribution="grpo-losses", version="1")
    nothing = Registry(Discovery(plugins=(), registrations=(), broken=(), disabled=()))
    off = Registry(Discovery(plugins=(), registrations=(), broken=(), disabled=(source,)))
    with pytest.raises(UnknownComponentError, match="with grpo-losses: pip install grpo-losses"):
        nothing.get("loss", "dapo")
    with pytest.raises(UnknownComponentError, match="comes with grpo-losses, which is disabled"):
        off.get("loss", "dapo")


def test_an_unknown_name_mentions_plugins_that_failed_to_load(distribution) -> None:
    distribution("grpo-bad", "import no_such_package", version="0.3")
    with pytest.raises(UnknownComponentError) as caught:
        Registry.installed().get("loss", "inside-the-bad-one")
    assert (
        "Plugin 'grpo-bad' (grpo-bad 0.3) failed to load: ModuleNotFoundError: No module named "
        "'no_such_package'." in str(caught.value)
    )


def test_strictness(distribution) -> None:
    distribution("grpo-bad", "import no_such_package", version="0.3")
    with pytest.raises(PluginError, match=r"broken plugins: .*grpo-bad \(grpo-bad 0.3\): Module"):
        require_sound(Registry.installed())


def test_the_catalog_says_what_the_packages_really_offer() -> None:
    offered: dict[str, dict[str, tuple[str, ...]]] = {}
    for registration in discover().registrations:
        distribution = registration.source.distribution
        if distribution in FIRST_PARTY:
            roles = offered.setdefault(distribution, {})
            roles[registration.role] = (*roles.get(registration.role, ()), registration.name)
    sorted_offers = {
        distribution: {role: tuple(sorted(names)) for role, names in roles.items()}
        for distribution, roles in offered.items()
    }
    assert sorted_offers == FIRST_PARTY


def test_every_component_is_summed_up_and_its_options_described() -> None:
    from grpo_core.config.components import checked_model

    registry = Registry.installed()
    for role in ROLES:
        for registration in registry.offers(role):
            assert registration.summary, registration
            model = checked_model(registration)
            for name, field in (model.model_fields if model else {}).items():
                assert field.description, f"{role} {registration.name}: {name}"
