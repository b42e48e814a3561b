"""Counter-based random numbers: a token's uniform is a function of what the token is.

Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011). There is no state: which rows share a batch, in which order and on which rank they are
decoded cannot change a draw, and no global generator is read or advanced.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""32-bit words, held in 64 bits so that a product keeps its upper half."""

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_MASK = 0xFFFFFFFF
_LOW, _32 = np.uint64(_MASK), np.uint64(32)


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[int, int]
) -> tuple[Words, Words, Words, Words]:
    """Encrypt 128-bit counters, word by word over arrays of one (broadcastable) shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> _32) ^ c1 ^ np.uint64(k0),
            product_1 & _LOW,
            (product_0 >> _32) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def uniforms(
    *,
    seed: int,
    step: int,
    prompt_key_B: NDArray[np.int64],
    sample_B: NDArray[np.int64],
    position_BT: NDArray[np.int64],
) -> NDArray[np.float64]:
    """One number in [0, 1), of 53 random bits, for each token of each row; shape ``(B, T)``.

    Args:
        seed: taken modulo 2**64; the other arguments modulo 2**32, so that the negative steps of
            evaluation are streams of their own.
        position_BT: place of the token in the whole sequence, prompt included: a second request
            that continues a completion then draws new numbers instead of the same ones again.
    """
    shape = position_BT.shape
    counter = (
        _words(position_BT),
        np.broadcast_to(_words(sample_B)[:, None], shape),
        np.broadcast_to(_words(prompt_key_B)[:, None], shape),
        np.full(shape, step & _MASK, dtype=np.uint64),
    )
    high, low, _, _ = philox4x32(counter, (seed & _MASK, seed >> 32 & _MASK))
    bits = (high >> np.uint64(5)) * np.uint64(1 << 26) + (low >> np.uint64(6))
    return bits.astype(np.float64) * 2.0**-53


def _words(values: NDArray[np.int64]) -> Words:
    return values.astype(np.int64).astype(np.uint64) & _LOW
