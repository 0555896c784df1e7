"""What the benchmark of waiting counts."""

import numpy as np
import pytest

from benchmarks.slowest_device import _waiting, costs_of_shares
from data_pipeline import packing


def test_a_devices_share_costs_the_squares_of_its_segments():
    # Rows of one segment of 8 and of two of 4: squares 64 and 32.
    plan = packing.plan(np.array([9, 5, 5] * 8), row_length=8, prefix_length=4, seed=0)
    costs = costs_of_shares(plan, rows=2, devices=4, group=0, steps=2)
    assert costs.shape == (2, 4)
    assert set(costs.flatten().tolist()) <= {64, 96, 128}
    assert costs.sum() == 8 * 64 + 8 * 32
    assert costs_of_shares(plan, rows=2, devices=4, group=1, steps=2).sum() == costs.sum()


def test_waiting_is_the_dearest_share_of_each_step_over_the_mean():
    assert _waiting(np.array([[1, 3], [2, 2]])) == pytest.approx(5 / 4)
