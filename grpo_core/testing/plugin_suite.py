"""What every plugin distribution promises, as tests to inherit."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from grpo_core.errors import PluginError
from grpo_core.plugins import Registration, Registry, build, config_model
from grpo_core.plugins.registrar import Role
from grpo_core.protocols import (
    Advantage,
    BuildContext,
    Environment,
    Generator,
    Loss,
    Reference,
    RewardProvider,
    Saver,
    Task,
)

PROTOCOLS: Mapping[Role, type] = {
    "task": Task,
    "generator": Generator,
    "environment": Environment,
    "reward": RewardProvider,
    "advantage": Advantage,
    "loss": Loss,
    "reference": Reference,
    "saver": Saver,
    "observer": object,
}
assert set(PROTOCOLS) == set(get_args(Role))


class PluginSuite:
    """Inherit in a test module, and pytest runs every check below against the installed package::

    class TestPlugin(PluginSuite):
        distribution = "grpo-rewards-closeness"
        package = "grpo_rewards_closeness"
    """

    distribution: ClassVar[str]
    """As pip calls it."""
    package: ClassVar[str]
    """As Python imports it."""
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Component name to options, for components that cannot be built without any."""

    def registrations(self) -> list[Registration]:
        """What the distribution offers.

        Raises:
            PluginError: it is broken; with the exception that it was loaded with.
        """
        discovery = Registry.installed().discovery
        for broken in discovery.broken:
            if broken.source.distribution == self.distribution:
                raise PluginError(f"{broken.source} cannot be loaded: {broken.reason}")
        return [r for r in discovery.registrations if r.source.distribution == self.distribution]

    def test_it_is_found_and_offers_something(self) -> None:
        assert self.registrations(), f"pip install {self.distribution}, and give it an entry point"

    def test_every_component_has_a_summary_and_a_name_of_its_own(self) -> None:
        for registration in self.registrations():
            assert registration.summary, registration.name
            # Raises when another installed distribution offers the same name.
            Registry.installed().get(registration.role, registration.name)

    def test_every_component_is_built_and_keeps_its_protocol(self) -> None:
        for registration in self.registrations():
            model = config_model(registration)
            given = self.options.get(registration.name, {})
            context = BuildContext(
                role=registration.role, name=registration.name, seed=0, run_dir=None
            )
            component = build(registration, model(**given) if model else given or None, context)
            # A reward may also be a plain function, which the trainer adapts.
            fits = isinstance(component, PROTOCOLS[registration.role])
            assert fits or (registration.role == "reward" and callable(component)), registration

    def test_registration_and_options_import_nothing_heavy(self) -> None:
        modules = {
            r.config.partition(":")[0] for r in self.registrations() if isinstance(r.config, str)
        }
        code = (
            "import sys; from grpo_core.plugins import Registry; Registry.installed()\n"
            f"import {', '.join(sorted({self.package, *modules}))}\n"
            "sys.exit(str({'torch', 'transformers', 'numpy'} & sys.modules.keys() or ''))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert not done.stderr.strip(), done.stderr

    def test_public_names_can_be_imported(self) -> None:
        package = importlib.import_module(self.package)
        for name in getattr(package, "__all__", ()):
            assert getattr(package, name) is not None
