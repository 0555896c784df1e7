"""One instant of the world after another, whoever chooses what happens in it.

The same walk draws timelines (data_pipeline.world.simulation) and reads given tokens (data_pipeline.world.scoring):
rules.py says how likely each outcome is, a Chooser says which it was, and the state moves on.
"""

from typing import Protocol

import numpy as np

from data_pipeline.world import catalogue, encounters, instants, laboratory, rules
from data_pipeline.world.encounters import INPATIENT
from data_pipeline.world.instants import ARRIVAL, OVER
from data_pipeline.world.state import NEVER, State
from data_pipeline.world.tables import Tables, tables

_TYPE_OF_START = np.array([encounters.TYPES.index(name.split("//")[0]) for name in encounters.STARTS])
_INSTANT_OF_TYPE = np.array([instants.OFFICE] * 2 + [instants.EMERGENCY] + [instants.STAY] * 2)
_AFTER_TYPE = np.array([encounters.AFTER_OFFICE] * 2 + [encounters.AFTER_EMERGENCY] + [encounters.AFTER_STAY] * 2)
_IS_DEATH_E = np.array([name.endswith("DIED") for name in encounters.ENDS])
_HOSPICE, _ELECTIVE = rules.END["INPATIENT//HOSPICE"], rules.ARRIVAL["INPATIENT//ELECTIVE"]
_DEATH = rules.ARRIVAL["DEATH"]
# The fourth instant of a stay on, an acute condition no longer fades: powers of 3/4 up to here sum exactly.
_FADING_DAYS = 4


class Chooser(Protocol):
    """Who says what happens. Rows may come back fewer (nothing can happen to those left out) or more (copies).

    `skips`: elements, of those that nothing else depends on (TESTS, PROCEDURES), that it need not be asked about.
    """

    skips: frozenset[int]

    def time(self, s: State, rows_n: np.ndarray, weights_nxG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows for which time passes, the gap's column)."""

    def one(self, s: State, element: int, rows_n: np.ndarray, weights_nxW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, the one of catalogue.ELEMENT_CODES[element] that happens)."""

    def some(
        self, s: State, element: int, rows_n: np.ndarray, probabilities_nxW: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(rows, bool [n, W] which happen, independently)."""

    def tests(self, s: State, rows_n: np.ndarray, probabilities_nxL: np.ndarray, means_nxL: np.ndarray) -> None:
        """Which tests are made and their values; nothing else depends on them."""


def pass_instant(s: State, choose: Chooser) -> None:
    """Take every row that is not over to its next instant, and through it."""
    t = tables()
    _pass_time(s, t, choose)
    _start(s, t, choose)
    _department(s, t, choose)
    _complaint(s, t, choose)
    _diagnoses(s, t, choose)
    rows = _rows_with(s, instants.TESTS)
    if len(rows) and instants.TESTS not in choose.skips:
        now = s.at(rows)
        choose.tests(s, rows, rules.lab_orders(now, t), rules.lab_means(now, t))
    _treatments(s, t, choose)
    _end(s, t, choose)


def begin(s: State, choose: Chooser) -> None:
    """The first instant, which no time precedes."""
    s.instant_P[:] = ARRIVAL
    pass_instant(s, choose)


def _rows_with(s: State, element: int) -> np.ndarray:
    return np.flatnonzero(instants.HAS_ELEMENT[element][s.instant_P])


def _pass_time(s: State, t: Tables, choose: Chooser) -> None:
    rows = np.flatnonzero((s.instant_P != ARRIVAL) & (s.instant_P != OVER))
    if not len(rows):
        return
    rows, gap = choose.time(s, rows, rules.times(s.at(rows), t))
    now = s.at(rows)
    in_gap, following = rules.gap_follows(now), rules.next_instants(now, gap)
    minutes = rules.CLOCK_MINUTES[gap]
    s.clock_P[rows] += minutes
    s.gap_bin_P[rows] = np.where(in_gap, np.minimum(gap - rules.FIRST_GAP_BIN, len(encounters.GAP_BINS) - 1), -1)
    gaps = rows[in_gap]
    s.gap_P[gaps] = minutes[in_gap]
    s.first_P[gaps] = False
    s.episode_PxC[gaps] = 0
    days = rows[following == instants.STAY_DAY]
    s.day_P[days] += 1
    s.episode_PxC[days] *= np.where(s.day_P[days] <= _FADING_DAYS, laboratory.RECOVERY, 1.0)[:, None]
    s.instant_P[rows] = following


def _start(s: State, t: Tables, choose: Chooser) -> None:
    rows = _rows_with(s, instants.START)
    if not len(rows):
        return
    rows, start = choose.one(s, instants.START, rows, rules.starts(s.at(rows), t))
    s.instant_P[rows[start == _DEATH]] = OVER
    rows, start = rows[start != _DEATH], start[start != _DEATH]
    kind = _TYPE_OF_START[start]
    s.elective_P[rows] = start == _ELECTIVE
    s.type_P[rows] = kind
    s.complaint_P[rows] = -1
    s.end_P[rows] = -1
    s.coded_PxC[rows] = False
    s.day_P[rows] = 0
    s.instant_P[rows] = _INSTANT_OF_TYPE[kind]


def _department(s: State, t: Tables, choose: Chooser) -> None:
    rows = _rows_with(s, instants.DEPARTMENT)
    if len(rows):
        rows, department = choose.one(s, instants.DEPARTMENT, rows, rules.departments(s.at(rows), t))
        s.department_P[rows] = department


def _complaint(s: State, t: Tables, choose: Chooser) -> None:
    rows = _rows_with(s, instants.COMPLAINT)
    if len(rows):
        rows, complaint = choose.one(s, instants.COMPLAINT, rows, rules.complaints(s.at(rows), t))
        s.complaint_P[rows] = complaint


def _diagnoses(s: State, t: Tables, choose: Chooser) -> None:
    rows = _rows_with(s, instants.DIAGNOSES)
    if not len(rows):
        return
    rows, coded_nxC = choose.some(s, instants.DIAGNOSES, rows, rules.diagnoses(s.at(rows), t))
    s.coded_PxC[rows] = coded_nxC
    s.ever_PxC[rows] |= coded_nxC
    first_nxC = coded_nxC & (s.since_PxC[rows] == NEVER)
    s.since_PxC[rows] = np.where(first_nxC, s.clock_P[rows][:, None], s.since_PxC[rows]).astype(np.int32)
    s.episode_PxC[rows] += coded_nxC & ~t.chronic_C & (s.episode_PxC[rows] == 0)


def _treatments(s: State, t: Tables, choose: Chooser) -> None:
    rows = _rows_with(s, instants.DRUGS)
    if len(rows):
        rows, given_nxR = choose.some(s, instants.DRUGS, rows, rules.drugs(s.at(rows), t))
        s.on_PxR[rows] |= given_nxR & t.lasting_R
    rows = _rows_with(s, instants.PROCEDURES)
    if len(rows) and instants.PROCEDURES not in choose.skips:
        choose.some(s, instants.PROCEDURES, rows, rules.procedures(s.at(rows), t))


def _end(s: State, t: Tables, choose: Chooser) -> None:
    rows = _rows_with(s, instants.END)
    if not len(rows):
        return
    rows, end = choose.one(s, instants.END, rows, rules.ends(s.at(rows), t))
    s.end_P[rows] = end
    s.after_P[rows] = _AFTER_TYPE[s.type_P[rows]]
    wards = rows[s.type_P[rows] == INPATIENT]
    s.hospice_P[wards] = s.end_P[wards] == _HOSPICE
    s.stays_P[wards] = np.minimum(s.stays_P[wards] + 1, 3)
    dying = rows[_IS_DEATH_E[end]]
    if len(dying):
        certain_nx1 = np.ones((len(dying), len(catalogue.ELEMENT_CODES[instants.DEATH])))
        dying, _ = choose.one(s, instants.DEATH, dying, certain_nx1)
        s.instant_P[dying] = OVER
