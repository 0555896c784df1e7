"""Test-time scaling: a task's scores by the number of samples, from one run.

A run's n samples of each prompt hold n/m disjoint sets of m: each gives risks, and so scores, as a run of m samples
would have had. At m = n there is one set, and no spread to show.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from cometjax import scores

# More sets tell little more, and each costs an estimate.
_MOST_SETS = 8


def scores_by_samples(
    labels_N: np.ndarray, samples: int, estimate: Callable[[Sequence[int]], pl.Series]
) -> list[dict[str, Any]]:
    """For m = 1, 2, 4, ... and all samples: {samples, sets, auroc, auroc_low, auroc_high, brier}, means over the sets
    and the lowest and highest of them; None where the labels have one class.

    Args:
        labels_N: 0 or 1 of the task's rows.
        samples: how many each row has.
        estimate: risks of the rows, in their order, from the samples of these numbers.
    """
    if not len(labels_N):
        return []
    sizes = sorted({1 << power for power in range(samples.bit_length())} | {samples})
    defined, ones_1xN = not scores.undefined(labels_N), np.ones((1, len(labels_N)))
    table = []
    for size in sizes:
        sets = [range(at, at + size) for at in range(0, samples - size + 1, size)][:_MOST_SETS]
        risks = [estimate(chosen).to_numpy().astype(np.float64) for chosen in sets]
        aurocs = [float(scores.auroc_weighted(labels_N, risk_N, ones_1xN)[0]) for risk_N in risks] if defined else []
        table.append(
            {
                "samples": size,
                "sets": len(sets),
                "auroc": float(np.mean(aurocs)) if defined else None,
                "auroc_low": min(aurocs, default=None),
                "auroc_high": max(aurocs, default=None),
                "brier": float(np.mean([scores.brier_weighted(labels_N, risk_N, ones_1xN)[0] for risk_N in risks])),
            }
        )
    return table
