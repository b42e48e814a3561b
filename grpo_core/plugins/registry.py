"""Look a component up by role and name, or say precisely why that cannot be done."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Sequence

from grpo_core.errors import ComponentCollisionError, PluginError, UnknownComponentError
from grpo_core.plugins.catalog import provider_of
from grpo_core.plugins.discovery import Discovery, discover
from grpo_core.plugins.registrar import Registration, Role


class Registry:
    """What is available, from one scan. Selecting is the config's business."""

    def __init__(self, discovery: Discovery) -> None:
        self.discovery = discovery
        self._offers: dict[tuple[Role, str], list[Registration]] = defaultdict(list)
        for registration in discovery.registrations:
            self._offers[registration.role, registration.name].append(registration)

    @classmethod
    def installed(cls, *, files: Sequence[str] = (), disable: Sequence[str] = ()) -> Registry:
        """Scan the environment; see ``grpo_core.plugins.discovery.discover``."""
        return cls(discover(files=files, disable=disable))

    def names(self, role: Role) -> list[str]:
        """All names on offer for a role, sorted."""
        return sorted(name for (r, name) in self._offers if r == role)

    def offers(self, role: Role) -> list[Registration]:
        """All registrations of a role, collisions included, sorted by name."""
        return [r for name in self.names(role) for r in self._offers[role, name]]

    def get(self, role: Role, name: str) -> Registration:
        """The one registration of ``name`` for ``role``.

        Raises:
            ComponentCollisionError: more than one plugin offers the name.
            UnknownComponentError: none does; the message has the nearest name, what is
                installed, which package would provide it and which plugins are broken.
        """
        offers = self._offers.get((role, name), [])
        if len(offers) == 1:
            return offers[0]
        if offers:
            who = " and ".join(str(r.source) for r in offers)
            raise ComponentCollisionError(
                f"{role} {name!r} is offered by {who}; uninstall one of them, or leave one out "
                f"with --disable-plugin {offers[0].source.plugin}"
            )
        raise UnknownComponentError(self._unknown(role, name))

    def _unknown(self, role: Role, name: str) -> str:
        installed = self.names(role)
        text = f"there is no {role} {name!r}"
        near = difflib.get_close_matches(name, installed, n=1)
        text += f"; did you mean {near[0]!r}?" if near else "."
        text += f" Installed: {', '.join(installed) or 'none'}."
        package = provider_of(role, name)
        if package is not None:
            if any(package == s.distribution for s in self.discovery.disabled):
                text += f" It comes with {package}, which is disabled."
            elif any(package == b.source.distribution for b in self.discovery.broken):
                text += f" It comes with {package}, which is installed but broken."
            else:
                text += f" It comes with {package}: pip install {package}."
        elif ":" not in name:
            text += " A component of your own needs no packaging: name it 'package.module:Name'."
        for broken in self.discovery.broken:
            # The wanted component may be inside the plugin that failed to load.
            text += f" Plugin {broken.source.plugin!r} ({broken.source}) failed to load: "
            text += f"{broken.reason}."
        return text


def require_sound(registry: Registry) -> None:
    """Raise ``PluginError`` if any installed plugin is broken (``GRPO_STRICT_PLUGINS=1``)."""
    if registry.discovery.broken:
        lines = [f"{b.source.plugin} ({b.source}): {b.reason}" for b in registry.discovery.broken]
        raise PluginError("broken plugins: " + "; ".join(lines))
