"""Discovery of installed plugins and construction of the components they offer."""

from grpo_core.plugins.build import build, config_model, find, import_object
from grpo_core.plugins.discovery import BrokenPlugin, Discovery, discover
from grpo_core.plugins.recipe import Recipe
from grpo_core.plugins.registrar import API, ROLES, Register, Registration, Role, Source
from grpo_core.plugins.registry import Registry

__all__ = [
    "API",
    "ROLES",
    "BrokenPlugin",
    "Discovery",
    "Recipe",
    "Register",
    "Registration",
    "Registry",
    "Role",
    "Source",
    "build",
    "config_model",
    "discover",
    "find",
    "import_object",
]
