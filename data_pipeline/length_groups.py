"""Rows of a training step that cost attention alike, so that no device waits for another's.

A step ends when its slowest device does. Attention costs a row the sum of its segments' squared lengths, which packing
evens out as far as it can (`packing.SPREAD`), but a record as long as a row is a row. So the rows of a group of steps
are sorted by that sum and dealt out, neighbours to one step: the "megabatches" of Hugging Face's `group_by_length`,
with rows for samples. The steps of a group come in random order, and each row keeps its place in the stream to within
a group: what an epoch reads stays the same.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from data_pipeline.packing import RowPlan


class Stream(Protocol):
    """An endless stream of rows, as `packing.PackingPlan` and `mixture.MixedPlan` are."""

    def stream(self, place: int) -> RowPlan:
        """The row at `place`."""
        ...


def places_of_steps(plan: Stream, batch_rows: int, group_by_length: int, seed: int) -> Callable[[int], Sequence[int]]:
    """A function from a step to the places in `plan`'s stream of its `batch_rows` rows.

    Args:
        plan: the stream.
        batch_rows: rows of a step.
        group_by_length: steps of a group; 1 only orders the rows of a step, so that devices' shares of it cost alike; 0
            takes the rows as they come.
        seed: of the order of a group's steps.
    """

    @functools.lru_cache(maxsize=2)  # two: workers read ahead, into the next group
    def deal(group: int) -> list[list[int]]:
        first = group * group_by_length * batch_rows
        costs_P = np.array([attention_cost(plan.stream(first + i)) for i in range(group_by_length * batch_rows)])
        steps = np.argsort(costs_P, kind="stable").reshape(group_by_length, batch_rows)
        # RandomState's streams are frozen for good (NEP 19).
        order = np.random.RandomState([seed, group % 2**32]).permutation(group_by_length)
        return [(first + _evened_out(steps[step], costs_P)).tolist() for step in order]

    def places_of(step: int) -> Sequence[int]:
        if not group_by_length:
            return range(step * batch_rows, (step + 1) * batch_rows)
        group, number = divmod(step, group_by_length)
        return deal(group)[number]

    return places_of


def attention_cost(row: RowPlan) -> int:
    """The sum of the row's segments' squared lengths."""
    return int(np.square(row.length_S.astype(np.int64)).sum())


def _evened_out(step_B: np.ndarray, costs_P: np.ndarray) -> np.ndarray:
    """The rows of a step in an order in which each half costs as much as the other, each quarter, and so on.

    So devices that hold several rows of a step cost alike too, whatever their number. Made of pairs, the dearest with
    the cheapest, then of pairs of pairs.
    """
    parts = step_B[:, None]
    while len(parts) % 2 == 0:
        ascending = parts[np.argsort(costs_P[parts].sum(axis=1), kind="stable")]
        half = len(parts) // 2
        parts = np.concatenate([ascending[:half], ascending[half:][::-1]], axis=1)
    return parts.reshape(-1)
