"""Sweeps composed from small functions: a sweep is a tuple of points, a point is what it sets.

product(axis("width", (64, 128)), axis("learning_rate", (1e-3, 3e-3)))     # four points
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Point = Mapping[str, Any]
Sweep = tuple[Point, ...]


def axis(name: str, values: Sequence[Any]) -> Sweep:
    """One point for each value."""
    return tuple({name: value} for value in values)


def product(*sweeps: Sweep) -> Sweep:
    """Every combination; the last sweep varies fastest. Raises ValueError where two sweeps set the same name."""
    return tuple(_merged(points) for points in itertools.product(*sweeps))


def _merged(points: Sequence[Point]) -> Point:
    merged: dict[str, Any] = {}
    for point in points:
        if twice := merged.keys() & point.keys():
            raise ValueError(f"set by two sweeps: {', '.join(sorted(twice))}")
        merged |= point
    return merged
