"""How far two sets of windows are apart, one number each: 0 for sets that are alike.

`distances(ours, rows, theirs, rows)` compares rows of two tables, so that any half can be compared with any other.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.stats

from data_pipeline.vocabulary import Vocabulary
from experiments.plausibility.tables import Tables

CLINICAL = ("CHIEF_COMPLAINT", "DIAGNOSIS", "LAB", "MEDICATION", "PROCEDURE")
MAX_PAIRED_CODES = 60
# Pairs of codes are compared where chance alone would have them together in so many windows.
MIN_EXPECTED = 5.0

# Name → (what it says, how it is computed).
TITLES: Mapping[str, tuple[str, str]] = {
    "prevalence_rmsle": (
        "Prevalence of codes",
        "RMSLE over the codes seen in either set: root mean square of ln(1 + windows with the code per 1,000)",
    ),
    "pairs_rmse": ("Pairs of codes", "root mean square difference of ln odds ratio (a half added to each count)"),
    "pairs_decorrelation": ("Pairs of codes, pattern", "1 - Pearson correlation of the pairs' ln odds ratios"),
    "events_ks": ("Events in a window", "Kolmogorov-Smirnov distance of the number"),
    "encounters_ks": ("Encounters in a window", "Kolmogorov-Smirnov distance of the number"),
    "encounters_wasserstein": ("Encounters in a window, mean shift", "Wasserstein distance of the number, encounters"),
    "types_tv": ("Types of encounters", "total variation distance of the shares"),
    "stays_wasserstein": ("Length of encounters", "Wasserstein distance of log10 hours (at least a minute)"),
    "intervals_tv": ("Interval tokens", "total variation distance of the shares"),
    "gaps_ks": ("Time between events", "Kolmogorov-Smirnov distance of the time from instant to instant"),
    "gaps_wasserstein": ("Time between events, shift", "Wasserstein distance of log10 hours"),
    "visits_wasserstein": ("Time between encounters", "Wasserstein distance of log10 hours between starts"),
}


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of events that are compared: indices of the vocabulary's events."""

    first: np.ndarray
    second: np.ndarray


def frequent_pairs(tables: Tables, vocabulary: Vocabulary) -> Pairs:
    """Of the most frequent clinical codes, the pairs that chance would have together often enough in these windows."""
    is_clinical_E = np.array([event.kind in CLINICAL for event in vocabulary.events])
    counts_E = tables.present_NxE.sum(0) * is_clinical_E
    codes = np.sort(np.argsort(-counts_E, kind="stable")[:MAX_PAIRED_CODES])
    first, second = np.triu_indices(len(codes), 1)
    expected = counts_E[codes[first]] * counts_E[codes[second]] / max(1, len(tables.present_NxE))
    return Pairs(codes[first[expected >= MIN_EXPECTED]], codes[second[expected >= MIN_EXPECTED]])


def prevalence(tables: Tables, rows: np.ndarray) -> np.ndarray:
    """Windows with each event, per 1,000 of these windows (float64 [E])."""
    return 1000 * tables.present_NxE[rows].mean(0)


def log_odds_ratios(tables: Tables, rows: np.ndarray, pairs: Pairs) -> np.ndarray:
    """ln odds ratio of each pair in these windows; a half added to each of the four counts (Haldane)."""
    present = tables.present_NxE[rows]
    both = (present[:, pairs.first] & present[:, pairs.second]).sum(0)
    first, second = present[:, pairs.first].sum(0), present[:, pairs.second].sum(0)
    table = both, first - both, second - both, len(rows) - first - second + both
    a, b, c, d = (count + 0.5 for count in table)
    return np.log(a * d / (b * c))


def distances(
    ours: Tables, our_rows: np.ndarray, theirs: Tables, their_rows: np.ndarray, pairs: Pairs
) -> dict[str, float | None]:
    """By the names of TITLES; None where a set has nothing to compare."""
    one, other = prevalence(ours, our_rows), prevalence(theirs, their_rows)
    seen_E = (one > 0) | (other > 0)
    squares = (np.log1p(one[seen_E]) - np.log1p(other[seen_E])) ** 2
    odds, their_odds = log_odds_ratios(ours, our_rows, pairs), log_odds_ratios(theirs, their_rows, pairs)
    encounters = ours.encounters_NxK[our_rows].sum(1), theirs.encounters_NxK[their_rows].sum(1)
    stays, gaps, visits = (
        (getattr(ours, name).of_windows(our_rows), getattr(theirs, name).of_windows(their_rows))
        for name in ("stays", "gaps", "visits")
    )
    return {
        "prevalence_rmsle": float(np.sqrt(squares.mean())) if len(squares) else None,
        "pairs_rmse": float(np.sqrt(np.mean((odds - their_odds) ** 2))) if len(odds) else None,
        "pairs_decorrelation": _decorrelation(odds, their_odds),
        "events_ks": _ks(ours.events_N[our_rows], theirs.events_N[their_rows]),
        "encounters_ks": _ks(*encounters),
        "encounters_wasserstein": _wasserstein(*encounters),
        "types_tv": _total_variation(ours.encounters_NxK[our_rows].sum(0), theirs.encounters_NxK[their_rows].sum(0)),
        "stays_wasserstein": _wasserstein(*map(_log_hours, stays)),
        "intervals_tv": _total_variation(ours.intervals_NxI[our_rows].sum(0), theirs.intervals_NxI[their_rows].sum(0)),
        "gaps_ks": _ks(*gaps),
        "gaps_wasserstein": _wasserstein(*map(_log_hours, gaps)),
        "visits_wasserstein": _wasserstein(*map(_log_hours, visits)),
    }


def rates(tables: Tables, rows: np.ndarray) -> dict[str, float | None]:
    """What is said of one set: means, and events that its subjects' sex or age contradicts, per 1,000 such events."""

    def per_thousand(part_N: np.ndarray, of_N: np.ndarray) -> float | None:
        return 1000 * float(part_N[rows].sum() / of_N[rows].sum()) if of_N[rows].sum() else None

    return {
        "events_mean": float(tables.events_N[rows].mean()),
        "encounters_mean": float(tables.encounters_NxK[rows].sum(1).mean()),
        "wrong_sex_per_1000": per_thousand(tables.wrong_sex_N, tables.one_sex_N),
        "wrong_age_per_1000": per_thousand(tables.wrong_age_N, tables.aged_N),
    }


def quantiles(tables: Tables) -> dict[str, list[float] | None]:
    """10th, 50th and 90th percentile of days: between instants, between encounters, and of encounters."""
    found = {}
    for name in ("gaps", "visits", "stays"):
        values = getattr(tables, name).values
        found[f"{name}_days"] = np.quantile(values, [0.1, 0.5, 0.9]).tolist() if len(values) else None
    return found


def _log_hours(days: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(days * 24, 1 / 60))


def _ks(one: np.ndarray, other: np.ndarray) -> float | None:
    return float(scipy.stats.ks_2samp(one, other, method="asymp").statistic) if len(one) and len(other) else None


def _wasserstein(one: np.ndarray, other: np.ndarray) -> float | None:
    return float(scipy.stats.wasserstein_distance(one, other)) if len(one) and len(other) else None


def _total_variation(one: np.ndarray, other: np.ndarray) -> float | None:
    if not one.sum() or not other.sum():
        return None
    return float(np.abs(one / one.sum() - other / other.sum()).sum() / 2)


def _decorrelation(one: np.ndarray, other: np.ndarray) -> float | None:
    if len(one) < 3 or not one.std() or not other.std():
        return None
    return float(1 - np.corrcoef(one, other)[0, 1])
