"""What the world's next step depends on: all of it but the phenotype can be told from the tokens so far."""

import dataclasses
from typing import Any

import numpy as np

from data_pipeline.world import catalogue, instants

MINUTES_PER_MONTH = 43_830  # a twelfth of 365.25 days
NEVER = np.int32(-1)


@dataclasses.dataclass
class State:
    """P rows (subjects, or what a subject may be), C conditions, R drugs.

    Time is the tokens' clock: minutes since the first event, each interval token counted as rules.CLOCK_MINUTES.

    Attributes:
        female_P, phenotype_P, start_age_P: who it is; the age in years at the first event, as the middle of its bucket.
        instant_P: the instant that was last (instants.*), or is under way; instants.OVER once nothing can follow.
        clock_P: minutes by the clock; gap_P: minutes between the last encounter and this one; gap_bin_P: which of
            encounters.GAP_BINS that was, -1 where no gap but a transfer led here.
        ever_PxC: conditions coded so far; since_PxC: clock minutes when first coded (NEVER before).
        coded_PxC: conditions coded in this encounter.
        episode_PxC: acute ones of this encounter and of those that it directly follows, 1 when coded and fading within
            a stay.
        on_PxR: lasting drugs given so far.
        type_P, department_P, complaint_P, end_P: of the encounter that is open or was last.
        after_P: what the last encounter was (encounters.AFTER_*).
        hospice_P, elective_P: discharged to hospice; the stay is an elective one.
        stays_P: hospital stays so far, up to 3; first_P: this is the first encounter; day_P: instants so far in this
            stay.
    """

    female_P: np.ndarray
    phenotype_P: np.ndarray
    start_age_P: np.ndarray
    instant_P: np.ndarray
    clock_P: np.ndarray
    gap_P: np.ndarray
    gap_bin_P: np.ndarray
    ever_PxC: np.ndarray
    since_PxC: np.ndarray
    coded_PxC: np.ndarray
    episode_PxC: np.ndarray
    on_PxR: np.ndarray
    type_P: np.ndarray
    department_P: np.ndarray
    complaint_P: np.ndarray
    end_P: np.ndarray
    after_P: np.ndarray
    hospice_P: np.ndarray
    elective_P: np.ndarray
    stays_P: np.ndarray
    first_P: np.ndarray
    day_P: np.ndarray

    def __len__(self) -> int:
        return len(self.female_P)

    def at(self, rows_n: np.ndarray) -> "StateRows":
        """These rows, each column copied when it is asked for."""
        return StateRows(self, rows_n)

    def take(self, rows_n: np.ndarray) -> "State":
        """A copy of these rows; a row may be taken several times."""
        return State(**{field.name: getattr(self, field.name)[rows_n] for field in dataclasses.fields(self)})

    def append_copies(self, rows_n: np.ndarray) -> None:
        """Copies of these rows, after all others."""
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            setattr(self, field.name, np.concatenate((column, column[rows_n])))

    def row_bytes(self, rows_n: np.ndarray) -> np.ndarray:
        """uint8 [n, bytes]: equal for rows that nothing tells apart."""
        columns = [np.ascontiguousarray(getattr(self, field.name)[rows_n]) for field in dataclasses.fields(self)]
        return np.concatenate([column.view(np.uint8).reshape(len(rows_n), -1) for column in columns], axis=1)


class StateRows:
    """Some rows of a State: n of them, under the State's own names."""

    def __init__(self, state: State, rows_n: np.ndarray) -> None:
        self._state, self._rows_n = state, rows_n

    def __len__(self) -> int:
        return len(self._rows_n)

    def __getattr__(self, name: str) -> Any:
        column = getattr(self._state, name)[self._rows_n]
        setattr(self, name, column)
        return column

    def rows(self, rows_m: np.ndarray) -> "StateRows":
        """Some of these rows."""
        return StateRows(self._state, self._rows_n[rows_m])

    @property
    def age_n(self) -> np.ndarray:
        """Age in years by the clock."""
        return self.start_age_P + self.clock_P / (12 * MINUTES_PER_MONTH)

    @property
    def known_nxC(self) -> np.ndarray:
        """Years since each condition was first coded, 0 where it was not: in quarters, so that sums are exact."""
        quarters = np.floor((self.clock_P[:, None] - self.since_PxC) / (3 * MINUTES_PER_MONTH)) / 4
        return np.where(self.ever_PxC, quarters, 0.0)


def initial_state(female_P: np.ndarray, phenotype_P: np.ndarray, start_age_P: np.ndarray) -> State:
    """The state before the first encounter: nothing is known but demographics."""
    size = len(female_P)
    shape_PxC = (size, len(catalogue.CONDITIONS))

    def whole(value: int) -> np.ndarray:
        return np.full(size, value, np.int64)

    def flags(value: bool) -> np.ndarray:
        return np.full(size, value)

    return State(
        female_P=female_P,
        phenotype_P=phenotype_P,
        start_age_P=start_age_P,
        instant_P=whole(instants.BEGIN),
        clock_P=whole(0),
        gap_P=whole(0),
        gap_bin_P=whole(-1),
        ever_PxC=np.zeros(shape_PxC, bool),
        since_PxC=np.full(shape_PxC, NEVER),
        coded_PxC=np.zeros(shape_PxC, bool),
        episode_PxC=np.zeros(shape_PxC),
        on_PxR=np.zeros((size, len(catalogue.DRUGS)), bool),
        type_P=whole(0),
        department_P=whole(0),
        complaint_P=whole(-1),
        end_P=whole(-1),
        after_P=whole(0),
        hospice_P=flags(False),
        elective_P=flags(False),
        stays_P=whole(0),
        first_P=flags(True),
        day_P=whole(0),
    )
