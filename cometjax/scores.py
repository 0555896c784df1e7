"""Scores of predicted probabilities against what happened, with intervals by resampling subjects.

N rows   R resamples   G groups of rows with equal prediction (in order of the prediction)   K calibration bins

AUROC is the rank statistic with ties counted half; AUPRC is average precision; both equal scikit-learn's. All accept
weights, so that R bootstrap resamples are one matrix expression over weights_RxN rather than R loops. Scores of amounts
(counts, durations) take targets_N in place of labels_N; give them to `interval` with needs_classes=False.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
MIN_SUBJECTS_PER_CLASS = 2
# A bound on the bootstrap's working memory: weights per block of resamples.
_BLOCK_ELEMENTS = 4_000_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score, its 95% percentile bootstrap interval and the resamples' standard deviation.

    None, with the reason, for what can't be given.
    """

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""
    standard_error: float | None = None


def auroc_weighted(labels_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """AUROC under each row of weights, float64 [R]; NaN where a class has no weight."""
    positives_RxG, negatives_RxG = _class_weights(labels_N, predictions_N, weights_RxN)
    below_RxG = np.cumsum(negatives_RxG, axis=1) - negatives_RxG
    pairs_R = positives_RxG.sum(axis=1) * negatives_RxG.sum(axis=1)
    won_R = (positives_RxG * (below_RxG + 0.5 * negatives_RxG)).sum(axis=1)
    return np.divide(won_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0)


def auprc_weighted(labels_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """Average precision under each row of weights, float64 [R]; NaN where there are no positives."""
    positives_RxG, negatives_RxG = _class_weights(labels_N, predictions_N, weights_RxN)
    found_RxG = np.cumsum(positives_RxG[:, ::-1], axis=1)
    flagged_RxG = found_RxG + np.cumsum(negatives_RxG[:, ::-1], axis=1)
    precision_RxG = np.divide(found_RxG, flagged_RxG, out=np.zeros_like(found_RxG), where=flagged_RxG > 0)
    total_R = positives_RxG.sum(axis=1)
    area_R = (positives_RxG[:, ::-1] * precision_RxG).sum(axis=1)
    return np.divide(area_R, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0)


def brier_weighted(labels_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """Mean squared error of the probability under each row of weights, float64 [R]."""
    squared_N = (predictions_N - labels_N) ** 2
    return weights_RxN @ squared_N / weights_RxN.sum(axis=1)


def mae_weighted(targets_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """Mean absolute error of amounts under each row of weights, float64 [R], in their unit."""
    return weights_RxN @ np.abs(predictions_N - targets_N) / weights_RxN.sum(axis=1)


def rmsle_weighted(targets_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """Root mean squared difference of log(1 + amount) under each row of weights, float64 [R].

    Raises ValueError for a negative amount.
    """
    if (targets_N < 0).any() or (predictions_N < 0).any():
        raise ValueError("RMSLE is defined for amounts of 0 and more")
    squared_N = (np.log1p(predictions_N) - np.log1p(targets_N)) ** 2
    return np.sqrt(weights_RxN @ squared_N / weights_RxN.sum(axis=1))


def concordance_weighted(targets_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """Harrell's C under each row of weights, float64 [R]: of the pairs of rows with different targets, the weighted
    share whose predictions are in the same order, equal ones counted half; NaN where there is no such pair.

    With targets of 0 and 1 this is the AUROC. Durations that end at a common horizon need no more: of two that reach it
    nothing is known, of one that does and one that does not, which is longer.
    """
    won_R, pairs_R = np.zeros((2, len(weights_RxN)))
    rows = max(1, _BLOCK_ELEMENTS // max(1, len(targets_N)))
    for start in range(0, len(targets_N), rows):
        block = slice(start, start + rows)
        is_less_nxN = targets_N[block, None] < targets_N
        difference_nxN = predictions_N - predictions_N[block, None]
        agreement_nxN = is_less_nxN * ((difference_nxN > 0) + 0.5 * (difference_nxN == 0))
        won_R += ((weights_RxN[:, block] @ agreement_nxN) * weights_RxN).sum(axis=1)
        pairs_R += ((weights_RxN[:, block] @ is_less_nxN.astype(np.float64)) * weights_RxN).sum(axis=1)
    return np.divide(won_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0)


def _class_weights(
    labels_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    order_N = np.argsort(predictions_N, kind="stable")
    ranked_N = predictions_N[order_N]
    starts_G = np.flatnonzero(np.concatenate(([True], ranked_N[1:] != ranked_N[:-1])))
    weights_RxN = weights_RxN[:, order_N]
    is_positive_N = labels_N[order_N].astype(bool)
    positives_RxG = np.add.reduceat(weights_RxN * is_positive_N, starts_G, axis=1)
    negatives_RxG = np.add.reduceat(weights_RxN * ~is_positive_N, starts_G, axis=1)
    return positives_RxG, negatives_RxG


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of subjects: how often each row counts (float64 [R, N]), and each row's subject (int [N])."""

    weights_RxN: np.ndarray
    subject_N: np.ndarray


def resample_subjects(subject_ids_N: np.ndarray, resamples: int, seed: int) -> Resamples:
    """Draw as many subjects as there are, with replacement, `resamples` times.

    Rows of one subject move together, since they are not independent. The same (subjects, seed) gives the same weights,
    so differences between two predictors on the same rows are paired.
    """
    unique, subject_N = np.unique(subject_ids_N, return_inverse=True)
    if not len(unique):
        return Resamples(np.zeros((resamples, 0)), subject_N)
    rng = np.random.default_rng(seed)
    counts_RxS = rng.multinomial(len(unique), np.full(len(unique), 1.0 / len(unique)), size=resamples)
    return Resamples(counts_RxS[:, subject_N].astype(np.float64), subject_N)


def bootstrap(score: Score, labels_N: np.ndarray, predictions_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """The score under each resample, float64 [R] (NaN where it is undefined), in blocks of bounded memory."""
    block = max(1, _BLOCK_ELEMENTS // max(1, weights_RxN.shape[1]))
    blocks = [weights_RxN[start : start + block] for start in range(0, len(weights_RxN), block)]
    return np.concatenate([score(labels_N, predictions_N, weights) for weights in blocks])


def interval(
    score: Score, labels_N: np.ndarray, predictions_N: np.ndarray, drawn: Resamples, *, needs_classes: bool = True
) -> Interval:
    """The score with its percentile interval over the resamples; None with the reason where there is none."""
    if reason := undefined(labels_N, needs_classes=needs_classes):
        return Interval(None, None, None, reason)
    value = float(score(labels_N, predictions_N, np.ones((1, len(labels_N))))[0])
    if needs_classes and (reason := _too_few(labels_N, drawn)):
        return Interval(value, None, None, reason)
    return _percentiles(value, bootstrap(score, labels_N, predictions_N, drawn.weights_RxN))


def difference(
    score: Score,
    labels_N: np.ndarray,
    first_N: np.ndarray,
    second_N: np.ndarray,
    drawn: Resamples,
    *,
    needs_classes: bool = True,
) -> Interval:
    """score(first) - score(second) on the same rows, with the paired percentile interval."""

    def paired(labels: np.ndarray, _: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return score(labels, first_N, weights) - score(labels, second_N, weights)

    return interval(paired, labels_N, first_N, drawn, needs_classes=needs_classes)


def undefined(labels_N: np.ndarray, *, needs_classes: bool = True) -> str:
    """Why no score can be given for these labels; "" where one can."""
    positives = int(np.sum(labels_N))
    if len(labels_N) == 0:
        return "no rows"
    if needs_classes and positives in (0, len(labels_N)):
        return "no positive rows" if positives == 0 else "no negative rows"
    return ""


def _too_few(labels_N: np.ndarray, drawn: Resamples) -> str:
    """Why resampling can't tell the spread: the one subject of a class is in all resamples that have a score."""
    for value, name in ((1, "positive"), (0, "negative")):
        if len(np.unique(drawn.subject_N[labels_N == value])) < MIN_SUBJECTS_PER_CLASS:
            return f"fewer than {MIN_SUBJECTS_PER_CLASS} subjects with {name} rows"
    return ""


def _percentiles(value: float, scores_R: np.ndarray) -> Interval:
    # A resample that lost a class has no score.
    low, high = np.nanpercentile(scores_R, [2.5, 97.5])
    return Interval(value, float(low), float(high), standard_error=float(np.nanstd(scores_R)))


def calibration(
    labels_N: np.ndarray, predictions_N: np.ndarray, subject_N: np.ndarray, bins: int = 10, min_rows: int = 20
) -> tuple[list[dict[str, float]], float]:
    """(bins, expected calibration error): rows in order of prediction, cut in at most `bins` of near equal size,
    about `min_rows` or more in each.

    Equal predictions stay in one bin (Monte-Carlo risks are multiples of 1/samples). Each bin has its rows, mean
    prediction, observed rate and its 95% interval: Wilson's, of as many rows as would vary as much if they were of a
    subject each. The error is the mean |predicted - observed| over rows.
    """
    if len(labels_N) == 0:
        return [], float("nan")
    bins = max(1, min(bins, len(labels_N) // min_rows))
    edges = np.unique(np.quantile(predictions_N, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    bin_N = np.searchsorted(edges, predictions_N, side="left")
    table = []
    for index in np.unique(bin_N):
        members = bin_N == index
        rows, observed = int(members.sum()), float(labels_N[members].mean())
        low, high = _wilson(observed, _independent_rows(labels_N[members], subject_N[members]))
        predicted = float(predictions_N[members].mean())
        table.append({"rows": rows, "predicted": predicted, "observed": observed, "low": low, "high": high})
    error = sum(row["rows"] * abs(row["predicted"] - row["observed"]) for row in table) / len(labels_N)
    return table, float(error)


def _independent_rows(labels_N: np.ndarray, subject_N: np.ndarray) -> float:
    """How many independent rows would have a rate as uncertain as these have, whose subjects have several rows each.

    Kish's effective size, with the variance of a mean of clusters; of rows all alike, as many as there are subjects.
    """
    subjects, place_N = np.unique(subject_N, return_inverse=True)
    rate, rows = labels_N.mean(), len(labels_N)
    residual_S = np.bincount(place_N, labels_N - rate)
    variance = len(subjects) / max(1, len(subjects) - 1) * (residual_S**2).sum() / rows**2
    if not variance or len(subjects) == 1:
        return float(len(subjects))
    return float(np.clip(rate * (1 - rate) / variance, 1, rows))


def _wilson(rate: float, rows: float, z: float = 1.959964) -> tuple[float, float]:
    centre = (rate + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * np.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def roc_curve(labels_N: np.ndarray, predictions_N: np.ndarray) -> Mapping[str, list[float]]:
    """Corners of the ROC curve, from (0, 0) to (1, 1); empty where a class is missing."""
    if undefined(labels_N):
        return {"false_positive_rate": [], "true_positive_rate": []}
    positives_1xG, negatives_1xG = _class_weights(labels_N, predictions_N, np.ones((1, len(labels_N))))
    rates = []
    for weights_G in (negatives_1xG[0], positives_1xG[0]):
        cumulative = np.concatenate(([0.0], np.cumsum(weights_G[::-1])))
        rates.append((cumulative / cumulative[-1]).tolist())
    return {"false_positive_rate": rates[0], "true_positive_rate": rates[1]}
