"""An advantage, a loss, a reference."""

from grpo_core.types import AdvantageResult, LossOutput


class Sign:
    """+1 above the group's mean reward, -1 below."""

    def __init__(self, config=None, context=None):
        pass

    def __call__(self, request):
        total_B = (request.weights_F[:, None] * request.rewards_F_B.nan_to_num()).sum(0)
        groups = int(request.group_B.max()) + 1
        sum_P = total_B.new_zeros(groups).index_add(0, request.group_B, total_B)
        count_P = total_B.new_zeros(groups).index_add(
            0, request.group_B, total_B.new_ones(len(total_B))
        )
        return AdvantageResult(advantages_B=(total_B - (sum_P / count_P)[request.group_B]).sign())


class Reinforce:
    """The plain policy gradient."""

    aggregation = "token-mean"

    def __init__(self, config=None, context=None):
        self.kl_coef = 0.0 if config is None else config.kl_coef
        self.needs = frozenset({"ref_logprobs"} if self.kl_coef else ())

    def __call__(self, tokens):
        loss_N = -tokens.logprobs_N * tokens.advantages_N
        if self.kl_coef:
            log_ratio_N = tokens.ref_logprobs_N - tokens.logprobs_N
            loss_N = loss_N + self.kl_coef * (log_ratio_N.expm1() - log_ratio_N)
        return LossOutput(loss_N=loss_N)


class Self:
    """Log-probs of the policy at the start of the step."""

    def __init__(self, config=None, context=None):
        self.policy = None

    def start(self, policy):
        self.policy = policy

    def logprobs(self, rollouts):
        return self.policy.logprobs(rollouts)

    def step_end(self, step):
        pass
