"""What runs in vLLM's own environment, which need not have grpo-core: each file stands alone."""
