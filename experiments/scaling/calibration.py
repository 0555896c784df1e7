"""What a trial takes, from trials that were timed: seconds = overhead + tokens * a + exact FLOPs / b.

The overhead is start, compilation, evaluation and checkpoints; the cost of a token beside its FLOPs is what small
models are mostly made of (embeddings, softmax, norms, dispatch). Fitted by non-negative least squares of relative
residuals.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.optimize


@dataclasses.dataclass(frozen=True)
class Timing:
    """A finished trial: wall seconds for tokens and exact FLOPs."""

    seconds: float
    tokens: float
    flops: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """`mean_error` is the mean relative error on the `trials` trials that it was fitted to."""

    overhead_seconds: float
    seconds_per_token: float
    seconds_per_flop: float
    mean_error: float
    trials: int

    def seconds(self, tokens: float, flops: float) -> float:
        """Predicted wall time of a trial."""
        return self.overhead_seconds + tokens * self.seconds_per_token + flops * self.seconds_per_flop


def calibrate(timings: Sequence[Timing]) -> Calibration | None:
    """The calibration of timed trials; None of fewer than three."""
    if len(timings) < 3:
        return None
    seconds_P = np.array([timing.seconds for timing in timings])
    columns_Px3 = np.array([[1.0, timing.tokens, timing.flops] for timing in timings])
    scales = columns_Px3.max(axis=0)
    solved, _ = scipy.optimize.nnls(columns_Px3 / scales / seconds_P[:, None], np.ones(len(timings)))
    overhead, per_token, per_flop = (float(value) for value in solved / scales)
    error = float(np.mean(np.abs(columns_Px3 @ (solved / scales) / seconds_P - 1)))
    return Calibration(overhead, per_token, per_flop, error, len(timings))
