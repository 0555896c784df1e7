"""The static prefix: sex, race, age bucket and calendar-period bucket, and where in a timeline they change.

A prefix says what is known at its instant, and nothing that is told later. Sex and race are UNKNOWN up to the first row
that tells them, and stay what that row says; a row without time tells them from the beginning.
"""

import dataclasses

import numpy as np

from data_pipeline.columns import BIRTH, NO_TIME, RACE, SEX, Columns, changes
from data_pipeline.vocabulary import PREFIX_LENGTH, PREFIX_SYSTEMS, Vocabulary

AGE_BUCKET_YEARS = 5
OLDEST_AGE = 100
PERIOD_BUCKET_YEARS = 5
_US_PER_YEAR = int(365.25 * 86_400) * 1_000_000

AGE_TOKENS = (
    *(f"AGE//{age}-{age + AGE_BUCKET_YEARS - 1}" for age in range(0, OLDEST_AGE, AGE_BUCKET_YEARS)),
    f"AGE//{OLDEST_AGE}+",
)


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Prefix rows of S subjects, G in all: a subject's first row, and one more at each change.

    Attributes:
        offsets_S1: subject s owns rows [offsets[s], offsets[s + 1]).
        subject: [G] the subject.
        event: [G] the timeline's instant at which the row begins to hold; -1 for a subject without events.
        tokens: uint16 [G, PREFIX_LENGTH].
    """

    offsets_S1: np.ndarray
    subject: np.ndarray
    event: np.ndarray
    tokens: np.ndarray


def prefixes(columns: Columns, subject_n: np.ndarray, time_n: np.ndarray, vocabulary: Vocabulary) -> Prefixes:
    """Prefix rows of every subject, given the subject and time (microseconds) of each instant of its timeline."""
    num_subjects = len(columns.subject_ids_S)
    age_n = age_bucket(time_n, first_time(columns, BIRTH)[subject_n])
    period_n = period_start(time_n)
    told = [_first_told(columns, role, vocabulary) for role in (SEX, RACE)]
    known_n = [time_n >= time_S[subject_n] for _, time_S in told]
    event = np.flatnonzero(np.logical_or.reduce([changes(x) for x in (subject_n, age_n, period_n, *known_n)]))
    subject = subject_n[event]
    empty = np.setdiff1d(np.arange(num_subjects), subject)
    order = np.argsort(np.concatenate((subject, empty)), kind="stable")
    subject = np.concatenate((subject, empty))[order]
    event = np.concatenate((event, np.full(len(empty), -1)))[order]

    tokens = np.empty((len(subject), PREFIX_LENGTH), np.uint16)
    unknown = [vocabulary.ids[f"{system}//UNKNOWN"] for system in PREFIX_SYSTEMS]
    # Index -1 is the last entry of each table: what holds for a subject without events.
    for place, ((token_S, _), is_known_n) in enumerate(zip(told, known_n, strict=True)):
        tokens[:, place] = np.where(np.append(is_known_n, True)[event], token_S[subject], unknown[place])
    age_ids = np.array([*(vocabulary.ids[text] for text in AGE_TOKENS), unknown[2]])
    tokens[:, 2] = age_ids[np.where(event >= 0, np.append(age_n, -1)[event], -1)]
    starts, inverse = np.unique(np.append(period_n, 0)[event], return_inverse=True)
    period_ids = np.array([vocabulary.ids.get(period_token(int(start)), unknown[3]) for start in starts])
    tokens[:, 3] = np.where(event >= 0, period_ids[inverse], unknown[3])
    return Prefixes(np.searchsorted(subject, np.arange(num_subjects + 1)), subject, event, tokens)


def later(prefix: np.ndarray, time_us: int, birth_us: int, vocabulary: Vocabulary) -> np.ndarray:
    """A prefix (uint16 [PREFIX_LENGTH]) with the age and calendar period of a later time; the birth may be NO_TIME."""
    moved = prefix.copy()
    bucket = int(age_bucket(np.array([time_us]), np.array([birth_us]))[0])
    moved[2] = vocabulary.ids[AGE_TOKENS[bucket] if bucket >= 0 else f"{PREFIX_SYSTEMS[2]}//UNKNOWN"]
    period = period_token(int(period_start(np.array([time_us]))[0]))
    moved[3] = vocabulary.ids.get(period, vocabulary.ids[f"{PREFIX_SYSTEMS[3]}//UNKNOWN"])
    return moved


def age_bucket(time_us: np.ndarray, birth_us: np.ndarray) -> np.ndarray:
    """Index into AGE_TOKENS of the age at a time; -1 where the birth is not known or lies after the time."""
    known = (birth_us != NO_TIME) & (time_us >= birth_us)
    years = age_years(time_us, np.where(known, birth_us, time_us))
    return np.where(known, np.minimum(years // AGE_BUCKET_YEARS, OLDEST_AGE // AGE_BUCKET_YEARS), -1)


def age_years(time_us: np.ndarray, birth_us: np.ndarray) -> np.ndarray:
    """Whole years of 365.25 days from birth to a time."""
    return (time_us - birth_us) // _US_PER_YEAR


def birthday(birth_us: np.ndarray, years: int) -> np.ndarray:
    """When the age is `years` (`age_years`)."""
    return birth_us + years * _US_PER_YEAR


def period_start(time_us: np.ndarray) -> np.ndarray:
    """First calendar year of the five-year period that holds a time."""
    if not len(time_us):
        return np.zeros(0, np.int64)
    # Calendar arithmetic on the first and last time only; the others are looked up among the periods between them.
    ends = np.array([time_us.min(), time_us.max()]).astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64)
    first, last = (ends + 1970) // PERIOD_BUCKET_YEARS * PERIOD_BUCKET_YEARS
    starts = np.arange(first, last + 1, PERIOD_BUCKET_YEARS)
    bounds_us = (starts - 1970).astype("datetime64[Y]").astype("datetime64[us]").astype(np.int64)
    return starts[np.searchsorted(bounds_us, time_us, side="right") - 1]


def period_token(start: int) -> str:
    """Token text of a period that begins with year `start`."""
    return f"PERIOD//{start}-{start + PERIOD_BUCKET_YEARS - 1}"


def first_time(columns: Columns, role: str) -> np.ndarray:
    """[S] time of each subject's first dated row with a role; NO_TIME where there is none."""
    rows = np.flatnonzero(columns.has_role(role) & (columns.time_E != NO_TIME))[::-1]
    times_S = np.full(len(columns.subject_ids_S), NO_TIME, np.int64)
    # Of several writes to one place the last one stays: with the rows reversed, the earliest.
    times_S[columns.subject_E[rows]] = columns.time_E[rows]
    return times_S


def _first_told(columns: Columns, role: str, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """[S] sex or race token of each subject's first row that tells it, and that row's time (NO_TIME: it has none).

    Of several at one time the first by code, so that the order of rows does not matter.
    """
    unknown = vocabulary.ids[f"{role.upper()}//UNKNOWN"]
    rows = np.flatnonzero(columns.has_role(role))
    # Of several writes to one place the last one stays: with the rows reversed, the first.
    rows = rows[np.lexsort((columns.code_E[rows], columns.time_E[rows]))[::-1]]
    # Few codes say who a subject is: only theirs are looked up.
    codes, code_r = np.unique(columns.code_E[rows], return_inverse=True)
    tokens = [vocabulary.ids.get(columns.concepts[code].parts[0], unknown) for code in codes.tolist()]
    token_S = np.full(len(columns.subject_ids_S), unknown, np.int64)
    time_S = np.full(len(columns.subject_ids_S), NO_TIME, np.int64)
    token_S[columns.subject_E[rows]] = np.array(tokens, np.int64)[code_r]
    time_S[columns.subject_E[rows]] = columns.time_E[rows]
    return token_S, time_S
