"""The pilot finds the learning rate's law and the grid's centre that its runs were made with."""

import numpy as np
import pytest

from data_pipeline.errors import UserError
from experiments.scaling.calibration import Timing, calibrate
from experiments.scaling.pilot import PilotRun, analyse
from experiments.scaling.recipe import LearningRate
from tests.experiments.scaling.made_up_study import TRUE

RATES = (4e-3, 1e-2, 2.5e-2)
LAW = LearningRate(0.5, -0.2, -0.15)


def runs(law=LAW, rates=RATES, curvature=0.05, noise=0.0) -> list[PilotRun]:
    random = np.random.default_rng(0)
    made = []
    for c in (1e11, 4e11):
        for n in TRUE.optimum(np.array(c))[0] * np.array([0.4, 1.0, 2.5]):
            d = c / (6 * n)
            for rate in rates:
                loss = TRUE.loss(n, d) * np.exp(curvature * np.log(rate / law(n, d)) ** 2 + noise * random.normal())
                made.append(PilotRun(c, float(n), float(d), rate, float(loss)))
    return made


def test_the_law_of_the_learning_rate_is_recovered() -> None:
    found = analyse(runs(), by_width=True, by_tokens=True, center_exponent=0.5)
    assert found.learning_rate.n_exponent == pytest.approx(-0.2, abs=1e-6)
    assert found.learning_rate.d_exponent == pytest.approx(-0.15, abs=1e-6)
    assert found.learning_rate(1e4, 1e6) == pytest.approx(LAW(1e4, 1e6), rel=1e-6)
    assert found.curvature == pytest.approx(0.05) and not found.warnings


def test_a_line_through_two_minima_tells_no_exponent() -> None:
    two = [run for run in runs(LearningRate(0.012), noise=3e-3) if run.n == pytest.approx(TRUE.optimum(run.budget)[0])]
    found = analyse(two, by_width=False, by_tokens=True, center_exponent=0.5)
    assert len({(run.budget, run.n) for run in two}) == 2 and found.learning_rate.d_exponent == 0
    assert "cannot be told" in found.warnings[0]


def test_under_mup_only_the_tokens_move_it() -> None:
    law = LearningRate(0.05, 0.0, -0.1)
    found = analyse(runs(law), by_width=False, by_tokens=True, center_exponent=0.5)
    assert found.learning_rate.n_exponent == 0.0
    assert found.learning_rate(1e4, 1e6) == pytest.approx(law(1e4, 1e6), rel=1e-6)


def test_the_grid_is_centred_on_the_best_size() -> None:
    found = analyse(runs(noise=1e-4), by_width=True, by_tokens=True, center_exponent=0.5)
    for c, n in found.best_sizes:
        assert n == pytest.approx(TRUE.optimum(np.array(c))[0], rel=0.15)
    assert found.center(4e11) == pytest.approx(TRUE.optimum(np.array(4e11))[0], rel=0.25)


def test_a_best_rate_beyond_those_tried_is_said_and_none_is_refused() -> None:
    found = analyse(runs(LearningRate(0.2)), by_width=False, by_tokens=False, center_exponent=0.5)
    assert "widen config.pilot.learning_rates" in found.warnings[0]
    with pytest.raises(UserError, match="no minimum"):
        analyse(runs(curvature=-0.05), by_width=False, by_tokens=False, center_exponent=0.5)


def test_one_rate_is_taken_as_it_is() -> None:
    found = analyse(runs(rates=(1e-2,)), by_width=False, by_tokens=False, center_exponent=0.5)
    assert found.learning_rate == LearningRate(1e-2) and found.curvature is None


def test_the_calibration_foretells_what_it_was_not_fitted_to() -> None:
    def seconds(tokens, flops) -> float:
        return 6.0 + 2e-6 * tokens + flops / 3e10

    timings = [Timing(seconds(t, f), t, f) for t, f in ((1e6, 1e11), (2e6, 9e11), (5e6, 3e11), (3e6, 5e12))]
    calibrated = calibrate(timings)
    assert calibrated.seconds(4e6, 2e12) == pytest.approx(seconds(4e6, 2e12), rel=1e-6)
    assert calibrated.mean_error < 1e-6
    assert calibrate(timings[:2]) is None


def test_an_exponent_that_the_pilot_cannot_tell_is_none() -> None:
    # Losses of the embedded study's first pilot: the shortest run is the steepest, and said nothing of the longer ones.
    measured = {
        (6e10, 11916): (1.5888, 1.5712, 1.5940), (6e10, 23636): (1.7547, 1.6621, 1.7616),
        (6e10, 51168): (2.3362, 2.2482, 2.9038), (1.6e11, 11916): (1.4237, 1.4506, 1.4670),
        (1.6e11, 23636): (1.4238, 1.3923, 1.4236), (1.6e11, 51168): (1.5603, 1.4881, 1.5277),
    }  # fmt: skip
    made = [
        PilotRun(c, n, c / (6 * n), rate, loss)
        for (c, n), losses in measured.items()
        for rate, loss in zip((1.2e-2, 3.5e-2, 1e-1), losses, strict=True)
    ]
    found = analyse(made, by_width=False, by_tokens=True, center_exponent=0.5)
    assert found.learning_rate.d_exponent == 0.0 and 0.02 < found.learning_rate.coefficient < 0.04
    assert any("cannot be told" in warning for warning in found.warnings)
