"""Estimates over repeated samples of each prompt, with intervals; plain numbers, no tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb, sqrt

Z95 = 1.959963984540054
"""Two-sided 95 % of the standard normal distribution."""

Interval = tuple[float, float]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that at least one of ``k`` samples passes, estimated without bias from ``samples``
    of which ``passed`` did: ``1 - C(n - c, k) / C(n, k)`` (arXiv 2107.03374, equation 1).

    Raises:
        ValueError: ``k`` is not in ``1 .. samples``: there is no unbiased estimate.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples")
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


def majority(answers: Sequence[Hashable | None]) -> int | None:
    """Position of a sample with the most frequent answer (arXiv 2203.11171); of answers that are
    equally frequent the one given first. ``None`` where no sample gave one."""
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return None
    # `most_common` keeps the order of first appearance among equals.
    return list(answers).index(counts.most_common(1)[0][0])


def mean_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Mean over prompts and its 95 % interval; all samples of a prompt are one value, because they
    are not independent (arXiv 2411.00640, section 2.2).

    Of values in [0, 1] it is Wilson's interval (doi 10.1080/01621459.1927.10502953), which stays
    in [0, 1] and does not shrink to a point where every prompt passes; with as many observations
    as would give a share of 0 and 1 the variance that was seen (Korn and Graubard, 1998). Else it
    is that of the central limit theorem, which one value does not have.
    """
    count = len(values)
    mean = sum(values) / count
    variance = sum((v - mean) ** 2 for v in values) / count
    if all(0 <= v <= 1 for v in values):
        return mean, _wilson(mean, count * mean * (1 - mean) / variance if variance else count)
    if count < 2:
        return mean, None
    half = Z95 * sqrt(variance / (count - 1))
    return mean, (mean - half, mean + half)


def _wilson(share: float, count: float) -> Interval:
    weight = Z95 * Z95 / count
    centre = (share + weight / 2) / (1 + weight)
    half = sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    # Rounding must not leave the interval without the share itself.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
