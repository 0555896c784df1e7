"""The figures of a study's report, as inline SVG whose marks say what they are under the pointer.

Budgets differ by line style and marker as well as by colour, so that a greyscale print reads as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from data_pipeline.svg import BLUE, GREY, INK, ORANGE, PALE, SERIES, STYLE, WIDTH, to_svg
from experiments.scaling import frontier
from experiments.scaling.analysis import DIGITS, Analysis
from experiments.scaling.trials import Outcome


def style_of(budgets: Sequence[float], budget: float) -> tuple[str, Any, str]:
    """(colour, line style, marker) of a budget."""
    return SERIES[sorted(set(budgets)).index(budget) % len(SERIES)]


def says(outcome: Outcome) -> str:
    """What a trial's mark says."""
    trial = outcome.trial
    return (
        f"{trial.name}: loss {outcome.loss:.4f} nats/token, N {trial.n:,}, D {outcome.tokens:,} "
        f"({trial.epochs:.2f} epochs), width {trial.shape.width} x {trial.shape.layers} layers, "
        f"learning rate {trial.overrides['optimizer.learning_rate']:.3g}, {outcome.seconds:.0f} s"
    )


def _logarithmic(axis: Axis) -> None:
    """A logarithmic axis whose ticks are plain text: matplotlib's own exponents take most of a page's time."""
    low, high = axis.get_data_interval()
    if not 0 < low <= high < float("inf"):  # nothing in it, where a fit found no optimum
        axis.axes.set_visible(False)
        return
    getattr(axis.axes, "set_xscale" if axis is axis.axes.xaxis else "set_yscale")("log")
    # On a short axis powers of ten alone would be one tick or none.
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_formatter(NullFormatter())


def _band(found: Analysis) -> str:
    return f"{100 * found.result['bootstrap']['confidence']:g}% band"


def _tick(value: float) -> str:
    if 1 <= value < 1e5:
        return f"{value:,.0f}"
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


class _Marks:
    """Gives artists ids, and remembers what each says; a trial that stands in a figure twice is told apart by "#"."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def point(self, axes: Axes, outcome: Outcome, x: float, y: float, **style: Any) -> None:
        (artist,) = axes.plot([x], [y], linestyle="none", **style)
        self.name(artist, outcome)

    def name(self, artist: Any, outcome: Outcome) -> None:
        gid = f"{outcome.trial.name}#{len(self.said)}"
        artist.set_gid(gid)
        self.said[gid] = says(outcome)


def loss_curves(grid: Sequence[Outcome], title: str) -> str:
    """Training loss against tokens, a panel for each budget."""
    budgets = sorted({outcome.trial.budget for outcome in grid})
    marks = _Marks()
    with matplotlib.rc_context(STYLE):
        columns = min(4, len(budgets))
        rows = -(-len(budgets) // columns)
        figure = Figure(figsize=(WIDTH, 2.6 * rows))
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        lowest = min(outcome.loss for outcome in grid)
        # The first tenth of a run falls from log V: it would leave the rest no room.
        highest = max(
            (loss for outcome in grid for tokens, loss in outcome.curve if tokens > 0.1 * outcome.tokens),
            default=lowest + 1.0,
        )
        for axes, budget in zip(panels, budgets, strict=False):
            for index, one in enumerate(sorted((o for o in grid if o.trial.budget == budget), key=lambda o: o.trial.n)):
                tokens, losses = np.array(one.curve).T if one.curve else (np.array([]), np.array([]))
                colour, line, marker = SERIES[index % len(SERIES)]
                label = f"{one.trial.n / 1e3:,.0f}k" if one.trial.n < 1e6 else f"{one.trial.n / 1e6:,.1f}M"
                (artist,) = axes.plot(tokens, losses, color=colour, linestyle=line, linewidth=1.1, label=label)
                marks.name(artist, one)
                marks.point(axes, one, one.tokens, one.loss, color=colour, marker=marker, markersize=4)
            _logarithmic(axes.xaxis)
            axes.set_title(f"C = {budget:.3g}")
            axes.set_xlabel("tokens")
            axes.legend(title="N", fontsize=7, title_fontsize=7.5, loc="lower left")
        for axes in panels[len(budgets) :]:
            axes.set_visible(False)
        span = max(highest - lowest, 0.05)
        panels[0].set_ylim(lowest - 0.1 * span, highest + 0.1 * span)
        panels[0].set_ylabel("loss, nats/token")
    return to_svg(figure, title, marks.said)


def isoflops(grid: Sequence[Outcome], found: Analysis, title: str) -> str:
    """Loss against N, a parabola and its minimum for each budget; dashed, the fitted surface."""
    budgets = sorted({outcome.trial.budget for outcome in grid})
    parabolas = frontier.isoflops(found.points, DIGITS).parabolas
    marks = _Marks()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2))
        axes = figure.subplots()
        for budget, parabola in zip(budgets, parabolas, strict=True):
            colour, line, marker = style_of(budgets, budget)
            n = np.geomspace(parabola.n_low / 1.15, parabola.n_high * 1.15, 80)
            if np.isfinite(parabola.n_star):
                curve = parabola.offset + parabola.curvature * (np.log(n) - np.log(parabola.n_star)) ** 2
                axes.plot(n, curve, color=colour, linestyle=line, linewidth=1.3)
                axes.plot(
                    [parabola.n_star], [parabola.offset], marker="*", markersize=13, color=colour,
                    markeredgecolor="white", linestyle="none", zorder=5,
                )  # fmt: skip
            surface = found.fitted.loss(n, budget / (6 * n))
            axes.plot(n, surface, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
            for one in grid:
                if one.trial.budget == budget:
                    marks.point(axes, one, one.trial.n, one.loss, color=colour, marker=marker, markersize=6)
            axes.plot([], [], color=colour, linestyle=line, marker=marker, label=f"C = {budget:.3g}")
        axes.plot([], [], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), label="fitted surface")
        axes.plot([], [], color=INK, marker="*", markersize=10, linestyle="none", label="minimum")
        _logarithmic(axes.xaxis)
        axes.set_xlabel("N, parameters with embeddings")
        axes.set_ylabel("loss on the tuning split, nats/token")
        axes.legend(loc="upper right")
    return to_svg(figure, title, marks.said)


def frontier_loss(
    grid: Sequence[Outcome], found: Analysis, check: Outcome | None, floor: float | None, title: str
) -> str:
    """Loss against compute: every trial, the fitted frontier with its band, E, the true floor, the check."""
    bands = {name: np.array(values) for name, values in found.result["bands"].items()}
    budgets = sorted({outcome.trial.budget for outcome in grid})
    marks = _Marks()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.0))
        axes = figure.subplots()
        if "loss_low" in bands:
            axes.fill_between(bands["c"], bands["loss_low"], bands["loss_high"], color=PALE, label=_band(found))
        axes.plot(bands["c"], bands["loss"], color=INK, label="fitted frontier")
        for one in grid:
            colour, _, marker = style_of(budgets, one.trial.budget)
            marks.point(axes, one, one.trial.flops_6nd, one.loss, color=colour, marker=marker, markersize=4.5)
        if check is not None:
            foretold = found.result["check"]["predicted"]
            known = foretold["low"] is not None
            axes.errorbar(
                [check.trial.flops_6nd], [foretold["loss"]], marker="_", markersize=14, color=INK, capsize=4,
                yerr=[[foretold["loss"] - foretold["low"]], [foretold["high"] - foretold["loss"]]] if known else None,
                label="foretold",
            )  # fmt: skip
            marks.point(
                axes, check, check.trial.flops_6nd, check.loss, color=ORANGE, marker="X", markersize=9, label="measured"
            )
        axes.axhline(found.fitted.E, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(f"E = {found.fitted.E:.4f}", (bands["c"][0], found.fitted.E), fontsize=8, va="bottom", color=GREY)
        if floor is not None:
            axes.axhline(floor, color=BLUE, linestyle=":", linewidth=1.2)
            axes.annotate(
                f"true entropy {floor:.4f}", (bands["c"][-1], floor), fontsize=8, va="bottom", ha="right", color=BLUE
            )
        _logarithmic(axes.xaxis)
        axes.set_xlabel("C = 6 N D, FLOPs")
        axes.set_ylabel("loss, nats/token")
        axes.legend(loc="upper right")
    return to_svg(figure, title, marks.said)


def optimum(found: Analysis, members: Sequence[Mapping[str, Any]], title: str) -> str:
    """N* and D* against C with bands, the minima of the parabolas, and the family's members."""
    bands = {name: np.array(values) for name, values in found.result["bands"].items()}
    parabolas = [p for p in frontier.isoflops(found.points, DIGITS).parabolas if not p.refusal]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        for axes, name, label in zip(figure.subplots(1, 2), ("n", "d"), ("N*, parameters", "D*, tokens"), strict=True):
            if f"{name}_low" in bands:
                low, high = bands[f"{name}_low"], bands[f"{name}_high"]
                axes.fill_between(bands["c"], low, high, color=PALE, label=_band(found))
            axes.plot(bands["c"], bands[name], color=INK, label="surface")
            c = np.array([parabola.c for parabola in parabolas])
            n = np.array([parabola.n_star for parabola in parabolas])
            axes.plot(
                c, n if name == "n" else c / (6 * n), color=BLUE, marker="*", markersize=9, linestyle="none",
                label="minima of the parabolas",
            )  # fmt: skip
            if members:
                axes.plot(
                    [one["budget"] for one in members], [one["n" if name == "n" else "tokens"] for one in members],
                    color=ORANGE, marker="s", markersize=5, linestyle="none", label="family",
                )  # fmt: skip
            _logarithmic(axes.xaxis)
            _logarithmic(axes.yaxis)
            axes.set_xlabel("C = 6 N D, FLOPs")
            axes.set_title(label)
            axes.legend(loc="upper left")
    return to_svg(figure, title)


def residuals(grid: Sequence[Outcome], found: Analysis, title: str) -> str:
    """Measured over fitted, in percent of the loss, against N and against D."""
    budgets = sorted({outcome.trial.budget for outcome in grid})
    noise = found.result["noise_floor"]
    marks = _Marks()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, label in zip(panels, ("N, parameters", "D, tokens"), strict=True):
            axes.axhline(0, color=INK, linewidth=0.8)
            if noise is not None:
                width = 100 * 2 * noise["standard_deviation"] / noise["mean"]
                axes.axhspan(-width, width, color=PALE, label="two standard deviations of seeds")
            for one, residual in zip(grid, found.residual_P, strict=True):
                colour, _, marker = style_of(budgets, one.trial.budget)
                x = one.trial.n if label.startswith("N") else one.tokens
                marks.point(axes, one, x, 100 * residual, color=colour, marker=marker, markersize=5)
            _logarithmic(axes.xaxis)
            axes.set_xlabel(label)
        panels[0].set_ylabel("measured - fitted, % of loss")
        if noise is not None:
            panels[0].legend(loc="upper left")
    return to_svg(figure, title, marks.said)


def repeated(repeats: Sequence[Outcome], found: Analysis, title: str) -> str:
    """Loss against passes for each size and number of unique tokens: measured, fitted, and as if all were fresh."""
    from experiments.scaling.repeated import DataConstrained

    values = found.result["repeated"]
    model = DataConstrained(found.fitted, values["r_d"], values["r_n"], 0.0)
    uniques = sorted({outcome.trial.unique_tokens for outcome in repeats})
    marks = _Marks()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4))
        panels = np.atleast_1d(figure.subplots(1, len(uniques), sharey=True))
        for axes, unique in zip(panels, uniques, strict=True):
            here = [outcome for outcome in repeats if outcome.trial.unique_tokens == unique]
            for index, n in enumerate(sorted({outcome.trial.n for outcome in here})):
                colour, line, marker = SERIES[index % len(SERIES)]
                own = [outcome for outcome in here if outcome.trial.n == n]
                d = np.geomspace(unique, 1.3 * max(outcome.tokens for outcome in own), 60)
                axes.plot(d / unique, model.loss(np.array(n), d, np.full_like(d, unique)), color=colour, linestyle=line)
                axes.plot(
                    d / unique, found.fitted.loss(np.array(n), d), color=colour, linestyle=(0, (1, 3)), linewidth=1
                )
                for one in own:
                    marks.point(
                        axes, one, one.tokens / unique, one.loss, color=colour, marker=marker, markersize=6,
                        label=f"N = {n:,}" if one is own[0] else None,
                    )  # fmt: skip
            _logarithmic(axes.xaxis)
            axes.set_xlabel("passes over the data")
            axes.set_title(f"{unique:,} unique tokens")
        panels[0].set_ylabel("loss, nats/token")
        panels[-1].plot([], [], color=INK, label="data-constrained form")
        panels[-1].plot([], [], color=INK, linestyle=(0, (1, 3)), label="as if fresh")
        panels[-1].legend(loc="upper right")
    return to_svg(figure, title, marks.said)


def seconds(outcomes: Sequence[Outcome], title: str) -> str:
    """Measured against predicted wall time of every trial that had a prediction."""
    marks = _Marks()
    known = [outcome for outcome in outcomes if outcome.trial.seconds]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 2, 3.2))
        axes = figure.subplots()
        for one in known:
            marks.point(axes, one, one.trial.seconds or 1.0, one.seconds, color=BLUE, marker="o", markersize=4.5)
        ends = [o.seconds for o in known] + [o.trial.seconds or 1.0 for o in known]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=GREY, linestyle="--", linewidth=1)
        _logarithmic(axes.xaxis)
        _logarithmic(axes.yaxis)
        axes.set_xlabel("predicted seconds")
        axes.set_ylabel("measured seconds")
    return to_svg(figure, title, marks.said)
