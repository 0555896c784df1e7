"""The cohort: which events and which subjects a corpus is made of, each choice off unless the configuration sets it.

Events are chosen first, one by one: by the subject's age, then by the date. Then subjects: by face-to-face encounters
among the events that are left, and by whether any is left. What says who a subject is (sex, race, birth) stays as long
as the subject does. The choice is a function of one subject's rows, so every pass over a shard makes the same one.

A prompt is never filtered: a cohort says what a model learns from, not what it may be asked. The rows of a label file
were chosen by the user, and a period or an age bound would empty the prompts of exactly the new data.
"""

import dataclasses
import functools
import re

import numpy as np

from data_pipeline import static_prefix
from data_pipeline.columns import BIRTH, NO_TIME, Columns
from data_pipeline.errors import UserError
from data_pipeline.follow_up import US_PER_DAY, end_of_day


@dataclasses.dataclass(frozen=True)
class Cohort:
    """What events and subjects must be like; None asks for nothing, and neither does a min_encounters of 0.

    Attributes:
        min_age, max_age: whole years of age at an event, both included; events at an unknown age are left out.
        first_date, last_date: of an event, both included, as YYYY-MM-DD.
        min_encounters: how many face-to-face encounters a subject must have ...
        within_days: ... within this many days. Encounters that start on one calendar day count once, so that an
            emergency visit and the admission that follows it are not two.
        face_to_face: regular expression that the concept of an encounter's start matches in full.

    Raises:
        UserError: a value makes no sense.
    """

    min_age: int | None = None
    max_age: int | None = None
    first_date: str | None = None
    last_date: str | None = None
    min_encounters: int = 0
    within_days: int = 730
    face_to_face: str = ".*"

    def __post_init__(self) -> None:
        for low, high in (("min_age", "max_age"), ("first_date", "last_date")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise UserError(f"{least} is beyond {high}, which is {most}", where=f"config.cohort.{low}")
        for name in ("min_age", "max_age", "min_encounters", "within_days"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{getattr(self, name)} is below 0", where=f"config.cohort.{name}")
        _ = self._period_us
        try:
            re.compile(self.face_to_face)
        except re.error as error:
            raise UserError(f"not a regular expression ({error})", where="config.cohort.face_to_face") from error

    @property
    def is_everyone(self) -> bool:
        """Does it ask for nothing?"""
        bounds = (self.min_age, self.max_age, self.first_date, self.last_date)
        return all(bound is None for bound in bounds) and not self.min_encounters

    @functools.cached_property
    def _period_us(self) -> tuple[int, int]:
        """[first, last) microsecond since 1970."""
        first = end_of_day(self.first_date, "config.cohort.first_date") - US_PER_DAY if self.first_date else NO_TIME + 1
        last = end_of_day(self.last_date, "config.cohort.last_date") if self.last_date else np.iinfo(np.int64).max
        return first, last

    def latest_us(self, columns: Columns) -> np.ndarray:
        """int64 [S] microseconds from which on a subject's events are left out, by date or by age."""
        latest_S = np.full(len(columns.subject_ids_S), self._period_us[1])
        if self.max_age is None:
            return latest_S
        birth_S = static_prefix.first_time(columns, BIRTH)
        return np.where(
            birth_S == NO_TIME, latest_S, np.minimum(latest_S, static_prefix.birthday(birth_S, self.max_age + 1))
        )


@dataclasses.dataclass(frozen=True)
class Selection:
    """The rows that a cohort is made of, and how many rows and subjects were left out, each for one reason.

    A row by the first filter that takes it. A subject of whom no event is left by the filter that took the last one:
    "age_unknown", "age" or "period", in this order, or "no_event" where there was none to take; any other by
    "too_few_encounters". Both mappings are empty for the cohort that asks for nothing.
    """

    columns: Columns
    rows_left_out: dict[str, int]
    subjects_left_out: dict[str, int]


def select(columns: Columns, cohort: Cohort) -> Selection:
    """The cohort's part of some whole subjects."""
    if cohort.is_everyone:
        return Selection(columns, {}, {})
    made_E = columns.makes_event()
    left_out = _events_left_out(columns, cohort, made_E)
    stays_E = ~np.logical_or.reduce(list(left_out.values()))
    emptied = _subjects_emptied(columns, made_E, left_out)
    empty_S = np.logical_or.reduce(list(emptied.values()))
    seldom_S = ~empty_S & ~_seen_often(columns, cohort, made_E & stays_E)
    gone_S = empty_S | seldom_S
    rows_left_out = {reason: int(rows_E.sum()) for reason, rows_E in left_out.items()}
    rows_left_out["filtered_subject"] = int((stays_E & gone_S[columns.subject_E]).sum())
    return Selection(
        columns.rows(stays_E).of_subjects(~gone_S),
        rows_left_out,
        {reason: int(gone_S.sum()) for reason, gone_S in {**emptied, "too_few_encounters": seldom_S}.items()},
    )


def _subjects_emptied(columns: Columns, made_E: np.ndarray, left_out: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """bool [S] by reason, no subject under two: those without an event, and those whose last one a filter took."""

    def has_event(rows_E: np.ndarray) -> np.ndarray:
        return np.bincount(columns.subject_E[rows_E], minlength=len(columns.subject_ids_S)) > 0

    left_E, had_S = made_E, has_event(made_E)
    emptied = {"no_event": ~had_S}
    for reason, rows_E in left_out.items():
        left_E = left_E & ~rows_E
        has_S = has_event(left_E)
        emptied[reason.removeprefix("filtered_")] = had_S & ~has_S
        had_S = has_S
    return emptied


def _events_left_out(columns: Columns, cohort: Cohort, made_E: np.ndarray) -> dict[str, np.ndarray]:
    """bool [E] by reason, no row under two of them."""
    birth_S = static_prefix.first_time(columns, BIRTH)
    birth_E = birth_S[columns.subject_E]
    asks_age = cohort.min_age is not None or cohort.max_age is not None
    ageless_E = made_E & (birth_E == NO_TIME) & asks_age
    wrong_age_E = np.zeros(len(columns), bool)
    if asks_age:
        years_E = static_prefix.age_years(columns.time_E, np.where(ageless_E | ~made_E, columns.time_E, birth_E))
        least, most = cohort.min_age or 0, cohort.max_age if cohort.max_age is not None else np.inf
        wrong_age_E = made_E & ~ageless_E & ((years_E < least) | (years_E > most))
    first_us, last_us = cohort._period_us
    outside_E = made_E & ((columns.time_E < first_us) | (columns.time_E >= last_us)) & ~ageless_E & ~wrong_age_E
    return {"filtered_age_unknown": ageless_E, "filtered_age": wrong_age_E, "filtered_period": outside_E}


def _seen_often(columns: Columns, cohort: Cohort, stays_E: np.ndarray) -> np.ndarray:
    """bool [S]: has the subject enough face-to-face encounters close enough to each other?"""
    if not cohort.min_encounters:
        return np.ones(len(columns.subject_ids_S), bool)
    pattern = re.compile(cohort.face_to_face)
    counts_C = np.array([bool(pattern.fullmatch(concept.name)) for concept in columns.concepts], bool)
    rows = np.flatnonzero(stays_E & counts_C[columns.code_E]) if len(counts_C) else np.zeros(0, np.int64)
    days = np.unique(np.column_stack((columns.subject_E[rows], columns.time_E[rows] // US_PER_DAY)), axis=0)
    # The n-th encounter after each: of the same subject, and soon enough?
    last = days[cohort.min_encounters - 1 :]
    first = days[: len(last)]
    close = (first[:, 0] == last[:, 0]) & (last[:, 1] - first[:, 1] <= cohort.within_days)
    often_S = np.zeros(len(columns.subject_ids_S), bool)
    often_S[first[close, 0]] = True
    return often_S
