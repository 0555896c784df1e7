"""Interval presets: how the time between two events becomes a token."""

import dataclasses
import itertools
import re
from typing import Any

import numpy as np

from data_pipeline.errors import UserError

MINUTE = 60.0
HOUR = 60 * MINUTE
DAY = 24 * HOUR
# Half a Julian year.
SIX_MONTHS = 182.625 * DAY
LONGEST_REPEATS = 40
HISTOGRAM_BINS = 64


@dataclasses.dataclass(frozen=True)
class IntervalPreset:
    """Named, consecutive ranges of time: interval i spans [lower_seconds[i], lower_seconds[i + 1]).

    A gap below lower_seconds[0] has no token. The last interval is open and repeats round(gap / repeat_seconds) times
    (at least once, at most 40 times), so that years are told apart.
    """

    name: str
    names: tuple[str, ...]
    lower_seconds: tuple[float, ...]
    repeat_seconds: float

    def __post_init__(self) -> None:
        if len(self.names) != len(self.lower_seconds) or list(self.lower_seconds) != sorted(set(self.lower_seconds)):
            raise ValueError(f"interval preset {self.name!r}: one name and one rising lower bound per interval")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "IntervalPreset":
        """Inverse of dataclasses.asdict, after a trip through JSON."""
        return cls(content["name"], tuple(content["names"]), tuple(content["lower_seconds"]), content["repeat_seconds"])

    def classify(self, gap_seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(interval index, repeats) for each gap in seconds; index -1 and 0 repeats where the gap is too short."""
        index = np.searchsorted(np.asarray(self.lower_seconds), gap_seconds, side="right") - 1
        last = len(self.names) - 1
        # Half up: numpy's rounding to even would make 2.5 half-years two.
        whole = np.floor(gap_seconds / self.repeat_seconds + 0.5).astype(np.int64)
        repeats = np.where(index == last, np.clip(whole, 1, LONGEST_REPEATS), (index >= 0).astype(np.int64))
        return index, repeats

    def duration_ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """(shortest, longest) seconds that one token of each interval stands for, float64 [I + 1]. The row beyond the
        intervals is of gaps that repeat the last one: what they have more or less than as many times repeat_seconds."""
        lower, half = np.asarray(self.lower_seconds, np.float64), self.repeat_seconds / 2
        low = np.append(lower, -half)
        return low, np.concatenate([lower[1:], [max(lower[-1], 3 * half), half]])

    def histogram(self, index: np.ndarray, repeats: np.ndarray, gap_seconds: np.ndarray) -> np.ndarray:
        """int64 [I + 1, HISTOGRAM_BINS]: how many gaps are how long, in equal bins of `duration_ranges`; gaps as
        `classify` has them, those without a token left out."""
        low, high = self.duration_ranges()
        has_token = index >= 0
        row = np.where(repeats > 1, len(low) - 1, index)[has_token]
        rest = (gap_seconds - np.where(repeats > 1, repeats * self.repeat_seconds, 0))[has_token]
        bins = ((rest - low[row]) / (high - low)[row] * HISTOGRAM_BINS).astype(np.int64)
        flat = row * HISTOGRAM_BINS + np.clip(bins, 0, HISTOGRAM_BINS - 1)
        return np.bincount(flat, minlength=len(low) * HISTOGRAM_BINS).reshape(len(low), HISTOGRAM_BINS)


# arXiv 2508.12104: thirteen intervals from 1-5 minutes to 6 months and more.
COMET13 = IntervalPreset(
    name="comet13",
    names=(
        "1m-5m",
        "5m-15m",
        "15m-1h",
        "1h-2h",
        "2h-6h",
        "6h-12h",
        "12h-1d",
        "1d-3d",
        "3d-1w",
        "1w-2w",
        "2w-30d",
        "30d-6mt",
        "6mt+",
    ),
    lower_seconds=(
        MINUTE,
        5 * MINUTE,
        15 * MINUTE,
        HOUR,
        2 * HOUR,
        6 * HOUR,
        12 * HOUR,
        DAY,
        3 * DAY,
        7 * DAY,
        14 * DAY,
        30 * DAY,
        SIX_MONTHS,
    ),
    repeat_seconds=SIX_MONTHS,
)
# ETHOS-ARES (`time_intervals_spec`): nineteen intervals from 5 minutes to 6 months of 30 days.
ETHOS19 = IntervalPreset(
    name="ethos19",
    names=(
        "5m-15m",
        "15m-45m",
        "45m-1h15m",
        "1h15m-2h",
        "2h-3h",
        "3h-5h",
        "5h-8h",
        "8h-12h",
        "12h-18h",
        "18h-1d",
        "1d-2d",
        "2d-4d",
        "4d-7d",
        "7d-12d",
        "12d-20d",
        "20d-30d",
        "30d-2mt",
        "2mt-6mt",
        "6mt+",
    ),
    lower_seconds=(
        5 * MINUTE,
        15 * MINUTE,
        45 * MINUTE,
        75 * MINUTE,
        2 * HOUR,
        3 * HOUR,
        5 * HOUR,
        8 * HOUR,
        12 * HOUR,
        18 * HOUR,
        DAY,
        2 * DAY,
        4 * DAY,
        7 * DAY,
        12 * DAY,
        20 * DAY,
        30 * DAY,
        60 * DAY,
        180 * DAY,
    ),
    repeat_seconds=180 * DAY,
)
_UNITS = {"m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY, "mt": SIX_MONTHS / 6, "y": 2 * SIX_MONTHS}


def custom(bounds: str) -> IntervalPreset:
    """The intervals between these bounds, "5m,1h,1d,30d,6mt" say, and from the last on.

    Units are m (minutes), h, d, w, mt (months, of a twelfth of 365.25 days) and y. The last interval repeats by its own
    lower bound. Raises UserError when the bounds are none, or do not rise.
    """
    where = "config.interval_bounds"
    names = [name.strip() for name in bounds.split(",")]
    matches = [re.fullmatch(r"(\d+(?:\.\d+)?)(mt|[mhdwy])", name) for name in names]
    for name, match in zip(names, matches, strict=True):
        if match is None or not float(match[1]):
            raise UserError(f"{name!r} is no length of time", where=where, fix="write 5m,1h,1d,30d,6mt, for example")
    lower = tuple(float(match[1]) * _UNITS[match[2]] for match in matches if match)
    if list(lower) != sorted(set(lower)):
        raise UserError("the bounds do not rise", where=where, fix="give each length of time once, shortest first")
    spans = tuple(f"{low}-{high}" for low, high in itertools.pairwise(names))
    return IntervalPreset("custom", (*spans, f"{names[-1]}+"), lower, lower[-1])


PRESETS = {preset.name: preset for preset in (COMET13, ETHOS19)}
