"""The named losses: an objective with its paper's numbers. Nothing here imports torch.

``defaults`` holds what differs from the objective's own; ``default_advantage`` is the advantage
of the paper, taken by a config that names none. ``kl_coef`` is 0 throughout, so that no reference
is held in memory unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from grpo_losses import options


class GrpoConfig(options.ClipConfig):
    """Every rollout counts alike."""

    paper: ClassVar[str] = "2402.03300"
    defaults: ClassVar[Mapping[str, Any]] = {"aggregation": "sequence-mean"}


class DapoConfig(options.ClipConfig):
    """More room upwards, so that unlikely tokens can grow and entropy does not collapse; every
    token counts alike. The paper's dynamic sampling and overlong punishment are other roles'."""

    paper: ClassVar[str] = "2503.14476"
    defaults: ClassVar[Mapping[str, Any]] = {"clip_high": 0.28}


class DrGrpoConfig(options.ClipConfig):
    """A constant in place of the length, and no standard deviation in the advantage, so that long
    wrong answers are not favoured and groups of nearly equal rewards are not blown up."""

    paper: ClassVar[str] = "2503.20783"
    defaults: ClassVar[Mapping[str, Any]] = {"aggregation": "constant"}
    default_advantage: ClassVar[str] = "none"


class BnpoConfig(options.ClipConfig):
    """GRPO in which every token counts alike. The paper's normalisation of rewards by a beta
    distribution is not part of it, nor of TRL's loss of this name."""

    paper: ClassVar[str] = "2506.02864"


class GspoConfig(options.ClipConfig):
    """One ratio per rollout, the geometric mean over its tokens; hence the narrow clip."""

    paper: ClassVar[str] = "2507.18071"
    defaults: ClassVar[Mapping[str, Any]] = {
        "ratio": "sequence",
        "aggregation": "sequence-mean",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
    }


class GspoTokenConfig(GspoConfig):
    """GSPO's value with each token's own gradient; differs from GSPO when advantages differ within
    a rollout."""

    defaults: ClassVar[Mapping[str, Any]] = {"ratio": "sequence-token"}


class LuspoConfig(GspoConfig):
    """GSPO in which a rollout counts by its length, which takes away its bias against long ones."""

    paper: ClassVar[str] = "2602.05261"
    defaults: ClassVar[Mapping[str, Any]] = {
        "aggregation": "sequence-sum",
        "clip_low": 2e-3,
        "clip_high": 2.5e-3,
    }


class CispoConfig(options.CispoConfig):
    """MiniMax-M1: the importance weight is capped and detached, so that no token loses its
    gradient."""

    paper: ClassVar[str] = "2506.13585"


class SapoConfig(options.SapoConfig):
    """The clip's edge made soft: a sigmoid gate, steeper for negative advantages."""

    paper: ClassVar[str] = "2511.20347"
    defaults: ClassVar[Mapping[str, Any]] = {"aggregation": "sequence-mean"}


class GmpoConfig(options.GmpoConfig):
    """The geometric mean of clipped token ratios: outliers weigh less than in a mean."""

    paper: ClassVar[str] = "2507.20673"
    defaults: ClassVar[Mapping[str, Any]] = {"aggregation": "sequence-mean"}


class VespoConfig(options.VespoConfig):
    """A smooth weight on whole rollouts that is 1 at ratio 1 and falls on both sides."""

    paper: ClassVar[str] = "2602.10693"


class RlooConfig(options.ClipConfig):
    """REINFORCE over whole rollouts, each compared with the mean of the others of its group; the
    clip, which the paper does without, takes effect from the second optimizer step on, as in
    TRL."""

    paper: ClassVar[str] = "2402.14740"
    defaults: ClassVar[Mapping[str, Any]] = {"ratio": "trajectory", "aggregation": "sequence-sum"}
    default_advantage: ClassVar[str] = "rloo"


class ReinforcePlusPlusConfig(options.ClipConfig):
    """PPO's clip without a critic; advantages are normalised over the whole step, so that no
    prompt is favoured for being easy. The paper's KL in the reward is `advantage.kl_coef`."""

    paper: ClassVar[str] = "2501.03262"
    defaults: ClassVar[Mapping[str, Any]] = {"aggregation": "sequence-mean"}
    default_advantage: ClassVar[str] = "reinforce-pp"


class ReinforceConfig(options.ReinforceConfig):
    """Williams 1992: the log-prob times the advantage. It has no ratio, so it is right only with
    one optimizer step per batch."""

    default_advantage: ClassVar[str] = "none"
