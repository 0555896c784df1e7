"""Draw timelines from the rules: one instant of every living subject of a block at a time, as numpy columns.

Everything is drawn in the order of the tokens, and depends on earlier tokens and the phenotype only. What the tokens do
not tell is drawn beside them and changes nothing: the day of the first encounter within its calendar period, the exact
age within its bucket, and the minutes of each gap within its interval. Dates keep within MOST_DRIFT of the tokens'
clock, and observation ends by the clock, so that the tokens and the day of the first encounter decide it.
"""

import dataclasses
import datetime

import numpy as np
import threadpoolctl

from data_pipeline.world import catalogue, conditions, instants, laboratory, rules, walk
from data_pipeline.world.draws import Draws
from data_pipeline.world.state import State, initial_state

_EPOCH = datetime.datetime(1970, 1, 1)
DAY_MINUTES = 24 * 60


def _minutes(year: int) -> int:
    return (datetime.datetime(year, 1, 1) - _EPOCH) // datetime.timedelta(minutes=1)


# First encounters fall in [FIRST, LAST_FIRST), in office hours; by the clock nothing is observed from END on.
FIRST, LAST_FIRST, END = _minutes(2012), _minutes(2020), _minutes(2025)
DAY_START, DAY_END = 8 * 60, 17 * 60
MOST_DRIFT = 7 * DAY_MINUTES
NO_TIME = np.iinfo(np.int64).min
AGE_BUCKET = 5
# Shares of the five-year age buckets at the first encounter, from 15-19 (18 and 19 only) to 90-94.
FIRST_AGE = 15
AGE_SHARES = (2.5, 6, 6, 6.5, 7, 7, 8, 9, 9, 9, 8.5, 7.5, 6, 4, 2.5, 1)
FEMALE_SHARE = 0.54
_YEAR_MINUTES = 365.25 * DAY_MINUTES
# Birthdays keep this far (in years) from the borders of the age bucket, however ages are counted.
_BUCKET_MARGIN = 0.05


@dataclasses.dataclass(frozen=True)
class Events:
    """E events in MEDS order. time_E: minutes since 1970, NO_TIME for static rows; code_E indexes catalogue.CODES."""

    subject_id_E: np.ndarray
    time_E: np.ndarray
    code_E: np.ndarray
    value_E: np.ndarray
    subject_ids_P: np.ndarray
    phenotype_P: np.ndarray


def simulate(subject_ids_P: np.ndarray, seed: int) -> Events:
    """The timelines of these subjects; each is a pure function of (seed, subject)."""
    # The products are small: threads within them cost far more than they save, and processes share the cores already.
    with threadpoolctl.threadpool_limits(1):
        return Timelines(subject_ids_P, seed).run()


def drift(drift_n: np.ndarray, gap_n: np.ndarray, u_n: np.ndarray) -> np.ndarray:
    """How far (in minutes) dates are from the clock after a gap, given how far they were before; `u_n` is uniform."""
    low_n, high_n = drift_bounds(drift_n, gap_n)
    return low_n + np.floor(u_n * (high_n - low_n)).astype(np.int64)


def drift_bounds(drift_n: np.ndarray, gap_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[low, high) of the drift after a gap: within MOST_DRIFT, and the gap's minutes within its interval."""
    low_n = np.maximum(drift_n + (rules.LOW_MINUTES - rules.CLOCK_MINUTES)[gap_n], -MOST_DRIFT)
    high_n = np.minimum(drift_n + (rules.HIGH_MINUTES - rules.CLOCK_MINUTES)[gap_n], MOST_DRIFT + 1)
    return low_n, high_n


def _codes(texts: tuple[str, ...]) -> np.ndarray:
    return np.array([catalogue.INDEX[text] for text in texts])


CODES_OF_ELEMENT = [_codes(texts) for texts in catalogue.ELEMENT_CODES]
_SEX_CODES = _codes(tuple(f"SEX//{sex}" for sex in catalogue.SEXES))
_RACE_CODES = _codes(tuple(f"RACE//{race}" for race in catalogue.RACES))
_BIRTH = catalogue.INDEX[catalogue.BIRTH_CODE]
_OBSERVATION_END = catalogue.INDEX[catalogue.OBSERVATION_END_CODE]


class Timelines:
    """A walk.Chooser that draws, and writes down what it drew."""

    skips: frozenset[int] = frozenset()

    def __init__(self, subject_ids_P: np.ndarray, seed: int) -> None:
        self.subject_ids_P = subject_ids_P
        self.draws = Draws(seed, subject_ids_P)
        self.columns: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self.time_P = np.zeros(len(subject_ids_P), np.int64)
        self.drift_P = np.zeros(len(subject_ids_P), np.int64)
        self.state = self._demographics(np.arange(len(subject_ids_P)))

    def run(self) -> Events:
        """Draw until every subject is dead or observed no longer."""
        walk.begin(self.state, self)
        while (self.state.instant_P != instants.OVER).any():
            walk.pass_instant(self.state, self)
        return self._events()

    def time(self, s: State, rows_n: np.ndarray, weights_nxG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw how long each row waits; those whose observation ends meanwhile are over."""
        # What is left is a gap past the longest one, and so past the end of observation.
        left_nx1 = np.maximum(1 - weights_nxG.sum(axis=1, keepdims=True), 0.0)
        gap_n = self.draws.choice(rows_n, np.concatenate([weights_nxG, left_nx1], axis=1))
        known_n = gap_n < rules.GAPS
        clock_n = s.clock_P[rows_n] + rules.CLOCK_MINUTES[np.where(known_n, gap_n, 0)]
        observed_n = known_n & (self.start_P[rows_n] + clock_n < END)
        self._end_observation(s, rows_n[~observed_n])
        rows_n, gap_n, clock_n = rows_n[observed_n], gap_n[observed_n], clock_n[observed_n]
        self.drift_P[rows_n] = drift(self.drift_P[rows_n], gap_n, self.draws.uniform(rows_n, 1)[:, 0])
        self.time_P[rows_n] = self.start_P[rows_n] + clock_n + self.drift_P[rows_n]
        return rows_n, gap_n

    def _end_observation(self, s: State, rows: np.ndarray) -> None:
        """As long after the last event as by the clock: dates keep their drift, and the tokens tell the clock."""
        self.time_P[rows] += END - self.start_P[rows] - s.clock_P[rows]
        self._emit(rows, np.array(_OBSERVATION_END))
        s.instant_P[rows] = instants.OVER

    def one(self, s: State, element: int, rows_n: np.ndarray, weights_nxW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw one outcome for each row."""
        chosen_n = self.draws.choice(rows_n, weights_nxW)
        self._emit(rows_n, CODES_OF_ELEMENT[element][chosen_n])
        return rows_n, chosen_n

    def some(
        self, s: State, element: int, rows_n: np.ndarray, probabilities_nxW: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw each outcome by itself."""
        happens_nxW = self.draws.events(rows_n, probabilities_nxW)
        which, columns = np.nonzero(happens_nxW)
        self._emit(rows_n[which], CODES_OF_ELEMENT[element][columns])
        return rows_n, happens_nxW

    def tests(self, s: State, rows_n: np.ndarray, probabilities_nxL: np.ndarray, means_nxL: np.ndarray) -> None:
        """Draw which tests are made, and their values."""
        ordered_nxL = self.draws.events(rows_n, probabilities_nxL)
        z_nxL = means_nxL + laboratory.NOISE * self.draws.normal(rows_n, means_nxL.shape[1])
        which, columns = np.nonzero(ordered_nxL)
        values = rules.lab_values(z_nxL)[which, columns]
        self._emit(rows_n[which], CODES_OF_ELEMENT[instants.TESTS][columns], values)

    def _emit(self, rows: np.ndarray, codes: np.ndarray, values: np.ndarray | None = None) -> None:
        """Write events at their subjects' present time."""
        if values is None:
            values = np.full(len(rows), np.nan, np.float32)
        self.columns.append((rows, self.time_P[rows], np.broadcast_to(codes, rows.shape), values))

    def _demographics(self, rows: np.ndarray) -> State:
        def pick(shares: tuple[float, ...]) -> np.ndarray:
            return self.draws.choice(rows, np.broadcast_to(np.array(shares), (len(rows), len(shares))))

        male_P, race_P = pick((FEMALE_SHARE, 1 - FEMALE_SHARE)), pick(catalogue.RACE_SHARES)
        bucket_P, phenotype_P = pick(AGE_SHARES), pick(conditions.PHENOTYPE_SHARES)
        u_Px3 = self.draws.uniform(rows, 3)
        days_P = FIRST // DAY_MINUTES + np.floor(u_Px3[:, 0] * ((LAST_FIRST - FIRST) // DAY_MINUTES)).astype(np.int64)
        self.start_P = days_P * DAY_MINUTES + DAY_START + np.floor(u_Px3[:, 1] * (DAY_END - DAY_START)).astype(np.int64)
        low_P = np.maximum(FIRST_AGE + AGE_BUCKET * bucket_P, 18) + _BUCKET_MARGIN
        high_P = FIRST_AGE + AGE_BUCKET * (bucket_P + 1) - _BUCKET_MARGIN
        age_P = low_P + u_Px3[:, 2] * (high_P - low_P)
        self.time_P[:] = (self.start_P - np.floor(age_P * _YEAR_MINUTES).astype(np.int64)) // DAY_MINUTES * DAY_MINUTES
        self._emit(rows, np.array(_BIRTH))
        self.time_P[:] = NO_TIME
        self._emit(rows, _RACE_CODES[race_P])
        self._emit(rows, _SEX_CODES[male_P])
        self.time_P[:] = self.start_P
        return initial_state(male_P == 0, phenotype_P, middle_age(bucket_P))

    def _events(self) -> Events:
        row, time, code, value = (np.concatenate(column) for column in zip(*self.columns, strict=True))
        order = np.lexsort((code, time, row))
        return Events(
            self.subject_ids_P[row[order]],
            time[order],
            code[order],
            value[order],
            self.subject_ids_P,
            self.state.phenotype_P,
        )


def middle_age(bucket_P: np.ndarray) -> np.ndarray:
    """Years of age in the middle of each bucket of AGE_SHARES."""
    return FIRST_AGE + AGE_BUCKET * (bucket_P + 0.5)
