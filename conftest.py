"""For the tests of the core and of every plugin here."""

from hypothesis import settings

# A busy machine is no defect of what is tested.
settings.register_profile("grpo", deadline=None)
settings.load_profile("grpo")
