"""Futures that the world's rules draw from a state, and what they answer: outcomes, how many, until when.

R draws   Q questions   W codes of an element
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.world import instants, rules, simulation, walk
from data_pipeline.world.draws import Draws
from data_pipeline.world.instants import OVER
from data_pipeline.world.state import State


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What some questions ask for.

    Attributes:
        of_element: for each element, bool [W, Q]: which of its codes are which question's outcome.
        closing_of_element: likewise, which codes close the window of which question; what happens at that instant is
            still in it.
        horizon_minutes_Q: the window's end, if nothing closes it before.
        is_count_Q: questions that ask how many; of the others the first outcome says all.
    """

    of_element: Sequence[np.ndarray]
    closing_of_element: Sequence[np.ndarray]
    horizon_minutes_Q: np.ndarray
    is_count_Q: np.ndarray

    def asked(self, element: int) -> bool:
        """Is any code of the element an outcome?"""
        return bool(self.of_element[element].any())

    def closes(self, element: int) -> bool:
        """Does any code of the element close a window?"""
        return bool(self.closing_of_element[element].any())


class Futures:
    """A walk.Chooser that draws what follows a history, and notes when each outcome first comes, and how many.

    Attributes:
        first_RxQ: minutes from the prediction time to the first outcome before the window was closed; inf where it has
            not come. It may be past the question's horizon.
        closed_RxQ: minutes to what closed the window; inf where nothing has.
        count_RxQ: outcomes in the window; of questions that ask how many, else 0.
    """

    def __init__(
        self, state: State, draws: Draws, elapsed_R: np.ndarray, outcomes: Outcomes, horizon_minutes: float
    ) -> None:
        self.state, self.draws = state, draws
        shape = len(state), len(outcomes.horizon_minutes_Q)
        self.first_RxQ, self.closed_RxQ = np.full((2, *shape), np.inf)
        self.count_RxQ = np.zeros(shape, np.int64)
        self._elapsed_R, self._outcomes, self._horizon = elapsed_R, outcomes, horizon_minutes
        self._clock_R = state.clock_P.copy()
        self._drift_R = np.zeros(len(state), np.int64)
        self._now_R = -elapsed_R.copy()
        self._weight_R = np.ones(len(state))
        self._answered_R = np.zeros(len(state), bool)
        self._is_first = True
        # Nothing else depends on these.
        told = [e for e in (instants.TESTS, instants.PROCEDURES) if outcomes.asked(e) or outcomes.closes(e)]
        self.skips = frozenset({instants.TESTS, instants.PROCEDURES} - set(told))

    def drift_past(self, gaps_RxM: np.ndarray) -> None:
        """Draw how far the dates of each history are from its clock, which depends on its gaps alone (-1: no more)."""
        for gap_R in gaps_RxM.T:
            rows = np.flatnonzero(gap_R >= 0)
            u_n = self.draws.uniform(rows, 1)[:, 0]
            self._drift_R[rows] = simulation.drift(self._drift_R[rows], gap_R[rows], u_n)
        self._drift_before_R = self._drift_R.copy()

    def run(self) -> np.ndarray:
        """Live on to the horizon; returns each draw's weight: how well it agrees with nothing having happened yet."""
        while (self.state.instant_P != OVER).any():
            walk.pass_instant(self.state, self)
        return self._weight_R

    def time(self, s: State, rows_n: np.ndarray, weights_nxG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw how long each row waits; those past the horizon are over."""
        if self._is_first:
            weights_nxG = self._agree(rows_n, weights_nxG)
            self._is_first = False
        left_nx1 = np.maximum(1e-300, 1 - weights_nxG.sum(axis=1, keepdims=True))
        gap_n = self.draws.choice(rows_n, np.concatenate([weights_nxG, left_nx1], axis=1))
        ended_n = gap_n >= rules.GAPS
        gap_n = np.where(ended_n, 0, gap_n)
        drift_n = self._drift_after(rows_n, gap_n)
        clock_n = s.clock_P[rows_n] + rules.CLOCK_MINUTES[gap_n] - self._clock_R[rows_n]
        now_n = clock_n + drift_n - self._drift_before_R[rows_n] - self._elapsed_R[rows_n]
        ended_n |= (now_n > self._horizon) | self._answered_R[rows_n]
        s.instant_P[rows_n[ended_n]] = OVER
        rows_n, gap_n = rows_n[~ended_n], gap_n[~ended_n]
        self._drift_R[rows_n], self._now_R[rows_n] = drift_n[~ended_n], now_n[~ended_n]
        return rows_n, gap_n

    def _agree(self, rows_n: np.ndarray, weights_nxG: np.ndarray) -> np.ndarray:
        """The first gap's weights, given that it outlasts the time since the last event; keeps each row's weight."""
        columns_G = np.arange(rules.GAPS)
        low_nxG, high_nxG = simulation.drift_bounds(self._drift_R[rows_n][:, None], columns_G)
        # Minutes drawn are whole: those that outlast are drifts from `least` on.
        least_nxG = (
            np.floor(self._elapsed_R[rows_n])[:, None] + 1 - rules.CLOCK_MINUTES + self._drift_R[rows_n][:, None]
        )
        share_nxG = np.clip((high_nxG - np.maximum(low_nxG, least_nxG)) / np.maximum(high_nxG - low_nxG, 1), 0, 1)
        agreeing_nxG = weights_nxG * share_nxG
        left_n = np.maximum(1 - weights_nxG.sum(axis=1), 0.0)
        total_n = agreeing_nxG.sum(axis=1) + left_n
        self._weight_R[rows_n] = total_n
        self._least_RxG = least_nxG
        self._least_row = {int(row): index for index, row in enumerate(rows_n)} if self._elapsed_R.any() else {}
        return np.divide(agreeing_nxG, total_n[:, None], out=np.zeros(agreeing_nxG.shape), where=total_n[:, None] > 0)

    def _drift_after(self, rows_n: np.ndarray, gap_n: np.ndarray) -> np.ndarray:
        low_n, high_n = simulation.drift_bounds(self._drift_R[rows_n], gap_n)
        if self._least_row:
            index_n = np.array([self._least_row[row] for row in rows_n.tolist()])
            low_n = np.maximum(low_n, self._least_RxG[index_n, gap_n])
            self._least_row = {}
        u_n = self.draws.uniform(rows_n, 1)[:, 0]
        return (low_n + np.floor(u_n * np.maximum(high_n - low_n, 0))).astype(np.int64)

    def one(self, s: State, element: int, rows_n: np.ndarray, weights_nxW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw one outcome for each row."""
        chosen_n = self.draws.choice(rows_n, weights_nxW)
        self._happen(rows_n, element, lambda is_meant_WxQ: is_meant_WxQ[chosen_n])
        return rows_n, chosen_n

    def some(
        self, s: State, element: int, rows_n: np.ndarray, probabilities_nxW: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw each outcome by itself."""
        happens_nxW = self.draws.events(rows_n, probabilities_nxW)
        # In float32, which holds such numbers exactly, for its product is fast and a boolean one is not.
        happens = happens_nxW.astype(np.float32)
        self._happen(rows_n, element, lambda is_meant_WxQ: happens @ is_meant_WxQ.astype(np.float32))
        return rows_n, happens_nxW

    def tests(self, s: State, rows_n: np.ndarray, probabilities_nxL: np.ndarray, means_nxL: np.ndarray) -> None:
        """Draw which tests are made; no value is asked for."""
        self.some(s, instants.TESTS, rows_n, probabilities_nxL)

    def _happen(self, rows_n: np.ndarray, element: int, number_of: Callable[[np.ndarray], np.ndarray]) -> None:
        """Note what has happened in an element; `number_of`: events of each row [n, Q] by which codes are meant."""
        if self._outcomes.closes(element):
            is_closing_nxQ = number_of(self._outcomes.closing_of_element[element]) > 0
            times_nxQ = np.where(is_closing_nxQ, self._now_R[rows_n][:, None], np.inf)
            self.closed_RxQ[rows_n] = np.minimum(self.closed_RxQ[rows_n], times_nxQ)
            self._see_who_is_answered(rows_n)
        if self._outcomes.asked(element):
            self._note(rows_n, number_of(self._outcomes.of_element[element]))

    def _note(self, rows_n: np.ndarray, number_nxQ: np.ndarray) -> None:
        """Note outcomes of the present instant: how many (or whether any) of each row."""
        now_nx1 = self._now_R[rows_n][:, None]
        # A window that this very instant has closed still holds what else happens in it.
        is_in_nxQ = (number_nxQ > 0) & (now_nx1 <= self.closed_RxQ[rows_n])
        self.first_RxQ[rows_n] = np.minimum(self.first_RxQ[rows_n], np.where(is_in_nxQ, now_nx1, np.inf))
        if self._outcomes.is_count_Q.any():
            is_counted_nxQ = is_in_nxQ & (now_nx1 <= self._outcomes.horizon_minutes_Q) & self._outcomes.is_count_Q
            self.count_RxQ[rows_n] += np.where(is_counted_nxQ, number_nxQ, 0).astype(np.int64)
        self._see_who_is_answered(rows_n)

    def _see_who_is_answered(self, rows_n: np.ndarray) -> None:
        happened_nxQ = np.isfinite(self.first_RxQ[rows_n]) & ~self._outcomes.is_count_Q
        self._answered_R[rows_n] = (happened_nxQ | np.isfinite(self.closed_RxQ[rows_n])).all(axis=1)
