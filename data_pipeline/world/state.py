"""What the world's next step depends on: all of it but the phenotype can be told from the tokens so far."""

import dataclasses

import numpy as np

from data_pipeline.world import catalogue


@dataclasses.dataclass
class State:
    """P subjects, C conditions, R drugs. Time is the tokens' clock: the sum of the mean durations of interval tokens.

    ever_PxC: conditions coded so far; coded_PxC: in this encounter; episode_PxC: acute ones of this encounter and of
    those that it directly follows, 1 when coded and fading within a stay. on_PxR: lasting drugs given so far.
    gap_months_P: clock between the last encounter and this one; after_P: what the last one was (encounters.AFTER_*);
    stays_P: hospital stays so far, up to 3; first_P: this is the first encounter; day_P: instants so far in this stay.
    """

    female_P: np.ndarray
    phenotype_P: np.ndarray
    start_age_P: np.ndarray
    months_P: np.ndarray
    gap_months_P: np.ndarray
    ever_PxC: np.ndarray
    on_PxR: np.ndarray
    episode_PxC: np.ndarray
    coded_PxC: np.ndarray
    type_P: np.ndarray
    department_P: np.ndarray
    complaint_P: np.ndarray
    after_P: np.ndarray
    hospice_P: np.ndarray
    elective_P: np.ndarray
    stays_P: np.ndarray
    first_P: np.ndarray
    day_P: np.ndarray

    @property
    def age_P(self) -> np.ndarray:
        """Age in years by the clock."""
        return self.start_age_P + self.months_P / 12

    def take(self, rows_n: np.ndarray) -> "State":
        """A copy of the rows."""
        return State(**{field.name: getattr(self, field.name)[rows_n] for field in dataclasses.fields(self)})


def initial_state(female_P: np.ndarray, phenotype_P: np.ndarray, start_age_P: np.ndarray) -> State:
    """The state before the first encounter: nothing is known but demographics."""
    size = len(female_P)
    conditions, drugs = len(catalogue.CONDITIONS), len(catalogue.DRUGS)
    return State(
        female_P=female_P,
        phenotype_P=phenotype_P,
        start_age_P=start_age_P,
        months_P=np.zeros(size),
        gap_months_P=np.zeros(size),
        ever_PxC=np.zeros((size, conditions), bool),
        on_PxR=np.zeros((size, drugs), bool),
        episode_PxC=np.zeros((size, conditions)),
        coded_PxC=np.zeros((size, conditions), bool),
        type_P=np.zeros(size, np.int64),
        department_P=np.zeros(size, np.int64),
        complaint_P=np.full(size, -1),
        after_P=np.zeros(size, np.int64),
        hospice_P=np.zeros(size, bool),
        elective_P=np.zeros(size, bool),
        stays_P=np.zeros(size, np.int64),
        first_P=np.ones(size, bool),
        day_P=np.zeros(size, np.int64),
    )
