"""Draw timelines from the rules: one encounter of every living subject of a block at a time, as numpy columns.

Everything is drawn in the order of the tokens: interval bin, what ends the gap, department, complaint, diagnoses,
tests, values, drugs, procedures; so each draw depends on earlier tokens and the phenotype only. The one thing that
tokens tell only roughly is the calendar: a time is uniform within its interval bin, and observation ends on a fixed
date.
"""

import dataclasses
import datetime

import numpy as np
import threadpoolctl

from data_pipeline import intervals
from data_pipeline.world import catalogue, conditions, encounters, laboratory, rules
from data_pipeline.world.draws import Draws
from data_pipeline.world.encounters import EMERGENCY, ICU, INPATIENT
from data_pipeline.world.state import State, initial_state
from data_pipeline.world.tables import DEPARTMENT, Tables, tables

_EPOCH = datetime.datetime(1970, 1, 1)
DAY_MINUTES = 24 * 60


def _minutes(year: int) -> int:
    return (datetime.datetime(year, 1, 1) - _EPOCH) // datetime.timedelta(minutes=1)


# First encounters fall in [FIRST, LAST_FIRST); nothing is observed from END on.
FIRST, LAST_FIRST, END = _minutes(2012), _minutes(2020), _minutes(2025)
NO_TIME = np.iinfo(np.int64).min
AGE_BUCKET = 5
# Shares of the five-year age buckets at the first encounter, from 15-19 (18 and 19 only) to 90-94.
AGE_SHARES = (2.5, 6, 6, 6.5, 7, 7, 8, 9, 9, 9, 8.5, 7.5, 6, 4, 2.5, 1)
_YEAR_MINUTES = 365.25 * DAY_MINUTES
# Birthdays keep this far (in years) from the borders of the age bucket, however ages are counted.
_BUCKET_MARGIN = 0.05
_DAY_START, _DAY_END = 8 * 60, 17 * 60


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
        return _Simulation(subject_ids_P, seed).run()


def _codes(texts: list[str]) -> np.ndarray:
    return np.array([catalogue.INDEX[text] for text in texts])


_CONDITION_CODES = _codes([f"ICD10CM//{item.code}" for item in catalogue.CONDITIONS])
_LAB_CODES = _codes([f"LOINC//{item.code}" for item in catalogue.LABS])
_DRUG_CODES = _codes([f"ATC//{item.code}" for item in catalogue.DRUGS])
_PROCEDURE_CODES = _codes([f"CPT//{number}" for number in catalogue.PROCEDURES])
_DEPARTMENT_CODES = _codes([f"DEPARTMENT//{name}" for name in catalogue.DEPARTMENTS])
_COMPLAINT_CODES = _codes([f"CHIEF_COMPLAINT//{item.name}" for item in catalogue.COMPLAINTS])
_SEX_CODES = _codes([f"SEX//{sex}" for sex in catalogue.SEXES])
_RACE_CODES = _codes([f"RACE//{race}" for race in catalogue.RACES])
_BIRTH, _DEATH = catalogue.INDEX["MEDS_BIRTH"], catalogue.INDEX["MEDS_DEATH"]
_EMERGENT, _ELECTIVE, _TRANSFER = _codes(
    [f"ENCOUNTER_START//INPATIENT//{x}" for x in encounters.START_DETAILS["INPATIENT"]]
)
# INPATIENT has details: its entry here is not used.
_START_CODES = _codes(
    [
        f"ENCOUNTER_START//{kind}" if kind != "INPATIENT" else "ENCOUNTER_START//INPATIENT//EMERGENT"
        for kind in encounters.TYPES
    ]
)
_END_CODES = [
    _codes([f"ENCOUNTER_END//{kind}//{end}" for end in encounters.DISPOSITIONS[kind]] or [f"ENCOUNTER_END//{kind}"])
    for kind in encounters.TYPES
]
_END_OFFICE_CODES = np.array([_END_CODES[0][0], _END_CODES[1][0]])
_HOSPICE, _WARD_DIED = 3, 4


class _Simulation:
    """P subjects on their way; `rows` are indices into them."""

    def __init__(self, subject_ids_P: np.ndarray, seed: int) -> None:
        self.t: Tables = tables()
        self.subject_ids_P = subject_ids_P
        self.draws = Draws(seed, subject_ids_P)
        self.columns: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        size = len(subject_ids_P)
        self.time_P = np.zeros(size, np.int64)
        self.alive_P = np.ones(size, bool)
        self.s: State = self._demographics(np.arange(size))

    def run(self) -> Events:
        rows = np.arange(len(self.subject_ids_P))
        self._office(rows, np.zeros(len(rows), np.int64))
        while len(rows := np.flatnonzero(self.alive_P)):
            self._encounter(rows)
        return self._events()

    # What is written, and time.

    def _emit(self, rows: np.ndarray, codes: np.ndarray, values: np.ndarray | None = None) -> None:
        """Write events at their subjects' present time."""
        if values is None:
            values = np.full(len(rows), np.nan, np.float32)
        self.columns.append((rows, self.time_P[rows], np.broadcast_to(codes, rows.shape), values))

    def _emit_where(self, rows: np.ndarray, happens_nxW: np.ndarray, codes_W: np.ndarray) -> None:
        which, columns = np.nonzero(happens_nxW)
        self._emit(rows[which], codes_W[columns])

    def _advance(self, rows: np.ndarray, bins: np.ndarray, repeats: np.ndarray | None = None) -> np.ndarray:
        """Pass a time drawn uniformly from each bin; returns the rows that are still observed."""
        bounds_minutes = np.array([*intervals.COMET13.lower_seconds, 0]) / 60
        half_year = intervals.SIX_MONTHS / 60
        low, high = bounds_minutes[bins], bounds_minutes[bins + 1]
        clock = rules.CLOCK_MONTHS[bins]
        if repeats is not None:
            last = bins == rules.LAST_BIN
            low = np.where(last, np.where(repeats == 1, 1.0, repeats - 0.5) * half_year, low)
            high = np.where(last, (repeats + 0.5) * half_year, high)
            clock = np.where(last, clock * repeats, clock)
        u = self.draws.uniform(rows, 1)[:, 0]
        self.time_P[rows] += np.floor(low + u * (high - low)).astype(np.int64)
        self.s.months_P[rows] += clock
        observed = self.time_P[rows] < END
        self.alive_P[rows[~observed]] = False
        return rows[observed]

    def _step(self, rows: np.ndarray, name: str) -> np.ndarray:
        weights = np.broadcast_to(rules.step_weights(name), (len(rows), len(rules.CLOCK_MONTHS)))
        return self._advance(rows, self.draws.choice(rows, weights))

    # The subjects, and what happens to them.

    def _demographics(self, rows: np.ndarray) -> State:
        def pick(shares: tuple[float, ...]) -> np.ndarray:
            return self.draws.choice(rows, np.broadcast_to(np.array(shares), (len(rows), len(shares))))

        male_P, race_P = pick((0.54, 0.46)), pick(catalogue.RACE_SHARES)
        bucket_P, phenotype_P = pick(AGE_SHARES), pick(conditions.PHENOTYPE_SHARES)
        u_Px3 = self.draws.uniform(rows, 3)
        days_P = FIRST // DAY_MINUTES + np.floor(u_Px3[:, 0] * ((LAST_FIRST - FIRST) // DAY_MINUTES)).astype(np.int64)
        start_P = days_P * DAY_MINUTES + _DAY_START + np.floor(u_Px3[:, 1] * (_DAY_END - _DAY_START)).astype(np.int64)
        low_P = np.maximum(15.0 + AGE_BUCKET * bucket_P, 18.0) + _BUCKET_MARGIN
        high_P = 20.0 + AGE_BUCKET * bucket_P - _BUCKET_MARGIN
        age_P = low_P + u_Px3[:, 2] * (high_P - low_P)
        self.time_P[:] = (start_P - np.floor(age_P * _YEAR_MINUTES).astype(np.int64)) // DAY_MINUTES * DAY_MINUTES
        self._emit(rows, np.array(_BIRTH))
        self.time_P[:] = NO_TIME
        self._emit(rows, _RACE_CODES[race_P])
        self._emit(rows, _SEX_CODES[male_P])
        self.time_P[:] = start_P
        return initial_state(male_P == 0, phenotype_P, 17.5 + AGE_BUCKET * bucket_P)

    def _encounter(self, rows: np.ndarray) -> None:
        """The gap after an encounter, then what it ends with, and all that follows from that directly."""
        bins, ends_nxExG = rules.gap_weights(rules.gap_rates(self.s.take(rows), self.t))
        # What is left is a gap past the longest one, and so past the end of observation.
        left = 1 - bins.sum(axis=1, keepdims=True)
        gap = self.draws.choice(rows, np.concatenate([bins, np.maximum(left, 0.0)], axis=1))
        column = np.minimum(gap, len(encounters.GAP_BINS) - 1)
        end = self.draws.choice(rows, ends_nxExG[np.arange(len(rows)), :, column])
        before = self.s.months_P[rows]
        observed = self._advance(rows, column + rules.FIRST_GAP_BIN, gap - column + 1)
        self.s.gap_months_P[rows] = self.s.months_P[rows] - before
        end = end[np.isin(rows, observed)]
        self.s.first_P[observed] = False
        self.s.episode_PxC[observed] = 0
        self._die(observed[end == rules.DEATH])
        self.s.elective_P[observed] = end == INPATIENT
        office = end < EMERGENCY
        self._office(observed[office], end[office])
        self._emergency(observed[end == EMERGENCY])
        elective = observed[end == INPATIENT]
        self._stay(elective, INPATIENT, np.full(len(elective), _ELECTIVE))

    def _die(self, rows: np.ndarray) -> None:
        self._emit(rows, np.array(_DEATH))
        self.alive_P[rows] = False

    def _open(self, rows: np.ndarray, kind: np.ndarray, start_codes: np.ndarray) -> None:
        self.s.type_P[rows] = kind
        self.s.complaint_P[rows] = -1
        self.s.coded_PxC[rows] = False
        self.s.day_P[rows] = 0
        self._emit(rows, start_codes)

    def _department(self, rows: np.ndarray, departments: np.ndarray) -> None:
        self.s.department_P[rows] = departments
        self._emit(rows, _DEPARTMENT_CODES[departments])

    def _complaint(self, rows: np.ndarray) -> None:
        complaint = self.draws.choice(rows, rules.complaints(self.s.take(rows), self.t))
        self.s.complaint_P[rows] = complaint
        self._emit(rows, _COMPLAINT_CODES[complaint])

    def _diagnoses(self, rows: np.ndarray) -> None:
        coded_nxC = self.draws.events(rows, rules.diagnoses(self.s.take(rows), self.t))
        self._emit_where(rows, coded_nxC, _CONDITION_CODES)
        self.s.coded_PxC[rows] = coded_nxC
        self.s.ever_PxC[rows] |= coded_nxC
        fresh_nxC = coded_nxC & ~self.t.chronic_C & (self.s.episode_PxC[rows] == 0)
        self.s.episode_PxC[rows] += fresh_nxC

    def _tests(self, rows: np.ndarray) -> None:
        sub = self.s.take(rows)
        ordered_nxL = self.draws.events(rows, rules.lab_orders(sub, self.t))
        z_nxL = rules.lab_means(sub, self.t) + laboratory.NOISE * self.draws.normal(rows, len(_LAB_CODES))
        which, columns = np.nonzero(ordered_nxL)
        self._emit(rows[which], _LAB_CODES[columns], rules.lab_values(z_nxL)[which, columns])

    def _treatments(self, rows: np.ndarray) -> None:
        sub = self.s.take(rows)
        given_nxR = self.draws.events(rows, rules.drugs(sub, self.t))
        self._emit_where(rows, given_nxR, _DRUG_CODES)
        self.s.on_PxR[rows] |= given_nxR & self.t.lasting_R
        self._emit_where(rows, self.draws.events(rows, rules.procedures(sub, self.t)), _PROCEDURE_CODES)

    def _close(self, rows: np.ndarray, codes: np.ndarray, after: int) -> None:
        self._emit(rows, codes)
        self.s.after_P[rows] = after

    def _office(self, rows: np.ndarray, kind: np.ndarray) -> None:
        """An outpatient or telehealth encounter."""
        if not len(rows):
            return
        self._open(rows, kind, _START_CODES[kind])
        self._department(rows, self.draws.choice(rows, rules.office_departments(self.s.take(rows), self.t)))
        self._complaint(rows)
        self._diagnoses(rows)
        self._tests(rows)
        self._treatments(rows)
        rows = self._step(rows, "office end")
        self._close(rows, _END_OFFICE_CODES[self.s.type_P[rows]], encounters.AFTER_OFFICE)

    def _emergency(self, rows: np.ndarray) -> None:
        """An emergency encounter and the stays that follow it directly."""
        if not len(rows):
            return
        self._open(rows, np.full(len(rows), EMERGENCY), _START_CODES[[EMERGENCY]])
        self._department(rows, np.full(len(rows), DEPARTMENT["EMERGENCY_MEDICINE"]))
        self._complaint(rows)
        rows = self._step(rows, "emergency tests")
        self._tests(rows)
        rows = self._step(rows, "emergency treatment")
        self._diagnoses(rows)
        self._treatments(rows)
        rows = self._step(rows, "emergency end")
        if not len(rows):
            return
        disposition = self.draws.choice(rows, rules.emergency_ends(self.s.take(rows), self.t))
        self._close(rows, _END_CODES[EMERGENCY][disposition], encounters.AFTER_EMERGENCY)
        self._die(rows[disposition == 2])
        admitted = self._step(rows[disposition == 1], "transfer")
        if not len(admitted):
            return
        intensive = self.draws.events(admitted, rules.intensive_care(self.s.take(admitted), self.t)[:, None])[:, 0]
        moved = self._stay(admitted[intensive], ICU, np.broadcast_to(_START_CODES[ICU], intensive.sum()))
        moved = self._step(moved, "transfer")
        codes = np.where(np.isin(admitted, moved), _TRANSFER, _EMERGENT)
        onward = ~intensive | np.isin(admitted, moved)
        self._stay(admitted[onward], INPATIENT, codes[onward])

    def _stay(self, rows: np.ndarray, kind: int, start_codes: np.ndarray) -> np.ndarray:
        """A hospital stay, instant by instant; returns the rows that leave intensive care alive."""
        if not len(rows):
            return rows
        everyone = rows
        self._open(rows, np.full(len(rows), kind), start_codes)
        if kind == ICU:
            self._department(rows, np.full(len(rows), DEPARTMENT["CRITICAL_CARE"]))
        else:
            self._department(rows, self.draws.choice(rows, rules.stay_departments(self.s.take(rows), self.t)))
        self._diagnoses(rows)
        self._tests(rows)
        self._treatments(rows)
        while len(rows):
            go_on = self.draws.events(rows, rules.stay_goes_on(self.s.take(rows), self.t)[:, None])[:, 0]
            rows = self._step(rows[go_on], "intensive day" if kind == ICU else "ward day")
            self.s.day_P[rows] += 1
            self._recover(rows)
            self._tests(rows)
            self._treatments(rows)
        leaving = self._step(everyone[self.alive_P[everyone]], "stay end")
        return self._leave(leaving, kind)

    def _recover(self, rows: np.ndarray) -> None:
        # The fourth instant on, an acute condition no longer fades: powers of 3/4 up to here sum exactly.
        fading_nx1 = (self.s.day_P[rows] <= 4)[:, None]
        self.s.episode_PxC[rows] *= np.where(fading_nx1, laboratory.RECOVERY, 1.0)

    def _leave(self, rows: np.ndarray, kind: int) -> np.ndarray:
        if not len(rows):
            return rows
        disposition = self.draws.choice(rows, rules.stay_ends(self.s.take(rows), self.t))
        self._close(rows, _END_CODES[kind][disposition], encounters.AFTER_STAY)
        died = disposition == (1 if kind == ICU else _WARD_DIED)
        if kind == INPATIENT:
            self.s.hospice_P[rows] = disposition == _HOSPICE
            self.s.stays_P[rows] = np.minimum(self.s.stays_P[rows] + 1, 3)
        self._die(rows[died])
        return rows[~died]

    def _events(self) -> Events:
        row, time, code, value = (np.concatenate(column) for column in zip(*self.columns, strict=True))
        order = np.lexsort((code, time, row))
        return Events(
            self.subject_ids_P[row[order]],
            time[order],
            code[order],
            value[order],
            self.subject_ids_P,
            self.s.phenotype_P,
        )
