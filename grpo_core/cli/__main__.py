"""``python -m grpo_core.cli`` and ``torchrun -m grpo_core.cli`` are ``grpo``."""

from grpo_core.cli import main

main()
