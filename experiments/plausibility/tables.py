"""What the statistics read of a set of windows: one pass over the tokens, then arrays whose rows are windows.

N windows   E events of the vocabulary   K encounter types   I interval tokens
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipeline.vocabulary import Vocabulary
from experiments.plausibility.profile import Profile
from experiments.plausibility.windows import US_PER_YEAR, Window

DAYS_PER_YEAR = US_PER_YEAR / 86_400e6


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Numbers of windows, any number of each: `values` and the window that each belongs to, ascending."""

    values: np.ndarray
    window: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[float]]) -> "Ragged":
        """Of one list a window."""
        window = np.repeat(np.arange(len(lists)), [len(values) for values in lists])
        return cls(np.array([value for values in lists for value in values], float), window)

    def of_windows(self, chosen: np.ndarray) -> np.ndarray:
        """The values of these windows, a window named twice twice."""
        starts = np.searchsorted(self.window, [chosen, chosen + 1])
        return np.concatenate([np.zeros(0), *(self.values[begin:stop] for begin, stop in starts.T)])


@dataclasses.dataclass(frozen=True)
class Tables:
    """Attributes:
    present_NxE: does the event occur in the window?
    events_N: number of events.
    encounters_NxK: encounters begun, by type (names in `types`).
    stays: days between the start and the end of an encounter of one type.
    gaps: days between an instant with events and the next; the first counts from the prediction time.
    visits: days between the starts of encounters.
    intervals_NxI: interval tokens, by length.
    one_sex_N, wrong_sex_N: events of codes that training shows for one sex only, and those of them in the other.
    aged_N, wrong_age_N: events of codes whose ages training tells, and those outside of them.
    """

    types: tuple[str, ...]
    present_NxE: np.ndarray
    events_N: np.ndarray
    encounters_NxK: np.ndarray
    stays: Ragged
    gaps: Ragged
    visits: Ragged
    intervals_NxI: np.ndarray
    one_sex_N: np.ndarray
    wrong_sex_N: np.ndarray
    aged_N: np.ndarray
    wrong_age_N: np.ndarray


def tabulate(windows: Sequence[Window], profile: Profile, vocabulary: Vocabulary) -> Tables:
    """Read the windows once."""
    types = encounter_types(vocabulary)
    size = len(windows)
    present_NxE = np.zeros((size, len(vocabulary.events)), bool)
    encounters_NxK = np.zeros((size, len(types)), np.int64)
    counts = {name: np.zeros(size, np.int64) for name in ("events", "one_sex", "wrong_sex", "aged", "wrong_age")}
    stays: list[list[float]] = [[] for _ in windows]
    gaps: list[list[float]] = [[] for _ in windows]
    visits: list[list[float]] = [[] for _ in windows]
    for row, window in enumerate(windows):
        open_since: dict[str, float] = {}
        last, last_visit = 0.0, None
        for index, event, days in window.events(vocabulary):
            present_NxE[row, index] = True
            counts["events"][row] += 1
            if days > last:
                gaps[row].append(days - last)
                last = days
            if event.role == "start":
                kind = _type(event.concept)
                encounters_NxK[row, types.index(kind)] += 1
                open_since[kind] = days
                if last_visit is not None:
                    visits[row].append(days - last_visit)
                last_visit = days
            elif event.role == "end" and (begun := open_since.pop(_type(event.concept), None)) is not None:
                stays[row].append(days - begun)
            if window.sex and index in profile.only_sex:
                counts["one_sex"][row] += 1
                counts["wrong_sex"][row] += profile.only_sex[index] != window.sex
            if np.isfinite(profile.oldest_E[index]) and np.isfinite(window.age_years):
                age = window.age_years + days / DAYS_PER_YEAR
                counts["aged"][row] += 1
                counts["wrong_age"][row] += not profile.youngest_E[index] <= age <= profile.oldest_E[index]
    interval_of = np.full(len(vocabulary), len(vocabulary.interval_ids))
    interval_of[list(vocabulary.interval_ids)] = np.arange(len(vocabulary.interval_ids))
    intervals_NxI = [
        np.bincount(interval_of[window.tokens_T], minlength=len(vocabulary.interval_ids) + 1)[:-1] for window in windows
    ]
    return Tables(
        types,
        present_NxE,
        counts["events"],
        encounters_NxK,
        Ragged.of(stays),
        Ragged.of(gaps),
        Ragged.of(visits),
        np.array(intervals_NxI).reshape(size, -1),
        counts["one_sex"],
        counts["wrong_sex"],
        counts["aged"],
        counts["wrong_age"],
    )


def encounter_types(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The types of the vocabulary's encounters, in order."""
    return tuple(sorted({_type(event.concept) for event in vocabulary.events if event.role in ("start", "end")}))


def _type(concept: str) -> str:
    # ENCOUNTER//ENCOUNTER_START//INPATIENT//...: the type is the third part; a shortened code may have none.
    parts = concept.split("//")
    return parts[2] if len(parts) > 2 else "unknown"
