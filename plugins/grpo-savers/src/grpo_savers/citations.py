"""BibTeX for the papers behind a run, by arXiv id."""

from __future__ import annotations

from collections.abc import Iterable

PAPERS = {
    "1707.06347": ("Schulman, John", "Proximal Policy Optimization Algorithms"),
    "2106.09685": ("Hu, Edward J.", "LoRA: Low-Rank Adaptation of Large Language Models"),
    "2305.14314": ("Dettmers, Tim", "QLoRA: Efficient Finetuning of Quantized LLMs"),
    "2402.03300": (
        "Shao, Zhihong",
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    ),
    "2402.14740": (
        "Ahmadian, Arash",
        "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback "
        "in LLMs",
    ),
    "2404.09656": ("Gorbatovski, Alexey", "Learn Your Reference Model for Real Good Alignment"),
    "2501.03262": (
        "Hu, Jian",
        "REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models",
    ),
    "2503.14476": (
        "Yu, Qiying",
        "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
    ),
    "2503.20783": ("Liu, Zichen", "Understanding R1-Zero-Like Training: A Critical Perspective"),
    "2506.13585": (
        "MiniMax",
        "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
    ),
    "2507.18071": ("Zheng, Chujie", "Group Sequence Policy Optimization"),
    "2507.20673": ("Zhao, Yuzhong", "Geometric-Mean Policy Optimization"),
    "2511.20347": ("Gao, Chang", "Soft Adaptive Policy Optimization"),
}
"""First author and title. A paper that is not here is cited by its id alone."""


def bibtex(arxiv_ids: Iterable[str]) -> str:
    """One entry per paper, each once, in order."""
    return "\n\n".join(_entry(i) for i in dict.fromkeys(arxiv_ids))


def _entry(arxiv_id: str) -> str:
    fields = {
        "eprint": arxiv_id,
        "archivePrefix": "arXiv",
        "year": f"20{arxiv_id[:2]}",
        "url": f"https://arxiv.org/abs/{arxiv_id}",
    }
    if arxiv_id in PAPERS:
        author, title = PAPERS[arxiv_id]
        fields = {"title": f"{{{title}}}", "author": f"{author} and others", **fields}
    body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@misc{{arxiv:{arxiv_id},\n{body}\n}}"
