"""Random numbers that depend on (seed, subject, how many the subject has drawn) and on nothing else.

So a subject's timeline is the same whoever is simulated beside it, in whatever block or process. A counter-based
generator: the SplitMix64 finalizer (Steele et al. 2014, doi 10.1145/2660193.2660195) of key + counter.
"""

import numpy as np
from scipy import special

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """A bijective scramble of uint64s."""
    x = x ^ (x >> np.uint64(30))
    x *= _FIRST
    x ^= x >> np.uint64(27)
    x *= _SECOND
    x ^= x >> np.uint64(31)
    return x


class Draws:
    """One independent stream for each of P subjects; `rows_n` says whose streams are drawn from."""

    def __init__(self, seed: int, subject_ids_P: np.ndarray) -> None:
        seed_1 = mix(np.array([seed], np.uint64) + _GOLDEN)
        self._keys_P = mix(seed_1 + subject_ids_P.astype(np.uint64) * _GOLDEN)
        self._ticks_P = np.zeros(len(subject_ids_P), np.uint64)

    def uniform(self, rows_n: np.ndarray, width: int) -> np.ndarray:
        """Float64 [n, width], in (0, 1)."""
        self._ticks_P[rows_n] += np.uint64(1)
        base_n = mix(self._keys_P[rows_n] + self._ticks_P[rows_n] * _GOLDEN)
        steps_W = np.arange(1, width + 1, dtype=np.uint64) * _GOLDEN
        bits_nxW = mix(base_n[:, None] + steps_W)
        # 52 bits: with 53 the largest would round to 1.
        return ((bits_nxW >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def events(self, rows_n: np.ndarray, probabilities_nxW: np.ndarray) -> np.ndarray:
        """Independent Bernoulli draws, bool [n, W]."""
        return self.uniform(rows_n, probabilities_nxW.shape[1]) < probabilities_nxW

    def choice(self, rows_n: np.ndarray, weights_nxW: np.ndarray) -> np.ndarray:
        """One index for each row, in proportion to its weights."""
        sums_nxW = np.cumsum(weights_nxW, axis=1)
        points_n = self.uniform(rows_n, 1)[:, 0] * sums_nxW[:, -1]
        return np.minimum((sums_nxW <= points_n[:, None]).sum(axis=1), weights_nxW.shape[1] - 1)

    def normal(self, rows_n: np.ndarray, width: int) -> np.ndarray:
        """Standard normal draws, float64 [n, width]."""
        return special.ndtri(self.uniform(rows_n, width))
