"""What drawn futures answer, by hand: windows that an event closes, counts, durations."""

import numpy as np
import pytest

from data_pipeline.world import catalogue, futures, instants, risks
from data_pipeline.world.draws import Draws
from data_pipeline.world.state import initial_state

DRUGS, END = instants.DRUGS, instants.END
CODES = [len(codes) for codes in catalogue.ELEMENT_CODES]


def table(element: int, codes_of_question: list[list[int]]) -> list[np.ndarray]:
    tables = [np.zeros((size, len(codes_of_question)), bool) for size in CODES]
    for question, codes in enumerate(codes_of_question):
        tables[element][codes, question] = True
    return tables


def lived(outcomes: futures.Outcomes, days: list[tuple[float, dict[int, list[int]]]]) -> futures.Futures:
    """One draw to which these instants happen: (minutes from the prediction time, element -> codes)."""
    one = np.zeros(1)
    drawn = futures.Futures(initial_state(one > 0, one.astype(int), one + 50), Draws(0, one), one, outcomes, 1e9)
    rows = np.zeros(1, np.int64)
    for minutes, happening in days:
        drawn._now_R[:] = minutes
        for element, codes in happening.items():
            certain_1xW = np.zeros((1, CODES[element]))
            certain_1xW[0, codes] = 1
            (drawn.one if element == END else drawn.some)(drawn.state, element, rows, certain_1xW)
    return drawn


@pytest.fixture
def outcomes() -> futures.Outcomes:
    """Drugs 3 and 4 until an end 0, as an event, a number, and an event that nothing but the horizon closes."""
    closing = table(END, [[0], [0], []])
    return futures.Outcomes(
        table(DRUGS, [[3, 4]] * 3), closing, np.array([100.0, 100.0, 100.0]), np.array([0, 1, 0]) > 0
    )


def test_what_comes_after_the_window_was_closed_is_not_in_it(outcomes) -> None:
    drawn = lived(outcomes, [(10, {DRUGS: [7]}), (20, {END: [0]}), (30, {DRUGS: [3, 4]})])
    assert drawn.first_RxQ.tolist() == [[np.inf, np.inf, 30.0]] and drawn.count_RxQ.tolist() == [[0, 0, 0]]
    assert drawn.closed_RxQ.tolist() == [[20.0, 20.0, np.inf]]
    assert drawn._answered_R.all()  # the third has happened, the others can no longer


def test_what_comes_at_the_instant_that_closes_the_window_is_in_it(outcomes) -> None:
    drawn = lived(outcomes, [(20, {END: [0], DRUGS: [3, 4]}), (21, {DRUGS: [3]})])
    assert drawn.first_RxQ.tolist() == [[20.0, 20.0, 20.0]] and drawn.count_RxQ.tolist() == [[0, 2, 0]]


def test_a_count_is_of_every_outcome_up_to_the_horizon_and_another_end_closes_nothing(outcomes) -> None:
    drawn = lived(outcomes, [(5, {DRUGS: [3, 4, 9]}), (50, {END: [1]}), (100, {DRUGS: [4]}), (101, {DRUGS: [3]})])
    assert drawn.count_RxQ.tolist() == [[0, 3, 0]] and drawn.first_RxQ[0].tolist() == [5.0, 5.0, 5.0]
    assert not drawn._answered_R.any()  # the number may still grow


def test_answers_are_the_best_predictions_by_weighted_draws(outcomes) -> None:
    drawn = lived(outcomes, [])
    drawn.first_RxQ, drawn.closed_RxQ = np.full((2, 4, 1), np.inf)
    drawn.first_RxQ[:, 0] = 1440 * np.array([1, 2, np.inf, np.inf])
    drawn.closed_RxQ[3] = 1440 * 3
    drawn.count_RxQ = np.array([[0], [1], [3], [7]])
    weight_R, place_R = np.array([1.0, 1.0, 1.0, 0.0]), np.zeros(4, int)

    def answer(kind: str, weights: np.ndarray = weight_R) -> float:
        return float(risks._answers(drawn, 0, risks.Question("x", 9.0, kind=kind), weights, place_R, 1)[0])

    assert answer("binary") == pytest.approx(2 / 3)
    assert answer("count") == pytest.approx(8 ** (1 / 3) - 1)  # the geometric mean of 1, 2 and 4, less 1
    assert answer("duration") == 2.0  # of 1, 2 and the horizon
    assert answer("duration", np.array([1.0, 1.0, 0.5, 2.0])) == 3.0  # of 1, 2, the close at 3 and the horizon
    assert np.isnan(answer("duration", np.zeros(4)))


def test_weighted_medians_are_of_each_place_alone() -> None:
    value_R, weight_R = np.array([5.0, 1.0, 3.0, 9.0, 8.0]), np.array([1.0, 1.0, 1.0, 1.0, 3.0])
    found = risks.weighted_medians(value_R, weight_R, np.array([0, 0, 0, 2, 2]), 3)
    assert found[0] == 3.0 and np.isnan(found[1]) and found[2] == 8.0
