"""MEDS events as numpy columns: the one form that counting and tokenizing both start from."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from data_pipeline import text_values
from data_pipeline.code_maps import ROLES, ROLES_WITHOUT_EVENT, CodeMap, Concept

NO_TIME = np.iinfo(np.int64).min
# Roles of codes that say who the subject is, rather than what happened.
SEX, RACE, BIRTH, DROP = "sex", "race", "birth", "drop"
DEATH, OBSERVATION_END = "death", "observation_end"
_ROLE_NUMBERS = {role: number for number, role in enumerate(ROLES)}


@dataclasses.dataclass(frozen=True)
class Columns:
    """The events of whole subjects: E rows of S subjects over C distinct codes.

    Attributes:
        subject_ids_S: int64, in order of appearance.
        subject_E: index into subject_ids_S, rising.
        time_E: int64 microseconds since 1970, NO_TIME for static rows; rising within a subject.
        code_E: index into codes and concepts.
        value_E: float32, NaN where there is none.
        codes: the distinct MEDS codes, sorted; some may have no row.
        concepts: what each of them means.
        role_C: their roles, as indices into code_maps.ROLES.
        text_E: index into texts, -1 where the row has a number or no text; None if texts were not read.
        texts: the distinct texts, normalised and sorted; those too long to be a result are one.
    """

    subject_ids_S: np.ndarray
    subject_E: np.ndarray
    time_E: np.ndarray
    code_E: np.ndarray
    value_E: np.ndarray
    codes: Sequence[str]
    concepts: Sequence[Concept]
    role_C: np.ndarray
    text_E: np.ndarray | None = None
    texts: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.subject_E)

    def has_role(self, *roles: str) -> np.ndarray:
        """bool [E]: is the row's code one of these roles?"""
        return np.isin(self.role_C, [ROLES.index(role) for role in roles])[self.code_E]

    def makes_event(self) -> np.ndarray:
        """bool [E]: does the row stand in the timeline (it has a time, and a role that makes events)?"""
        return (self.time_E != NO_TIME) & ~self.has_role(*ROLES_WITHOUT_EVENT)

    def of_subjects(self, chosen_S: np.ndarray) -> "Columns":
        """The rows of the subjects where `chosen_S` (bool) says so; codes keep their numbers."""
        if chosen_S.all():
            return self
        number_S = np.cumsum(chosen_S) - 1
        rows = self.rows(chosen_S[self.subject_E])
        return dataclasses.replace(
            rows,
            subject_ids_S=self.subject_ids_S[chosen_S],
            subject_E=number_S[rows.subject_E],
        )

    def rows(self, chosen_E: np.ndarray) -> "Columns":
        """The rows that a mask or rising indices choose; subjects and codes keep their numbers."""
        return dataclasses.replace(
            self,
            subject_E=self.subject_E[chosen_E],
            time_E=self.time_E[chosen_E],
            code_E=self.code_E[chosen_E],
            value_E=self.value_E[chosen_E],
            text_E=None if self.text_E is None else self.text_E[chosen_E],
        )


def to_columns(events: pl.DataFrame, code_map: CodeMap) -> Columns:
    """Split validated events (meds.read_shard) into columns; the map is asked once per distinct code.

    Texts are looked at only if the events have a column of them (read_shard's text_values).
    """
    subjects = events["subject_id"].to_numpy()
    starts = np.flatnonzero(changes(subjects))
    codes, code_E = _number_codes(events["code"])
    concepts = code_map.map_codes(codes)
    texts, text_E = _number_texts(events) if "text_value" in events.columns else ([], None)
    return Columns(
        subject_ids_S=subjects[starts],
        subject_E=np.repeat(np.arange(len(starts)), np.diff(starts, append=len(subjects))),
        time_E=events["time"].dt.epoch("us").fill_null(NO_TIME).to_numpy(),
        code_E=code_E,
        value_E=events["numeric_value"].cast(pl.Float32).fill_null(np.nan).to_numpy(),
        codes=codes,
        concepts=concepts,
        role_C=per_code([_ROLE_NUMBERS[concept.role] for concept in concepts], np.int8),
        text_E=text_E,
        texts=texts,
    )


def changes(values: np.ndarray) -> np.ndarray:
    """bool: does this value differ from the one before it? True for the first."""
    changed = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


def per_code(values: Sequence[object], dtype: type) -> np.ndarray:
    """A lookup table with one entry per code, of the right type even when there is no code at all."""
    return np.array(values, dtype).reshape(len(values))


def _number_codes(code_E: pl.Series) -> tuple[list[str], np.ndarray]:
    """(the distinct codes, sorted; the number of each row's code among them)."""
    # Categories number the texts in one pass of hashing, in the order of their first use anywhere in the process.
    category_E = code_E.cast(pl.Categorical).to_physical().to_numpy()
    row_K = np.full(int(category_E.max(initial=0)) + 1, -1)
    row_K[category_E] = np.arange(len(category_E))
    used = np.flatnonzero(row_K >= 0)
    texts = code_E.gather(row_K[used]).cast(pl.String)
    order = texts.arg_sort().to_numpy()
    number_K = np.empty(len(row_K), np.int64)
    number_K[used[order]] = np.arange(len(used))
    return texts.gather(order).to_list(), number_K[category_E]


def _number_texts(events: pl.DataFrame) -> tuple[list[str], np.ndarray]:
    """(the distinct texts that stand in place of a number, normalised and sorted; the number of each row's)."""
    text_E = np.full(len(events), -1)
    rows = (events["text_value"].is_not_null() & events["numeric_value"].is_null()).arg_true()
    written, number_r = _number_codes(events["text_value"].gather(rows))
    texts, number_w = text_values.number_texts(written)
    text_E[rows.to_numpy()] = number_w[number_r]
    return texts, text_E
