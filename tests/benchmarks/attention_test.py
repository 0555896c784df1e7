"""The rows that the attention and training benchmarks run on."""

import numpy as np

from benchmarks.attention import packed_segments, sum_segment_squared
from benchmarks.train_step import _batch


def test_rows_are_full_of_segments_of_the_mean_length_asked_for():
    ids_BxL = packed_segments(200, 8192, 1280)
    assert (ids_BxL[:, 0] == 1).all()
    assert set(np.unique(np.diff(ids_BxL, axis=1))) == {0, 1}
    # The last of a row is cut, so the mean is a little below.
    assert 900 < ids_BxL.size / ids_BxL[:, -1].sum() < 1400
    assert (packed_segments(2, 64, 0) == 1).all()


def test_squared_lengths_are_summed_over_segments_and_leave_padding_out():
    assert sum_segment_squared(np.array([[1, 1, 1, 2, 0, 0], [1, 2, 2, 2, 2, 2]])) == 9 + 1 + 1 + 25


def test_positions_restart_with_each_segment():
    batch = _batch(3, 8192, packed=True)
    begins_BxL = np.diff(batch["segment_ids_BxL"], axis=1, prepend=0) != 0
    assert ((batch["positions_BxL"] == 0) == begins_BxL).all()
    squares = int(np.sum(2 * batch["positions_BxL"].astype(np.int64) + 1))
    assert squares == sum_segment_squared(batch["segment_ids_BxL"])
