"""MEDS events as numpy columns: the one form that counting and tokenizing both start from."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from data_pipeline.code_maps import CodeMap, Concept

NO_TIME = np.iinfo(np.int64).min
# Roles of codes that say who the subject is, rather than what happened.
SEX, RACE, BIRTH, DROP = "sex", "race", "birth", "drop"
ROLES_WITHOUT_EVENT = (SEX, RACE, BIRTH, DROP)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The events of whole subjects: E rows of S subjects over C distinct codes.

    Attributes:
        subject_ids_S: int64, in order of appearance.
        subject_E: index into subject_ids_S, rising.
        time_E: int64 microseconds since 1970, NO_TIME for static rows; rising within a subject.
        code_E: index into codes and concepts.
        value_E: float64, NaN where there is none.
        codes: the distinct MEDS codes, sorted.
        concepts: what each of them means.
    """

    subject_ids_S: np.ndarray
    subject_E: np.ndarray
    time_E: np.ndarray
    code_E: np.ndarray
    value_E: np.ndarray
    codes: Sequence[str]
    concepts: Sequence[Concept]

    def has_role(self, *roles: str) -> np.ndarray:
        """bool [E]: is the row's code one of these roles?"""
        return per_code([concept.role in roles for concept in self.concepts], bool)[self.code_E]

    def makes_event(self) -> np.ndarray:
        """bool [E]: does the row stand in the timeline (it has a time and is no birth, sex, race or dropped code)?"""
        return (self.time_E != NO_TIME) & ~self.has_role(*ROLES_WITHOUT_EVENT)


def to_columns(events: pl.DataFrame, code_map: CodeMap) -> Columns:
    """Split validated events (meds.read_shard) into columns; the map is asked once per distinct code."""
    codes = events["code"].cast(pl.String).unique().sort()
    subject_E = events["subject_id"].to_numpy()
    starts = np.flatnonzero(changes(subject_E))
    return Columns(
        subject_ids_S=subject_E[starts],
        subject_E=np.cumsum(changes(subject_E)) - 1,
        time_E=events["time"].dt.epoch("us").fill_null(NO_TIME).to_numpy(),
        code_E=events["code"].cast(pl.Enum(codes)).to_physical().to_numpy(),
        value_E=events["numeric_value"].cast(pl.Float64).fill_null(np.nan).to_numpy(),
        codes=codes.to_list(),
        concepts=code_map.map_codes(codes.to_list()),
    )


def changes(values: np.ndarray) -> np.ndarray:
    """bool: does this value differ from the one before it? True for the first."""
    changed = np.ones(len(values), bool)
    changed[1:] = values[1:] != values[:-1]
    return changed


def per_code(values: Sequence[object], dtype: type) -> np.ndarray:
    """A lookup table with one entry per code, of the right type even when there is no code at all."""
    return np.array(values, dtype).reshape(len(values))


def ancestors(concept: Concept) -> list[Concept]:
    """The concept, then its ever shorter codes: DIAGNOSIS//ICD10CM//E1165, ...E116, ...E11."""
    chain = [concept]
    while len(chain[-1].parts) > 1:
        longer = chain[-1]
        last = longer.parts[-1].split("//", 2)[2]
        chain.append(dataclasses.replace(longer, name=longer.name[: -len(last)], parts=longer.parts[:-1]))
    return chain
