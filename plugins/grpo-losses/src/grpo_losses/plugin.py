"""Registration; imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_core import hookimpl

if TYPE_CHECKING:
    from grpo_core.plugins.registrar import Register


@hookimpl
def grpo_register_losses(register: Register) -> None:
    register(
        "grpo",
        "grpo_losses.losses:Grpo",
        config="grpo_losses.config:GrpoConfig",
        summary="Clipped ratio, every rollout counts alike (arXiv 2402.03300).",
    )
    register(
        "dapo",
        "grpo_losses.losses:Dapo",
        config="grpo_losses.config:DapoConfig",
        summary="Clip higher, every token counts alike (arXiv 2503.14476).",
    )
    register(
        "dr-grpo",
        "grpo_losses.losses:DrGrpo",
        config="grpo_losses.config:DrGrpoConfig",
        summary="GRPO without length and std normalisation (arXiv 2503.20783).",
    )
    register(
        "bnpo",
        "grpo_losses.losses:Bnpo",
        config="grpo_losses.config:BnpoConfig",
        summary="Clipped ratio, every token counts alike (arXiv 2506.02864).",
    )
    register(
        "gspo",
        "grpo_losses.losses:Gspo",
        config="grpo_losses.config:GspoConfig",
        summary="One ratio per rollout (arXiv 2507.18071).",
    )
    register(
        "gspo-token",
        "grpo_losses.losses:GspoToken",
        config="grpo_losses.config:GspoTokenConfig",
        summary="One ratio per rollout, gradients per token (arXiv 2507.18071).",
    )
    register(
        "luspo",
        "grpo_losses.losses:Luspo",
        config="grpo_losses.config:LuspoConfig",
        summary="GSPO, a rollout counts by its length (arXiv 2602.05261).",
    )
    register(
        "cispo",
        "grpo_losses.losses:Cispo",
        config="grpo_losses.config:CispoConfig",
        summary="Capped importance weights, no clipped gradient (arXiv 2506.13585).",
    )
    register(
        "sapo",
        "grpo_losses.losses:Sapo",
        config="grpo_losses.config:SapoConfig",
        summary="A soft gate in place of the clip (arXiv 2511.20347).",
    )
    register(
        "gmpo",
        "grpo_losses.losses:Gmpo",
        config="grpo_losses.config:GmpoConfig",
        summary="Geometric mean of clipped token ratios (arXiv 2507.20673).",
    )
    register(
        "vespo",
        "grpo_losses.losses:Vespo",
        config="grpo_losses.config:VespoConfig",
        summary="Smooth weights on whole rollouts (arXiv 2602.10693).",
    )
    register(
        "rloo",
        "grpo_losses.losses:Rloo",
        config="grpo_losses.config:RlooConfig",
        summary="REINFORCE over whole rollouts (arXiv 2402.14740).",
    )
    register(
        "reinforce-pp",
        "grpo_losses.losses:ReinforcePlusPlus",
        config="grpo_losses.config:ReinforcePlusPlusConfig",
        summary="REINFORCE++: clip, no critic (arXiv 2501.03262).",
    )
    register(
        "reinforce",
        "grpo_losses.losses:Reinforce",
        config="grpo_losses.config:ReinforceConfig",
        summary="The plain policy gradient, without a ratio.",
    )


@hookimpl
def grpo_register_advantages(register: Register) -> None:
    register(
        "group",
        "grpo_losses.advantages:GroupAdvantage",
        config="grpo_losses.advantage_options:ScaledConfig",
        summary="Reward minus its group's mean, over its group's standard deviation.",
    )
    register(
        "batch",
        "grpo_losses.advantages:BatchAdvantage",
        config="grpo_losses.advantage_options:ScaledConfig",
        summary="Reward minus its group's mean, over the step's standard deviation.",
    )
    register(
        "none",
        "grpo_losses.advantages:UnscaledAdvantage",
        config="grpo_losses.advantage_options:AdvantageConfig",
        summary="Reward minus its group's mean, not scaled (arXiv 2503.20783).",
    )
    register(
        "rloo",
        "grpo_losses.advantages:RlooAdvantage",
        config="grpo_losses.advantage_options:LeaveOneOutConfig",
        summary="Reward minus the mean of the others of its group (arXiv 2402.14740).",
    )
    register(
        "gdpo",
        "grpo_losses.advantages:GdpoAdvantage",
        config="grpo_losses.advantage_options:GdpoConfig",
        summary="Each provider's rewards normalised by group, then summed (arXiv 2601.05242).",
    )
    register(
        "reinforce-pp",
        "grpo_losses.reinforce_pp:ReinforcePlusPlusAdvantage",
        config="grpo_losses.advantage_options:GlobalConfig",
        summary="Normalised over all tokens of the step, no groups (arXiv 2501.03262).",
    )
    register(
        "reinforce-pp-baseline",
        "grpo_losses.reinforce_pp:ReinforcePlusPlusBaselineAdvantage",
        config="grpo_losses.advantage_options:ScaledConfig",
        summary="Reward minus its group's mean, normalised over all tokens of the step.",
    )
