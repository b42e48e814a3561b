"""Registration: every hook, and nothing imported but the marker."""

from grpo_core import hookimpl


@hookimpl
def grpo_register_tasks(register):
    register("fake-digits", "grpo_fake.data:Digits", summary="Ten prompts, one per digit.")


@hookimpl
def grpo_register_generators(register):
    register(
        "fake-one-token", "grpo_fake.sampling:OneToken", summary="One sampled token per completion."
    )


@hookimpl
def grpo_register_environments(register):
    register("fake-stamped", "grpo_fake.sampling:Stamped", summary="Single turn, with a stamp.")


@hookimpl
def grpo_register_rewards(register):
    register(
        "fake-length",
        "grpo_fake.rewards:Length",
        config="grpo_fake.config:LengthConfig",
        summary="How near a completion is to a wanted length.",
    )
    register("fake-even", "grpo_fake.rewards:even", summary="A plain function in TRL's convention.")


@hookimpl
def grpo_register_advantages(register):
    register("fake-sign", "grpo_fake.learning:Sign", summary="+1 above the mean, -1 below.")


@hookimpl
def grpo_register_losses(register):
    register(
        "fake-reinforce",
        "grpo_fake.learning:Reinforce",
        config="grpo_fake.config:ReinforceConfig",
        summary="-logprob * advantage.",
    )


@hookimpl
def grpo_register_references(register):
    register("fake-self", "grpo_fake.learning:Self", summary="The policy itself: KL is 0.")


@hookimpl
def grpo_register_savers(register):
    register("fake-note", "grpo_fake.watching:Note", summary="A text file in place of a model.")


@hookimpl
def grpo_register_observers(register):
    register("fake-recorder", "grpo_fake.watching:Recorder", summary="One line per event.")


@hookimpl
def grpo_register_commands(register):
    register("fake-greet", "grpo_fake.command:greet", summary="Say hello.")
