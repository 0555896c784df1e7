"""Reasons to refuse a fit: each gate is passed or it says why not, and no family is made past a closed one."""

import dataclasses
from collections.abc import Sequence

from experiments.scaling.frontier import MIN_SIZES, IsoFlops, Parabola
from experiments.scaling.uncertainty import HoldOut

MIN_BUDGETS = 3
MAX_HOLD_OUT_ERROR = 0.01  # of the loss; the published fit of arXiv 2404.10102 predicts tenfold compute within 0.9%


@dataclasses.dataclass(frozen=True)
class Gate:
    """One condition; `reason` says what was found, in words that stand alone."""

    name: str
    passed: bool
    reason: str


def check(isoflops: IsoFlops, hold_out: HoldOut | None, max_error: float = MAX_HOLD_OUT_ERROR) -> list[Gate]:
    """All gates, in the order in which an engineer would look into them."""
    enough = [p for p in isoflops.parabolas if p.sizes >= MIN_SIZES]
    bent = [p for p in enough if not p.curvature > 0]
    edge = [p for p in enough if p.curvature > 0 and p.refusal]
    few = len(isoflops.parabolas) - len(enough)
    sizes = f"{len(enough)} budgets have {MIN_SIZES} sizes or more"
    sizes += f", {few} have fewer and are left out" if few else ""
    # Whatever is foretold beyond the largest budget would rest on smaller ones than were paid for.
    largest = max(isoflops.parabolas, key=lambda parabola: parabola.c)
    lacks_largest = largest.sizes < MIN_SIZES
    sizes += f", the largest, C = {_list([largest])}, among them" if lacks_largest else ""
    curvature = "all parabolas open upwards"
    if bent:
        curvature = f"no minimum at C = {_list(bent)}: the parabola opens downwards"
    interior = "all minima lie between the sizes tried"
    if edge:
        interior = f"at C = {_list(edge)} the minimum lies beyond the sizes tried: widen the grid there"
    return [
        Gate("sizes", bool(enough) and not lacks_largest, sizes),
        Gate("budgets", len(enough) >= MIN_BUDGETS, f"{len(enough)} budgets can be used, {MIN_BUDGETS} are needed"),
        Gate("curvature", not bent, curvature),
        Gate("interior minimum", not edge, interior),
        _hold_out_gate(hold_out, max_error),
    ]


def _hold_out_gate(hold_out: HoldOut | None, max_error: float) -> Gate:
    if hold_out is None:
        return Gate("hold-out", False, "no runs can be held out: there are too few budgets")
    reason = (
        f"{hold_out.held_out_runs} runs with {hold_out.held_out} are predicted from the {hold_out.fitted_runs} others "
        f"with a mean error of {hold_out.error:.2%} of the loss, {max_error:.2%} is allowed"
    )
    return Gate("hold-out", hold_out.error <= max_error, reason)


def _list(parabolas: Sequence[Parabola]) -> str:
    return ", ".join(f"{parabola.c:.2g}" for parabola in parabolas)
