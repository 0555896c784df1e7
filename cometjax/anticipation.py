"""Risk from the probabilities that a model gave the outcome along its futures: SCOPE and REACH (arXiv 2602.03730).

Monte-Carlo (`cometjax.estimators`) keeps of each step only the token drawn. These two keep the probability that the
outcome becomes certain with it, the hazard h_t (`cometjax.grammar_states`: once an event, at the token that decides):

- SCOPE, on ordinary futures: the sum of h_t up to the horizon, the outcome, the event that closes the window, or the
  end, whichever is first. Its mean is the risk, for the sum of (it happened at t) - h_t is a martingale. A sum may
  exceed 1. One set of futures serves any number of outcomes.
- REACH, on futures in which the outcome is never drawn: 1 - Π (1 - h_t). That is what Monte-Carlo has in expectation
  given the other tokens, so its variance is never larger (Rao and Blackwell). Each outcome needs futures of its own.

Both are means over independent futures, and their standard error is the sample's: sd / sqrt(n).

A future that ran out of tokens or of observation before the horizon is censored there. As in Kaplan and Meier's
estimator, what others tell of later times then stands for it too: each term h_t (in REACH, times the survival before
it) is divided by the estimated probability of being uncensored until its time. For Monte-Carlo's 0 and 1 that *is*
Kaplan and Meier's estimator (Satten and Datta, 2001); where no future is cut short, nothing is changed.

S samples of a prompt   T tokens of a future   K outcomes
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from cometjax.futures import Future


@dataclasses.dataclass(frozen=True)
class Contributions:
    """What each sample adds to the risk of each outcome: the risk is the mean over a prompt's samples.

    Attributes:
        keys: [subject_id, prediction_time, sample], a row for each sample.
        share_RxK: float64, the contributions.
        cut_RxK: bool, was the sample cut short before the outcome's horizon?
        names: of the outcomes.
    """

    keys: pl.DataFrame
    share_RxK: np.ndarray
    cut_RxK: np.ndarray
    names: tuple[str, ...]

    def estimate(self, name: str, samples: Sequence[int] | None = None) -> pl.DataFrame:
        """[subject_id, prediction_time, risk, standard_error (null of one sample), samples, truncated] of each prompt,
        from all samples or those given. A risk is not cut to 1: that would be a bias."""
        column = self.names.index(name)
        table = self.keys.with_columns(share=self.share_RxK[:, column], cut=self.cut_RxK[:, column])
        if samples is not None:
            table = table.filter(pl.col("sample").is_in(list(samples)))
        return table.group_by("subject_id", "prediction_time", maintain_order=True).agg(
            risk=pl.col("share").mean(),
            standard_error=pl.col("share").std() / pl.len().cast(pl.Float64).sqrt(),
            samples=pl.len(),
            truncated=pl.col("cut").mean(),
        )


@dataclasses.dataclass(frozen=True)
class Terms:
    """One sample's terms, before they are weighed for what other samples were cut.

    Attributes:
        time_I: int64, the instants at which there are terms, in seconds from the prediction time.
        term_IxK: float64, the terms of each outcome's sum.
        end_K: int64, when the sample was cut, or from when on no cut can matter.
        cut_K: bool, was it cut before that?
    """

    time_I: np.ndarray
    term_IxK: np.ndarray
    end_K: np.ndarray
    cut_K: np.ndarray


def contributions(
    futures: Sequence[Future], end_seconds_SxK: np.ndarray, *, suppressed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(share [S, K], cut [S, K]) of all of one prompt's samples; arguments as of `terms`."""
    return weigh(terms(futures, end_seconds_SxK, suppressed=suppressed))


def terms(futures: Sequence[Future], end_seconds_SxK: np.ndarray, *, suppressed: bool) -> list[Terms]:
    """The terms of some of a prompt's samples.

    Args:
        futures: a prompt's, with hazards; of REACH if `suppressed` (then of one outcome), else of SCOPE.
        end_seconds_SxK: when each sample's window of each outcome ends, or [K], alike for all; hazards count up to it.
            It may depend on the sample where that is a stopping time, such as its first event of some kind.
    """
    end_seconds_SxK = np.broadcast_to(end_seconds_SxK, (len(futures), end_seconds_SxK.shape[-1]))
    return [_terms(future, end_K, suppressed) for future, end_K in zip(futures, end_seconds_SxK, strict=True)]


def weigh(terms_S: Sequence[Terms]) -> tuple[np.ndarray, np.ndarray]:
    """(share [S, K], cut [S, K]) of a prompt's samples: all at once, for each weight is estimated from all of them."""
    cut_SxK = np.array([own.cut_K for own in terms_S])
    if not cut_SxK.any():
        return np.array([own.term_IxK.sum(0) for own in terms_S]), cut_SxK
    end_SxK = np.array([own.end_K for own in terms_S])
    share_SxK = np.zeros(cut_SxK.shape)
    for k in range(cut_SxK.shape[1]):
        for sample, own in enumerate(terms_S):
            share_SxK[sample, k] = (own.term_IxK[:, k] / _uncensored(own.time_I, end_SxK[:, k], cut_SxK[:, k])).sum()
    return share_SxK, cut_SxK


def _terms(future: Future, window_K: np.ndarray, suppressed: bool) -> Terms:
    assert future.hazard_TxK is not None and future.decided_TxK is not None and future.drawn_clock_T is not None
    after_T = future.drawn_clock_T
    time_T = np.concatenate([[future.start_seconds], after_T])[: len(after_T)]
    hazard_TxK = np.clip(future.hazard_TxK.astype(np.float64), 0, 1) * (time_T[:, None] <= window_K)
    if suppressed:
        before_TxK = np.cumprod(np.vstack([np.ones_like(window_K, float), 1 - hazard_TxK]), 0)[:-1]
        happened_TxK = before_TxK == 0
    else:
        earlier_TxK = np.cumsum(future.decided_TxK, 0) - future.decided_TxK
        before_TxK, happened_TxK = (earlier_TxK == 0).astype(float), future.decided_TxK
    last = after_T[-1] if len(after_T) else future.start_seconds
    happened_K = (happened_TxK & (time_T[:, None] <= window_K)).any(0)
    cut_K = future.is_censored & (last < window_K) & ~happened_K
    first_K = time_T[np.argmax(happened_TxK, 0)] if len(time_T) else np.zeros(len(window_K), np.int64)
    end_K = np.where(happened_K, first_K, np.where(cut_K, last, np.iinfo(np.int64).max))
    # Tokens of one instant share their weight.
    time_I, first_I = np.unique(time_T, return_index=True)
    term_IxK = np.add.reduceat(hazard_TxK * before_TxK, first_I) if len(time_T) else np.zeros((0, len(window_K)))
    return Terms(time_I, term_IxK, end_K, cut_K)


def _uncensored(time_T: np.ndarray, end_S: np.ndarray, cut_S: np.ndarray) -> np.ndarray:
    # Kaplan and Meier's estimate of the probability not to be cut before each time; at one instant outcomes come first.
    at = np.unique(end_S[cut_S])
    cuts = np.array([(end_S[cut_S] == time).sum() for time in at])
    at_risk = np.array([((end_S > time) | ((end_S == time) & cut_S)).sum() for time in at])
    kept = np.concatenate([[1.0], np.cumprod(1 - cuts / at_risk)]) if len(at) else np.ones(1)
    # After the last possible cut nothing is left to weigh, and no term is there.
    return np.maximum(kept[np.searchsorted(at, time_T, side="left")], np.finfo(float).tiny)
