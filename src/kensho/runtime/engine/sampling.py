"""Choose the next token from logits. Pure, and the same on every engine.

The random number for position p is a function of (seed, p) alone: no generator state travels with a stream, so that
any engine can go on with it anywhere (`Sampling`). It is the first 53 bits of SHA-256 over the two numbers: the same
on every machine and version for ever, 1 us, and no 27 ms import of numpy.random in each engine host.
"""

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import WrongNumbers
from kensho.base.inference import Sampling


def choose(logits: NDArray[np.float32], position: int, sampling: Sampling) -> int:
    """The id of the token at `position` (counted from the first id of the prompt).

    `logits`: (vocab,), not changed. Temperature 0: the first arg-max. Else: one draw from softmax(logits / T) by
    the inverse of its cumulative sum. Raises WrongNumbers when a logit is not finite (3 us per 32k logits, always on:
    engines hand out NaN without an error). Cost: O(vocab); 6 ms for 262k at T > 0, in float64.
    """
    check_finite(logits, position)
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    scaled /= sampling.temperature
    cumulative = np.cumsum(np.exp(scaled))
    # Below the total even after rounding, and side="right": a token of probability 0 is never chosen.
    drawn = min(uniform(sampling.seed, position) * cumulative[-1], np.nextafter(cumulative[-1], 0))
    return int(np.searchsorted(cumulative, drawn, side="right"))


def check_finite(logits: NDArray[np.float32], position: int) -> None:
    """Raises WrongNumbers unless every logit is finite."""
    if not np.isfinite(logits).all():
        raise WrongNumbers(
            f"the engine computed numbers that are not finite at position {position}",
            advice="the engine is not to be trusted until a canary has passed",
            position=position,
        )


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from (seed, position), with 53 random bits. `seed` is taken modulo 2^64."""
    digest = hashlib.sha256(b"kensho sampling 1" + struct.pack("<QQ", seed % (1 << 64), position)).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) / (1 << 53)
