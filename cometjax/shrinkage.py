"""Predictions from noisy risks: each drawn towards the cohort's mean by the share of its spread that is noise.

A risk from n futures is the model's risk and the noise of n draws. As an estimate of the model's risk it is unbiased;
as a prediction it is too extreme: 0 of 8 futures do not make an outcome impossible. What is best foretold from it is,
to first order, the posterior mean

    prediction = mean + r (risk - mean),   r = V / (V + v / n)

V is the variance of the model's risks between the task's rows, v that of a single future's share within a row; r is
called reliability (Kelley 1927; as empirical Bayes, Efron and Morris 1973). Both follow from the estimates and their
standard errors alone: no label is looked at. Where all rows have equally many futures, the order of rows is that of the
risks, so rank scores (AUROC, AUPRC) are what they were; calibration and Brier score are no longer those of the noise.
"""

import numpy as np
import polars as pl

# Of few rows the spread between them may seem to be noise alone; the order of rows is kept all the same.
_LEAST = 0.05


def predictions(estimates: pl.DataFrame, *, counted: bool) -> pl.DataFrame:
    """The rows' predictions, in [0, 1].

    Args:
        estimates: a row for each of a task's rows: [risk, standard_error (null where it is not known: one sample),
            samples, ...], as of `cometjax.risks.Simulation.estimate`.
        counted: is a risk a share of futures? Then sqrt(p (1 - p) / n), its standard error, is too small on average,
            by (n - 1) / n in its square.

    Returns the frame with `risk` the prediction, `unshrunk` what was `risk`, both cut to [0, 1], `estimate` what was
    `risk` as it was, and `reliability` (null where the rows' risks are all alike or the noise is not known; then
    nothing is drawn towards anything).
    """
    kept = estimates.with_columns(estimate=pl.col("risk"), unshrunk=pl.col("risk").clip(0, 1))
    risk_N, error_N, samples_N = (
        estimates.get_column(name).cast(pl.Float64).to_numpy() for name in ("risk", "standard_error", "samples")
    )
    spread = float(risk_N.var(ddof=1)) if len(risk_N) > 1 else 0.0
    if not spread or np.isnan(error_N).any() or samples_N.min() < 2:
        return kept.with_columns(pl.col("risk").clip(0, 1), reliability=pl.lit(None, pl.Float64))
    # Of one sample, pooled over the rows: that of a row with none of its futures different would be 0.
    squared_N = error_N**2 * samples_N
    within = float(np.mean(squared_N * samples_N / (samples_N - 1) if counted else squared_N))
    noise_N = within / samples_N
    between = max(spread - float(noise_N.mean()), _LEAST * spread)
    reliability_N = between / (between + noise_N)
    mean = float(risk_N.mean())
    return kept.with_columns(
        risk=pl.Series(np.clip(mean + reliability_N * (risk_N - mean), 0, 1)), reliability=pl.Series(reliability_N)
    )
