"""Registration of the core's own components; imports nothing heavy."""

from __future__ import annotations

from grpo_core.hookspecs import hookimpl
from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_tasks(register: Register) -> None:
    register(
        "arithmetic",
        "grpo_core.demo.arithmetic:Arithmetic",
        config="grpo_core.demo.config:ArithmeticConfig",
        summary="Bundled: chained single-digit arithmetic modulo 10, generated from a seed.",
    )
    register(
        "dataset",
        "grpo_core.builtin.dataset:DatasetTask",
        config="grpo_core.builtin.config:DatasetConfig",
        summary="JSONL, Parquet, a datasets folder or a Hub id with a `prompt` column.",
    )
    register(
        "mixture",
        "grpo_core.builtin.mixture:MixtureTask",
        config="grpo_core.builtin.config:MixtureConfig",
        summary="Several data sets with weights, each with the options of `dataset`.",
    )


@hookimpl
def grpo_register_generators(register: Register) -> None:
    register(
        "scripted",
        "grpo_core.testing.scripted:ScriptedGenerator",
        config="grpo_core.testing.config:ScriptedConfig",
        summary="For tests: says what it is told, with the policy's own log-probs.",
    )


@hookimpl
def grpo_register_environments(register: Register) -> None:
    register(
        "single-turn",
        "grpo_core.builtin.single_turn:SingleTurn",
        summary="One completion per rollout.",
    )


@hookimpl
def grpo_register_observers(register: Register) -> None:
    register(
        "console",
        "grpo_core.builtin.console:Console",
        config="grpo_core.builtin.config:ConsoleConfig",
        summary="Live progress in a terminal, plain lines elsewhere.",
    )
    register(
        "jsonl",
        "grpo_core.builtin.jsonl:JsonlMetrics",
        summary="One line of metrics per step in metrics.jsonl.",
    )
    register(
        "report",
        "grpo_core.builtin.report:Report",
        summary="A self-contained report.html with curves and sampled completions.",
    )
    register(
        "tensorboard",
        "grpo_core.builtin.tensorboard:TensorBoard",
        summary="Event files for TensorBoard (pip install grpo-core[tensorboard]).",
    )
