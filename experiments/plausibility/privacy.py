"""Do generated windows lie nearer to training timelines than held-out windows do, and do they copy longer?

All windows are cut to their first `WINDOW_TOKENS` tokens, and shorter ones are left out (they are counted): more is
found in a longer one. The distance of a window to a training timeline is the share of the window's distinct runs of
`RUN` tokens that the timeline does not have anywhere: 0 says that each is there. (Jaccard's distance over the same sets
would hang on the timeline's length.) A generator that learned and did not memorize is as far from its training
timelines as held-out subjects are.

A verbatim copy is a run of tokens that stands in some training timeline; its length is told to the grid of LENGTHS,
rounded down. Tokens are hashed: 64-bit polynomials over random token values, whose chance collisions among 10^7 x 10^5
runs are one in 10^7.

N windows   S training subjects   T tokens
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import scipy.sparse

WINDOW_TOKENS = 64
RUN = 6
LENGTHS = (*range(1, 17), *range(18, 33, 2), *range(36, WINDOW_TOKENS + 1, 4))
# Training subjects whose sets are in memory at once.
_BLOCK = 1000
_BASE = np.uint64(0x9E3779B97F4A7C15)
_ONE = np.ones(1, np.uint64)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))


@dataclasses.dataclass(frozen=True)
class Timelines:
    """Training timelines, one after another: tokens, and where each begins (S + 1 offsets)."""

    tokens_T: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, timelines: Sequence[np.ndarray]) -> "Timelines":
        """Of one token array a subject."""
        offsets = np.concatenate(([0], np.cumsum([len(tokens_T) for tokens_T in timelines]))).astype(np.int64)
        return cls(np.concatenate([np.zeros(0, np.int64), *timelines]).astype(np.int64), offsets)

    def runs(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(hash, subject's place) of each run of `length` tokens within a timeline."""
        ends = np.arange(length, len(self.tokens_T) + 1)
        starts = ends - length
        subject = np.searchsorted(self.offsets, starts, side="right") - 1
        whole = ends <= self.offsets[subject + 1]
        starts, ends, subject = starts[whole], ends[whole], subject[whole]
        # Σ x_t b^t over the run, divided by b^start: the same wherever the run stands.
        sums_T1, inverse_T = self._hashed
        return (sums_T1[ends] - sums_T1[starts]) * inverse_T[starts], subject

    @functools.cached_property
    def _hashed(self) -> tuple[np.ndarray, np.ndarray]:
        # Sums of x_t b^t before each token, and b^-t, all modulo 2^64.
        values_T = np.random.default_rng(0).integers(1, 1 << 63, 1 << 16, dtype=np.uint64)[self.tokens_T]
        powers_T = np.cumprod(np.concatenate((_ONE, np.full(len(values_T), _BASE)))[:-1], dtype=np.uint64)
        inverse_T = np.cumprod(np.concatenate((_ONE, np.full(len(values_T), _INVERSE)))[:-1], dtype=np.uint64)
        sums_T1 = np.concatenate((np.zeros(1, np.uint64), np.cumsum(values_T * powers_T, dtype=np.uint64)))
        return sums_T1, inverse_T


def nearest_distances(windows: Sequence[np.ndarray], training: Timelines) -> np.ndarray:
    """float64 [N]: the distance of each window to the training timeline nearest to it; NaN where it is too short."""
    long_enough, queries = _cut(windows)
    result = np.full(len(windows), np.nan)
    if not long_enough or len(training.offsets) < 2:
        return result
    query_hash, query_of = queries.runs(RUN)
    known, inverse = np.unique(query_hash, return_inverse=True)
    query_NxF = _sets(query_of, inverse, (len(long_enough), len(known)))
    train_hash, train_of = training.runs(RUN)
    place = np.minimum(np.searchsorted(known, train_hash), len(known) - 1)
    is_known = known[place] == train_hash
    train_SxF = _sets(train_of[is_known], place[is_known], (len(training.offsets) - 1, len(known)))
    most_N = np.zeros(len(long_enough), np.int64)
    for begin in range(0, train_SxF.shape[0], _BLOCK):
        shared_NxS = query_NxF @ train_SxF[begin : begin + _BLOCK].T
        most_N = np.maximum(most_N, shared_NxS.max(axis=1).toarray().ravel())
    result[long_enough] = 1 - most_N / np.asarray(query_NxF.sum(axis=1)).ravel()
    return result


def longest_copies(windows: Sequence[np.ndarray], training: Timelines) -> np.ndarray:
    """float64 [N]: the length of each window's longest run that a training timeline has verbatim; NaN: too short."""
    long_enough, queries = _cut(windows)
    longest_N = np.zeros(len(long_enough), np.int64)
    going_on = np.ones(len(long_enough), bool)  # a run of one length holds those of every shorter one
    for length in LENGTHS:
        query_hash, query_of = queries.runs(length)
        query_hash, query_of = query_hash[going_on[query_of]], query_of[going_on[query_of]]
        if not len(query_hash):
            break
        known, inverse = np.unique(query_hash, return_inverse=True)
        train_hash, _ = training.runs(length)
        place = np.minimum(np.searchsorted(known, train_hash), len(known) - 1)
        is_found = np.zeros(len(known), bool)
        is_found[place[known[place] == train_hash]] = True
        going_on = np.zeros(len(long_enough), bool)
        going_on[query_of[is_found[inverse]]] = True
        longest_N[going_on] = length
    result = np.full(len(windows), np.nan)
    result[long_enough] = longest_N
    return result


def _cut(windows: Sequence[np.ndarray]) -> tuple[list[int], Timelines]:
    """(places of the windows that are long enough, their first tokens)."""
    long_enough = [index for index, tokens_T in enumerate(windows) if len(tokens_T) >= WINDOW_TOKENS]
    return long_enough, Timelines.of([windows[index][:WINDOW_TOKENS] for index in long_enough])


def _sets(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> scipy.sparse.csr_array:
    pairs = np.unique(rows.astype(np.int64) * shape[1] + columns)
    return scipy.sparse.csr_array((np.ones(len(pairs), np.int32), (pairs // shape[1], pairs % shape[1])), shape=shape)
