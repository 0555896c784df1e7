"""Generated against held-out, beside what a perfect generator would get: half of held-out against the other half.

Subjects are parted in two halves A and B at random, many times. The generated windows of A against the held-out ones of
B, and the held-out ones of A against those of B: a perfect generator's windows of A are drawn as the held-out ones of A
are, so its distances are distributed as the floor's. A figure above nearly all of the floor's tells a difference.

N windows held out   S samples of each   (row n S + s of the generated tables is sample s of window n)
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.plausibility import statistics
from experiments.plausibility.statistics import Pairs
from experiments.plausibility.tables import Tables

SPLITS = 40
# Fewer windows than these have no first percentile to speak of.
MIN_WINDOWS = 100
NEAREST_PERCENTILE = 1.0

Halves = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def halves(size: int, samples: int, seed: int) -> Halves:
    """(held-out rows A, held-out rows B, generated rows of A), a sample of each subject, in turn by split."""
    rng = np.random.default_rng(seed)
    parts = []
    for split in range(SPLITS):
        order = rng.permutation(size)
        first, second = np.sort(order[: size // 2]), np.sort(order[size // 2 : 2 * (size // 2)])
        parts.append((first, second, first * samples + split % samples))
    return parts


def distances(generated: Tables, held_out: Tables, pairs: Pairs, parts: Halves) -> dict[str, dict[str, Any]]:
    """By name: `all` windows, `half` against half (mean over splits), and the floor (mean, 95% range over splits)."""
    everything = np.arange(len(generated.events_N)), np.arange(len(held_out.events_N))
    whole = statistics.distances(generated, everything[0], held_out, everything[1], pairs)
    ours, floors = [], []
    for first, second, drawn in parts:
        ours.append(statistics.distances(generated, drawn, held_out, second, pairs))
        floors.append(statistics.distances(held_out, first, held_out, second, pairs))
    return {
        name: {"all": whole[name], **_against_floor([o[name] for o in ours], [f[name] for f in floors])}
        for name in statistics.TITLES
    }


def rates(generated: Tables, held_out: Tables, parts: Halves) -> dict[str, dict[str, Any]]:
    """By name: of generated and held-out windows, and the 95% range over halves of the held-out ones."""
    ours = statistics.rates(generated, np.arange(len(generated.events_N)))
    theirs = statistics.rates(held_out, np.arange(len(held_out.events_N)))
    by_half = [statistics.rates(held_out, first) for first, *_ in parts]
    return {
        name: {"generated": ours[name], "held_out": theirs[name], **_range([half[name] for half in by_half])}
        for name in ours
    }


def privacy(generated: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray], parts: Halves) -> dict[str, Any]:
    """What `distance` to the nearest training timeline and longest verbatim `copy` tell.

    Both mappings have these two arrays, over the rows of the generated and the held-out windows; NaN: window too short.
    """
    near, far = generated["distance"], held_out["distance"]
    told: dict[str, Any] = {
        "compared": {"generated": int(np.isfinite(near).sum()), "held_out": int(np.isfinite(far).sum())},
        "distance": {"generated": _summary(near), "held_out": _summary(far)},
        "copy": {"generated": _summary(generated["copy"]), "held_out": _summary(held_out["copy"])},
        "reason": "",
    }
    if min(told["compared"].values()) < MIN_WINDOWS:
        told["reason"] = f"fewer than {MIN_WINDOWS} windows are long enough to tell the nearest percent"
        return told
    told["closer"] = {"all": _closer(near, far)} | _of_halves(_closer, near, far, parts)
    copies = generated["copy"], held_out["copy"]
    told["longer"] = {"all": _longer(*copies)} | _of_halves(_longer, *copies, parts)
    if np.nanquantile(far, NEAREST_PERCENTILE / 100) == 0:
        told["reason"] = (
            "held-out windows lie at distance 0 already: nothing can be nearer, and the share tells nothing"
        )
    return told


def _closer(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of `ours` that is nearer than the first percentile of `theirs`."""
    known = ours[np.isfinite(ours)]
    return float(np.mean(known < np.nanquantile(theirs, NEAREST_PERCENTILE / 100)))


def _longer(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of `ours` that is longer than the last percentile of `theirs`."""
    known = ours[np.isfinite(ours)]
    return float(np.mean(known > np.nanquantile(theirs, 1 - NEAREST_PERCENTILE / 100)))


def _of_halves(
    figure: Callable[[np.ndarray, np.ndarray], float], ours: np.ndarray, theirs: np.ndarray, parts: Halves
) -> dict[str, Any]:
    drawn = [figure(ours[rows], theirs[second]) for _, second, rows in parts]
    return _against_floor(drawn, [figure(theirs[first], theirs[second]) for first, second, _ in parts])


def _against_floor(ours: list[Any], floors: list[Any]) -> dict[str, Any]:
    known = [value for value in ours if value is not None]
    told = {"half": float(np.mean(known)) if known else None, **_range(floors)}
    told["above_floor"] = None if told["half"] is None or told["high"] is None else told["half"] > told["high"]
    return told


def _range(values: list[Any]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"floor": None, "low": None, "high": None}
    low, high = np.quantile(known, [0.025, 0.975])
    return {"floor": float(np.mean(known)), "low": float(low), "high": float(high)}


def _summary(values: np.ndarray) -> dict[str, float] | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    names = ("min", "p1", "median", "p99", "max")
    return dict(zip(names, np.quantile(known, [0, 0.01, 0.5, 0.99, 1]).tolist(), strict=True))
