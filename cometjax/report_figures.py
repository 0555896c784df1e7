"""The report's figures: plain data in, inline SVG out (data_pipeline.svg says how they look)."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cometjax import rivals
from data_pipeline.svg import BLUE, GREY, INK, PALE, SERIES, STYLE, WIDTH, to_svg

BEST = "best possible"


def loss_curves(records: Sequence[Mapping[str, Any]], references: Mapping[str, float], title: str) -> str:
    """Training and tuning loss by step (left, with the count models as lines) and tuning loss by token kind (right).

    `records`: lines of metrics.jsonl; `references`: name → nats/token.
    """
    train = [record for record in records if record.get("split") == "train" and _is_number(record.get("loss"))]
    tuning = [record for record in records if record.get("split") == "tuning" and _is_number(record.get("loss"))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.7))
        whole, by_kind = figure.subplots(1, 2, width_ratios=[1.0, 1.15])
        _total_loss(whole, train, tuning, references)
        _loss_by_kind(by_kind, tuning or train, "tuning" if tuning else "training")
        return to_svg(figure, title)


def _total_loss(
    axes: Axes, train: Sequence[Mapping], tuning: Sequence[Mapping], references: Mapping[str, float]
) -> None:
    if train:
        axes.plot([r["step"] for r in train], [r["loss"] for r in train], color=GREY, linewidth=0.9, label="training")
    if tuning:
        axes.plot(
            [r["step"] for r in tuning],
            [r["loss"] for r in tuning],
            color=BLUE,
            marker="o",
            markersize=3.5,
            label="tuning",
        )
    for (name, value), style in zip(references.items(), (":", "--", "-."), strict=False):
        axes.axhline(value, color=INK, linestyle=style, linewidth=1.1, label=f"{name} {value:.3f}")
    losses = [r["loss"] for r in [*train, *tuning]] + list(references.values())
    if losses:
        # The first steps start at log V; a view that holds them hides where the curves end.
        axes.set_ylim(min(losses) * 0.93, min(max(losses), 1.6 * max([*references.values(), np.median(losses)])) * 1.03)
    axes.set(title="All tokens", xlabel="training step", ylabel="loss (nats per token)")
    axes.legend(loc="upper right")


def _loss_by_kind(axes: Axes, records: Sequence[Mapping], split: str) -> None:
    axes.set(title=f"By token kind ({split})", xlabel="training step", ylabel="loss (nats per token)")
    kinds = sorted({key for record in records for key in record if key.startswith("loss/")})
    ends: dict[str, float] = {}
    for index, kind in enumerate(kinds):
        points = [(r["step"], r[kind]) for r in records if _is_number(r.get(kind))]
        if not points:
            continue
        colour, style, marker = SERIES[index % len(SERIES)]
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, color=colour, linestyle=style, marker=marker, markersize=3, linewidth=1.2)
        ends[kind] = losses[-1]
    if not ends:
        axes.text(0.5, 0.5, "no losses by kind recorded", transform=axes.transAxes, ha="center", color=GREY)
        return
    low, high = axes.get_ylim()
    last = max(record["step"] for record in records)
    axes.set_xlim(right=last)
    for kind, place in zip(ends, _spread(list(ends.values()), (high - low) * 0.062), strict=True):
        name = kind.removeprefix("loss/").replace("_", " ").lower()
        axes.annotate(
            f"{name} {ends[kind]:.2f}",
            (last, ends[kind]),
            (1.05, place),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": PALE, "linewidth": 0.8},
        )


def _spread(values: list[float], gap: float) -> list[float]:
    """The values moved apart until no two are nearer than `gap`, in their order, around where they were."""
    order = np.argsort(values)
    placed = np.asarray(values, float)[order]
    for _ in range(200):
        overlap = gap - np.diff(placed)
        if (overlap <= 1e-9).all():
            break
        push = np.maximum(overlap, 0) / 2
        placed[:-1] -= push
        placed[1:] += push
    result = np.empty(len(values))
    result[order] = placed
    return result.tolist()


def predictors(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A task's scores by who predicted: the simulated futures, each fitted baseline, on a world's data the truth."""
    fitted = {rivals.TITLES[name]: entry for name, entry in result["baselines"].items() if name != "prevalence"}
    return {"simulated futures": result} | fitted | ({BEST: result["best"]} if "best" in result else {})


def columns(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who predicts any of these tasks; the truth only where some task's is known."""
    names = list(next((predictors(result) for result in tasks.values()), {}))
    return [name for name in names if name != BEST or knows_best(tasks)]


def knows_best(tasks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Is the best possible AUROC of any task known?"""
    return any("best" in result and result["best"]["auroc"] is not None for result in tasks.values())


def reasons_of_no_best(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why the best possible AUROC of tasks is not known, each reason once; [] on data of no world."""
    return list(dict.fromkeys(result["best"]["reason"] for result in tasks.values() if "best" in result))


def forest(tasks: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """AUROC with its interval, one line per task: simulated futures and each fitted baseline."""
    names = columns(tasks)
    offsets = 0.28 * (np.arange(len(names)) - (len(names) - 1) / 2) / max(1, (len(names) - 1) / 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + (0.3 + 0.12 * len(names)) * len(tasks)))
        axes = figure.subplots()
        for line, result in enumerate(tasks.values()):
            entries = predictors(result)
            for (colour, _, marker), name, offset in zip(SERIES, names, offsets, strict=False):
                _whisker(axes, entries[name], line + offset, colour, marker)
            if result["auroc"] is None:
                axes.text(0.51, line, f"not defined: {result['reason']}", va="center", fontsize=8, color=GREY)
        for (colour, _, marker), name in zip(SERIES, names, strict=False):
            axes.plot([], [], color=colour, marker=marker, markersize=5, label=name)
        axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
        axes.set_yticks(range(len(tasks)), list(tasks))
        axes.set(xlabel="AUROC (95% interval by subject; 0.5 = chance)", ylim=(len(tasks) - 0.5, -0.5))
        lows = [entry["low"] for result in tasks.values() for entry in predictors(result).values()]
        axes.set_xlim(min([0.45, *(low - 0.03 for low in lows if low is not None)]), 1.02)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(1, len(names)))
        return to_svg(figure, title)


def _whisker(axes: Axes, entry: Mapping[str, Any], height: float, colour: str, marker: str) -> None:
    if entry["auroc"] is None:
        return
    if entry["low"] is not None:
        axes.plot([entry["low"], entry["high"]], [height, height], color=colour, linewidth=1.4)
    axes.plot([entry["auroc"]], [height], color=colour, marker=marker, markersize=5.5)


def roc_and_calibration(result: Mapping[str, Any], title: str) -> str:
    """A task's ROC curves (left) and calibration with 95% Wilson intervals (right), model and fitted baselines."""
    entries = predictors(result)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.9))
        roc, calibration = figure.subplots(1, 2)
        _roc(roc, entries, result["reason"])
        _calibration(calibration, entries)
        return to_svg(figure, title)


def _roc(axes: Axes, entries: Mapping[str, Mapping[str, Any]], reason: str) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for (name, entry), (colour, style, _) in zip(entries.items(), SERIES, strict=False):
        if entry["auroc"] is not None and entry.get("roc"):
            axes.plot(
                entry["roc"]["false_positive_rate"],
                entry["roc"]["true_positive_rate"],
                color=colour,
                linestyle=style,
                label=f"{name}: {with_interval(entry)}",
            )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", title="AUROC (95% interval)", title_fontsize=8.5)
    else:
        axes.text(0.5, 0.55, f"ROC not defined: {reason}", ha="center", color=INK, backgroundcolor="white")
    axes.set(
        title="ROC", xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01)
    )
    axes.set_box_aspect(0.85)


def _calibration(axes: Axes, entries: Mapping[str, Mapping[str, Any]]) -> None:
    right = top = 0.05
    for (name, entry), (colour, _, marker) in zip(entries.items(), SERIES, strict=False):
        table = entry.get("calibration") or []
        if not table:
            continue
        predicted, observed = ([row[key] for row in table] for key in ("predicted", "observed"))
        errors = [
            [max(0.0, row["observed"] - row["low"]) for row in table],
            [max(0.0, row["high"] - row["observed"]) for row in table],
        ]
        axes.errorbar(
            predicted,
            observed,
            yerr=errors,
            color=colour,
            marker=marker,
            markersize=4.5,
            linestyle="none",
            elinewidth=1,
            capsize=2,
            label=f"{name}: error {entry['ece']:.3f}",
        )
        right, top = max(right, *predicted), max(top, *predicted, *(row["high"] for row in table))
    right, top = min(1.0, 1.15 * right), min(1.0, top) * 1.03
    axes.plot([0, min(right, top)], [0, min(right, top)], color=GREY, linestyle=":", linewidth=1)
    axes.set(
        title="Calibration",
        xlabel="predicted probability",
        ylabel="observed rate",
        xlim=(-0.02 * right, right),
        ylim=(-0.01 * top, top * 1.22),
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", ncols=1)
    axes.set_box_aspect(0.85)


def with_interval(entry: Mapping[str, Any]) -> str:
    """`0.78 (0.71-0.84)`, with what there is of it."""
    if entry["auroc"] is None:
        return "not defined"
    if entry["low"] is None:
        return f"{entry['auroc']:.2f} (no interval)"
    return f"{entry['auroc']:.2f} ({entry['low']:.2f}-{entry['high']:.2f})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and np.isfinite(value)
