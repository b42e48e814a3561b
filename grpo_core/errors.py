"""Every error the framework raises on purpose.

Each class also inherits the built-in exception it refines, so that callers who know nothing of
this package catch what they expect. ``exit_code`` is what the ``grpo`` command returns for it.
"""

from __future__ import annotations


class GRPOError(Exception):
    """Base of all errors below; the command prints it without a traceback."""

    exit_code = 1


class ConfigError(GRPOError, ValueError):
    """What the user asked for cannot be done; nothing has been started."""

    exit_code = 2


class UnknownComponentError(ConfigError, LookupError):
    """A role was asked for a name that no installed plugin offers."""


class ComponentCollisionError(ConfigError):
    """Two distributions offer the same name for the same role."""


class RunExistsError(ConfigError, FileExistsError):
    """The output folder already holds a run, which must not be overwritten or mixed up."""


class PluginError(GRPOError, RuntimeError):
    """A plugin failed; the message names the plugin, its distribution and the call."""

    exit_code = 3


class RewardError(PluginError):
    """A reward provider raised, or returned something that is no reward."""


class DataError(GRPOError, ValueError):
    """Prompts or a data set are missing, empty, malformed or too long for the model."""

    exit_code = 4


class SyncError(GRPOError, RuntimeError):
    """The sampler does not hold the policy's weights (see ``Attestation`` in the design)."""

    exit_code = 5


class CheckpointError(GRPOError, RuntimeError):
    """A checkpoint cannot be written, or what is there cannot be gone on from."""

    exit_code = 7


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written: a file is missing, cut off or changed."""


class NonFiniteGradientError(GRPOError, ArithmeticError):
    """Several optimizer steps in a row had a NaN or infinite gradient."""

    exit_code = 6
