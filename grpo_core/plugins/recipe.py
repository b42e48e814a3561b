"""How to build a component in another process: nothing of it is built or pickled in this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from grpo_core.plugins.build import build, config_model, import_object
from grpo_core.plugins.registrar import Registration
from grpo_core.protocols import BuildContext


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A registration with options as plain data.

    Example: ``Recipe(registration=found, options={"column": "answer"}, context=context)``.
    """

    registration: Registration
    options: Mapping[str, Any] | None
    context: BuildContext

    @property
    def name(self) -> str:
        return self.registration.name

    def make(self) -> Any:
        """Build it; raises as ``build`` does."""
        registration = self.registration
        if isinstance(registration.target, str) and registration.source.distribution is None:
            # From a file or an import path: what was an object there is found by its name.
            target = import_object(registration.target, what=f"{registration.role} {self.name!r}")
            config = getattr(target, "Config", registration.config)
            registration = replace(registration, target=target, config=config)
        model = config_model(registration)
        options = model.model_validate(self.options) if model and self.options else self.options
        return build(registration, options, self.context)

    def __reduce__(self) -> tuple[Any, ...]:
        return _recipe, (_portable(self.registration), self.options, self.context)


def _recipe(registration: Registration, options: Any, context: BuildContext) -> Recipe:
    return Recipe(registration=registration, options=options, context=context)


def _portable(registration: Registration) -> Registration:
    """With names in place of objects: what was loaded from a file is no module elsewhere."""
    if isinstance(registration.target, str):
        return registration
    qualified = registration.target_path.partition(":")[2]
    by_path = ":" in registration.name
    where = registration.name if by_path else f"{registration.source.plugin}:{qualified}"
    return replace(registration, target=where, config=None)
