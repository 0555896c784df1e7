"""Small ROC and calibration panels, dozens to a page: bare SVG of a few hundred bytes; the page's style says its look.

Classes s0, s1, ... are the series of data_pipeline.svg, "best" the best possible, "rival" a baseline; each has a dash
pattern or marker of its own, so that the panels can be told apart in grey.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# A panel's side; curves are told to whole units.
SIDE = 100
# Room at the left for the end of an axis, of six characters at most: `5000 d`.
_LEFT = 38
_MARKERS = (
    "M{x} {y}m-2.4 0a2.4 2.4 0 1 0 4.8 0a2.4 2.4 0 1 0-4.8 0",
    "M{x} {y}m-2.2-2.2h4.4v4.4h-4.4z",
    "M{x} {y}m0-2.8l2.8 4.9h-5.6z",
    "M{x} {y}m0-3l3 3l-3 3l-3-3z",
)


def marker(series: int, x: float, y: float) -> str:
    """An SVG path's data of the series' marker."""
    return _MARKERS[series % len(_MARKERS)].format(x=_short(x), y=_short(y))


def roc(curves: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> str:
    """ROC curves by class: `false_positive_rate` and `true_positive_rate`, from (0, 0) to (1, 1)."""
    lines = [
        f'<polyline class="{name}" points="{_points(curve["false_positive_rate"], curve["true_positive_rate"])}"/>'
        for name, curve in curves.items()
        if len(curve["false_positive_rate"])
    ]
    if not lines:
        return ""
    return _panel([f'<path class="chance" d="M0 {SIDE}L{SIDE} 0"/>', *lines], title, "1", "1")


def calibration(tables: Mapping[int, Sequence[Mapping[str, float]]], title: str, unit: str = "") -> str:
    """Observed against predicted by series number: rows with `predicted`, `observed`, and perhaps `low`, `high`."""
    rows = [row for table in tables.values() for row in table]
    if not rows:
        return ""
    most = max(max(row["predicted"], row.get("high", row["observed"])) for row in rows)
    most = _round_up(most) if unit else min(1.0, _round_up(most))
    parts = [f'<path class="chance" d="M0 {SIDE}L{SIDE} 0"/>']
    for series, table in tables.items():
        places = [(SIDE * row["predicted"] / most, SIDE - SIDE * row["observed"] / most) for row in table]
        marks = "".join(marker(series, x, y) for x, y in places)
        whiskers = "".join(
            f"M{_short(x)} {_short(SIDE - SIDE * row['low'] / most)}V{_short(SIDE - SIDE * row['high'] / most)}"
            for (x, _), row in zip(places, table, strict=True)
            if "low" in row
        )
        parts.append(f'<path class="s{series} mark" d="{marks}"/>')
        if whiskers:
            parts.append(f'<path class="s{series} whisker" d="{whiskers}"/>')
    label = f"{most:g}{unit}"
    return _panel(parts, title, label, label)


def _panel(parts: Sequence[str], title: str, x_end: str, y_end: str) -> str:
    """Axes with 0 and their ends told."""
    axes = f'<path class="axes" d="M0 0V{SIDE}H{SIDE}"/>'
    ticks = f'<text x="-3" y="5" class="end">{y_end}</text><text x="{SIDE}" y="{SIDE + 11}" class="end">{x_end}</text>'
    zero = f'<text x="-3" y="{SIDE + 11}" class="end">0</text>'
    return (
        f'<svg class="panel" viewBox="-{_LEFT} -4 {_LEFT + SIDE + 6} {SIDE + 18}" role="img" aria-label="{title}">'
        f"{axes}{''.join(parts)}{ticks}{zero}</svg>"
    )


def _points(x_T: Sequence[float], y_T: Sequence[float]) -> str:
    """Whole units, without repeats and without points on a straight line between their neighbours."""
    places = np.stack([np.round(SIDE * np.asarray(x_T)), np.round(SIDE - SIDE * np.asarray(y_T))], axis=1).astype(int)
    kept: list[tuple[int, int]] = []
    for x, y in places.tolist():
        if kept and kept[-1] == (x, y):
            continue
        if len(kept) > 1:
            (x0, y0), (x1, y1) = kept[-2:]
            if (x1 - x0) * (y - y0) == (x - x0) * (y1 - y0):
                kept.pop()
        kept.append((x, y))
    return " ".join(f"{x},{y}" for x, y in kept)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if value <= step * power * (1 + 1e-9)))


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def fifths(predicted_N: np.ndarray, recorded_N: np.ndarray) -> list[dict[str, Any]]:
    """Of amounts: means of what is predicted and recorded, by fifths of the rows in order of what is predicted."""
    order_N = np.argsort(predicted_N, kind="stable")
    groups = [part for part in np.array_split(order_N, 5) if len(part)]
    return [
        {"predicted": float(predicted_N[part].mean()), "observed": float(recorded_N[part].mean())} for part in groups
    ]
