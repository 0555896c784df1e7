"""Panels tell curves in few points, and put what is equal on the diagonal."""

import re

import numpy as np

from cometjax import curve_panels


def test_a_curve_keeps_its_corners_and_no_point_between() -> None:
    rates = np.array([0, 0, 0, 0.25, 0.5, 0.5, 1]), np.array([0, 0.25, 0.5, 0.5, 0.5, 1, 1])
    drawn = curve_panels.roc({"s0": dict(zip(("false_positive_rate", "true_positive_rate"), rates, strict=True))}, "t")
    assert re.search(r'class="s0" points="([^"]*)"', drawn).group(1) == "0,100 0,50 50,50 50,0 100,0"


def test_perfect_calibration_lies_on_the_diagonal_of_rounded_axes() -> None:
    rows = [{"predicted": 0.1, "observed": 0.1, "low": 0.05, "high": 0.19}, {"predicted": 0.15, "observed": 0.15}]
    drawn = curve_panels.calibration({0: rows}, "t")
    assert drawn.count(">0.2</text>") == 2
    assert "M50 50m" in drawn and "M75 25m" in drawn and "M50 75V5" in drawn
    assert curve_panels.calibration({0: []}, "t") == "" == curve_panels.roc({}, "t")


def test_an_axis_of_days_has_room_for_its_end() -> None:
    drawn = curve_panels.calibration({0: [{"predicted": 2_100.0, "observed": 1_900.0}]}, "t", " d")
    left = -float(re.search(r'viewBox="(\S+)', drawn).group(1))
    # The page writes in 9 units of a sans-serif, whose digits are no wider than 0.64 of that.
    assert '<text x="-3" y="5" class="end">5000 d</text>' in drawn and left >= 3 + 9 * 0.64 * len("5000 d")


def test_fifths_are_of_the_prediction_and_of_equal_size() -> None:
    predicted_N = np.arange(10.0)[::-1]
    groups = curve_panels.fifths(predicted_N, 2 * predicted_N)
    assert [row["predicted"] for row in groups] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert [row["observed"] for row in groups] == [1, 5, 9, 13, 17]
