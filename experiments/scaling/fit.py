"""Fit scaling laws to a table of training runs, by three approaches, with intervals, hold-outs and gates.

    python -m experiments.scaling.fit --points FILE --n 'Model Size' \\
        --c 'Training FLOP' --loss loss --drop_highest 5 --bootstrap 1000 \\
        --out fit.json

FILE is CSV with a header, or JSON lines. Approach 1 is the lower envelope, approach 2 isoFLOP parabolas, approach 3 the
surface L = E + A / N^alpha + B / D^beta (arXiv 2203.15556), fitted by summed Huber loss (arXiv 2404.10102) and by
variable projection. Prints what was found and writes it to --out. A closed gate says REFUSED and why: then the fit
describes the runs, and no compute-optimal size should be read off it. Each figure is explained in docs/scaling.md.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from data_pipeline import command_line
from data_pipeline.errors import UserError
from experiments.scaling import frontier, gates, points, surface, uncertainty


def fit(
    runs: points.Points,
    *,
    delta: float = surface.DELTA,
    digits: int = 1,
    replicates: int = 0,
    confidence: float = 0.95,
    hold_out_above: float | None = None,
    max_hold_out_error: float = gates.MAX_HOLD_OUT_ERROR,
    seed: int = 0,
    sensitivity: bool = True,
    surfaces: Sequence[surface.Surface] | None = None,
) -> dict[str, Any]:
    """Everything that `fit.json` holds, as nested dictionaries of numbers and words.

    Args:
        runs: six training runs or more.
        delta: of the Huber loss.
        digits: significant digits to which C is rounded to find the runs of one budget.
        replicates: of the bootstrap; 0 leaves the intervals out.
        confidence: of the intervals.
        hold_out_above: compute from which on runs are held out; None = the largest budget of five sizes.
        max_hold_out_error: bound of the hold-out gate.
        seed: of the bootstrap.
        sensitivity: whether to refit with other deltas and without the highest losses.
        surfaces: the bootstrap's replicates, where the caller has them already.

    Raises UserError where there are too few runs for five parameters.
    """
    if len(runs) <= len(uncertainty.PARAMETERS):
        raise UserError(f"{len(runs)} runs are too few for five parameters", where="--points")
    iso = frontier.isoflops(runs, digits)
    huber = surface.fit_huber(runs, delta=delta)
    above = _largest_budget(iso) if hold_out_above is None else hold_out_above
    hold_out = None if above is None else uncertainty.hold_out_above(runs, above, delta)
    checks = gates.check(iso, hold_out, max_hold_out_error)
    result: dict[str, Any] = {
        "runs": len(runs),
        "c_range": [float(runs.c_P.min()), float(runs.c_P.max())],
        **_approaches(runs, iso, huber, delta, digits),
        "holdout": {
            "largest": None if hold_out is None else dataclasses.asdict(hold_out),
            "by_budget": [dataclasses.asdict(h) for h in uncertainty.leave_one_budget_out(runs, digits, delta)],
        },
        "gates": [dataclasses.asdict(gate) for gate in checks],
        "refused": [gate.reason for gate in checks if not gate.passed],
    }
    if surfaces is None and replicates:
        surfaces = uncertainty.bootstrap(runs, huber, replicates=replicates, seed=seed, delta=delta)
    if surfaces:
        found = uncertainty.intervals(surfaces, confidence)
        result["approach3"]["intervals"] = {name: dataclasses.asdict(interval) for name, interval in found.items()}
        result["bootstrap"] = {"replicates": len(surfaces), "seed": seed, "confidence": confidence}
    if sensitivity:
        result["sensitivity"] = {
            "delta": {key: _surface(value) for key, value in uncertainty.by_delta(runs).items()},
            "dropped": {key: _surface(value) for key, value in uncertainty.by_dropped(runs, 8, delta).items()},
        }
    return result


def _approaches(
    runs: points.Points, iso: frontier.IsoFlops, huber: surface.Surface, delta: float, digits: int
) -> dict[str, dict[str, Any]]:
    envelope = frontier.lower_envelope(runs)
    return {
        "approach1": {"runs": envelope.runs, **_law(envelope.law)},
        "approach2": {
            "budgets": [dataclasses.asdict(parabola) for parabola in iso.parabolas],
            **_law(iso.law),
            "exponent_bias": exponent_bias(runs, huber, digits),
        },
        "approach3": {"huber": _surface(huber) | {"delta": delta}, "varpro": _surface(surface.fit_varpro(runs))},
    }


def exponent_bias(runs: points.Points, fitted: surface.Surface, digits: int) -> float | None:
    """What approach 2 would get wrong on these very runs, were the fitted surface exactly true.

    Parabolas through an asymmetric valley, on a grid that is off its centre, find minima that are off too. The bias is
    the exponent a that approach 2 finds on the surface's own losses, minus the surface's a; None where it finds none.
    """
    law = frontier.isoflops(runs.with_loss(fitted.loss(runs.n_P, runs.d_P)), digits).law
    return None if law is None else law.exponent - fitted.n_exponent


def _largest_budget(iso: frontier.IsoFlops) -> float | None:
    full = [p for p in iso.parabolas if p.sizes >= frontier.MIN_SIZES]
    # Half a budget below: the runs of one budget differ a little in C.
    return float(np.sqrt(full[-1].c * full[-2].c)) if len(full) > 1 else None


def _law(law: frontier.PowerLaw | None) -> dict[str, float | None]:
    if law is None:
        return {"n_coefficient": None, "n_exponent": None, "d_exponent": None}
    return {"n_coefficient": law.coefficient, "n_exponent": law.exponent, "d_exponent": 1 - law.exponent}


def _surface(fitted: surface.Surface) -> dict[str, float]:
    return dataclasses.asdict(fitted) | {"n_exponent": fitted.n_exponent}


def describe(result: dict[str, Any]) -> str:
    """The result as a page for a terminal."""
    huber, varpro = result["approach3"]["huber"], result["approach3"]["varpro"]
    found = result["approach3"].get("intervals", {})
    low, high = result["c_range"]
    lines = [f"{result['runs']} runs, C from {low:.3g} to {high:.3g} FLOPs", ""]
    lines.append(f"{'L = E + A/N^alpha + B/D^beta':30}{'Huber':>12}{'least squares':>16}   bootstrap interval")
    for name in uncertainty.PARAMETERS:
        label = "a, of N* = k C^a" if name == "n_exponent" else name
        interval = f"   {found[name]['low']:#.5g} to {found[name]['high']:#.5g}" if found else ""
        lines.append(f"  {label:28}{huber[name]:>#12.5g}{varpro[name]:>#16.5g}{interval}")
    lines.append("")
    for title, key in (("lower envelope", "approach1"), ("isoFLOP parabolas", "approach2")):
        exponent = result[key]["n_exponent"]
        lines.append(f"  a by {title:23}" + ("     none" if exponent is None else f"{exponent:>#12.5g}"))
    bias = result["approach2"]["exponent_bias"]
    if bias is not None:
        lines.append(f"  bias of the parabolas on this grid, if the surface is true: {bias:+.4f}")
    lines.append("")
    for gate in result["gates"]:
        lines.append(f"  {'passed ' if gate['passed'] else 'REFUSED'}  {gate['name']}: {gate['reason']}")
    return "\n".join(lines)


def _define_flags() -> None:
    flags.DEFINE_string("points", None, "table of runs: .csv with a header, or .jsonl", required=True)
    flags.DEFINE_string("out", None, "file to write the result to, as JSON", required=True)
    flags.DEFINE_string("n", "n", "column of the number of parameters")
    flags.DEFINE_string("loss", "loss", "column of the final loss, nats per token")
    flags.DEFINE_string("d", None, "column of the training tokens (default: C / 6N)")
    flags.DEFINE_string("c", None, "column of the training FLOPs (default: 6ND)")
    flags.DEFINE_string("weight", None, "column of the runs' weights (default: all equal)")
    flags.DEFINE_integer("drop_highest", 0, "leave out this many runs of highest loss", lower_bound=0)
    flags.DEFINE_float("delta", surface.DELTA, "of the Huber loss, in log-loss", lower_bound=1e-9)
    flags.DEFINE_integer("isoflop_digits", 1, "significant digits of C that make one budget", lower_bound=1)
    flags.DEFINE_integer("bootstrap", 0, "replicates; 0 = no intervals", lower_bound=0)
    flags.DEFINE_float("confidence", 0.95, "of the intervals", lower_bound=0.5, upper_bound=0.999)
    flags.DEFINE_float("holdout_above", None, "hold out the runs of this compute and more (default: largest budget)")
    flags.DEFINE_float("max_holdout_error", gates.MAX_HOLD_OUT_ERROR, "relative error that the hold-out gate allows")
    flags.DEFINE_integer("seed", 0, "of the bootstrap", lower_bound=0, upper_bound=2**32 - 1)


def main() -> None:
    """Fit as the flags say."""
    values = flags.FLAGS
    start = time.perf_counter()
    runs = points.load(
        pathlib.Path(values.points), n=values.n, loss=values.loss, d=values.d, c=values.c, weight=values.weight,
        drop_highest=values.drop_highest,
    )  # fmt: skip
    result = fit(
        runs, delta=values.delta, digits=values.isoflop_digits, replicates=values.bootstrap,
        confidence=values.confidence, hold_out_above=values.holdout_above,
        max_hold_out_error=values.max_holdout_error, seed=values.seed,
    )  # fmt: skip
    out = pathlib.Path(values.out)
    temporary = out.with_name(out.name + ".tmp")
    try:
        temporary.write_text(json.dumps(finite(result), indent=1, allow_nan=False) + "\n")
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(out)) from error
    print(describe(result))
    print(f"\n{out}, {time.perf_counter() - start:.1f} s")


def finite(value: Any) -> Any:
    """JSON has no NaN: what could not be computed is null."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    command_line.run(main, _define_flags)
