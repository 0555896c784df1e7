"""Compute-optimal families: what to train with so much compute, as a configuration that `cometjax.train` runs.

    python -m experiments.scaling.family --family runs/scaling/family.json \\
        --topology v5p:4x8x8 --days 7 --out week.py
    python -m experiments.scaling.family --family comet --topology v5p:4x8x8 \\
        --days 7 --out week.py

A family is a law N* = k C^a with a recipe; its members stand at chosen budgets. `comet` is the law that CoMET's paper
reports. "This pod for so long" is answered by the planner: the largest budget whose compute-optimal model, rounded to
a real shape, trains in that time at the utilization given.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from cometjax import workdir as workdirs
from cometjax.chips import parse_topology
from cometjax.roofline import analytic_plan
from data_pipeline import command_line
from data_pipeline.errors import UserError
from experiments.scaling.analysis import Analysis
from experiments.scaling.corpora import Data
from experiments.scaling.plan import Plan, apply, number_name
from experiments.scaling.points import FLOPS_PER_PARAMETER_AND_TOKEN
from experiments.scaling.recipe import LearningRate, Recipe

COMET = "comet"
# A fit may not know what is thousands of times larger than what it saw.
FAR = 100.0
MFU = 0.4  # of the chips' peak: between the best published for such models (0.38) and what is aimed at (0.5)


@dataclasses.dataclass(frozen=True)
class Law:
    """N* = coefficient * C^exponent, from runs of at most `largest` FLOPs (6 N D)."""

    coefficient: float
    exponent: float
    largest: float

    def size(self, c: float) -> float:
        """N* at compute C."""
        return self.coefficient * c**self.exponent


def make(found: Analysis, recipe: Recipe, data: Data, plan: Plan, config: Any) -> dict[str, Any]:
    """family.json of a study: its law, its recipe, and members at `config.family.factors` of the largest budget."""
    largest = max(config.grid.budgets)
    fitted = found.fitted
    made: dict[str, Any] = {
        "name": config.name,
        "law": dataclasses.asdict(Law(float(fitted.optimum(np.array(1.0))[0]), fitted.n_exponent, largest)),
        "recipe": dataclasses.asdict(recipe),
        "vocab_size": data.vocab_size,
        "targets_per_row": data.full.targets_per_row,
        "segment_tokens": data.full.segment_squares_per_row / data.full.positions_per_row,
        "base": dict(plan.base),
        "members": [],
    }
    for factor in config.family.factors:
        one = member(made, factor * largest)
        n_star, d_star = fitted.optimum(np.array(factor * largest))
        foretold = found.predict(one["n"], one["tokens"], confidence=config.fit.confidence)
        one |= {"n_star": float(n_star), "d_star": float(d_star), "predicted_loss": dataclasses.asdict(foretold)}
        topology = config.family.topology
        one["pod"] = on_pod(made, one["overrides"], topology) if topology else None
        made["members"].append(one)
    return made


def member(family: Mapping[str, Any], budget: float, *, chips: int = 1) -> dict[str, Any]:
    """The compute-optimal model of a budget as a real shape, its tokens and its overrides.

    `family` needs no members yet. Batch rows are rounded to a multiple of `chips`, at least one each.
    """
    law, recipe, vocab_size = _law(family), _recipe(family), family["vocab_size"]
    tied = family["base"]["model"]["tied_embeddings"]
    shape = recipe.nearest(law.size(budget), vocab_size, tied=tied)
    n = shape.parameters(vocab_size, tied=tied)
    tokens = budget / (FLOPS_PER_PARAMETER_AND_TOKEN * n)
    rows = chips * max(1, round(recipe.rows(tokens) / chips))
    steps = max(2, round(tokens / (rows * family["targets_per_row"])))
    return {
        "name": number_name(budget),
        "budget": budget,
        "shape": dataclasses.asdict(shape),
        "n": n,
        "n_without_embeddings": shape.parameters_without_embeddings(),
        "tokens": tokens,
        "tokens_per_parameter": tokens / n,
        "steps": steps,
        "batch_rows": rows,
        "learning_rate": recipe.learning_rate(n, tokens),
        "times_largest": budget / law.largest,
        "overrides": recipe.overrides(shape, n=n, steps=steps, rows=rows, tokens=tokens, seed=0),
    }


def on_pod(family: Mapping[str, Any], overrides: Mapping[str, Any], topology: str) -> dict[str, Any]:
    """Chip-hours on a pod by the planner's analytic model; `refused` says why, where it cannot run there."""
    config = _for_accelerators(apply(family["base"], overrides))
    try:
        planned = analytic_plan(config, topology, family["segment_tokens"])
    except UserError as error:
        return {"topology": topology, "refused": str(error)}
    mfu = min(MFU, planned.mfu_bound)
    return {
        "topology": topology,
        "chips": planned.chips,
        "fits": planned.fits,
        "mfu": mfu,
        "mfu_bound": planned.mfu_bound,
        "hours": planned.hours(_positions(config), mfu),
        "chip_hours": planned.chip_hours(_positions(config), mfu),
    }


def for_time(
    family: Mapping[str, Any], topology: str, hours: float, *, mfu: float = MFU
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(member, pod): the largest budget that the pod trains in `hours`, by bisection on log C.

    Raises UserError where even the smallest shape does not run on the pod.
    """
    chips = parse_topology(topology).chips

    def at(log_c: float) -> tuple[float, dict[str, Any], Any]:
        one = member(family, math.exp(log_c), chips=chips)
        config = _for_accelerators(apply(family["base"], one["overrides"]))
        planned = analytic_plan(config, topology, family["segment_tokens"])
        return planned.hours(_positions(config), min(mfu, planned.mfu_bound)), one, planned

    low, high = math.log(1e12), math.log(1e28)
    for _ in range(22):  # to a part in 100,000
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] <= hours else (low, middle)
    took, one, planned = at(low)
    if took > hours:
        raise UserError(f"{hours:g} hours are too short for the smallest model", where="--days")
    used = min(mfu, planned.mfu_bound)
    pod = {
        "topology": topology, "chips": planned.chips, "fits": planned.fits, "mfu": used, "mfu_bound": planned.mfu_bound,
        "hours": took, "chip_hours": took * planned.chips,
    }  # fmt: skip
    return one, pod


def config_of(family: Mapping[str, Any], one: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The training configuration of a member."""
    config = apply(family["base"], one["overrides"])
    config.corpus, config.model.vocab_size = "", 0  # the user's corpus, and its own vocabulary
    # A trial is evaluated once and logged sixty times, however long it is.
    config.train.log_every = family["base"]["train"]["log_every"]
    config.train.eval_every = max(1, config.train.steps // 20)
    config.train.checkpoint_every = max(1, min(config.train.steps // 4, 1000))
    config.train.keep_checkpoints = 2
    return config


def find(family: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    """The member of that name, or a new one at the budget that `wanted` says in FLOPs; raises UserError for neither."""
    for one in family["members"]:
        if one["name"] == wanted:
            return dict(one)
    try:
        budget = float(wanted)
    except ValueError:
        budget = math.nan
    if not (math.isfinite(budget) and budget > 0):
        names = ", ".join(one["name"] for one in family["members"])
        raise UserError(
            f"{wanted!r} is neither a member nor a budget", where="family", fix=f"use {names}, or FLOPs as in 1e20"
        )
    return member(family, budget)


def load(name: str) -> dict[str, Any]:
    """The family in a family.json, or `comet`. Raises UserError where there is none, or an earlier version's."""
    if name == COMET:
        from experiments.configs import comet_family  # its configurations import this package

        return comet_family.family()
    path = pathlib.Path(name)
    if not path.exists():
        raise UserError(
            "no such file",
            where=name,
            fix="run a study to its end (a closed gate leaves no family, see its report), or use comet",
        )
    family = workdirs.read_json(path)
    if missing := {"targets_per_row", "segment_tokens"} - family.keys():
        raise UserError(
            f"does not say what a row holds ({', '.join(sorted(missing))})",
            where=name,
            fix="an earlier version wrote it: start its study again with --report",
        )
    return family


def config_file(family: Mapping[str, Any], one: Mapping[str, Any], pod: Mapping[str, Any] | None, source: str) -> str:
    """The text of a configuration file for a member."""
    lines = [
        f'"""{one["n"]:,} parameters, {one["tokens"]:.3g} tokens: compute-optimal for {one["budget"]:.3g} FLOPs (6ND).',
        "",
        "    python -m cometjax.train --config THIS_FILE --workdir DIR --config.corpus=CORPUS",
        "",
        f"From {source}, N* = {family['law']['coefficient']:.4g} C^{family['law']['exponent']:.4f}. "
        f"{one['tokens_per_parameter']:.0f} tokens a parameter.",
    ]
    if pod is not None and "refused" not in pod:
        lines.append(
            f"On {pod['topology']}: {pod['hours']:.0f} hours, {pod['chip_hours']:,.0f} chip-hours at {pod['mfu']:.0%} "
            f"of peak (at most {pod['mfu_bound']:.0%}); {'fits' if pod['fits'] else 'DOES NOT FIT'} in memory."
        )
    lines += [*warnings(family, one), '"""', "", "import json", "", "import ml_collections", "", "CONFIG = json.loads("]
    lines += ['    r"""', json.dumps(config_of(family, one).to_dict(), indent=1), '"""', ")", "", ""]
    lines += ["def get_config() -> ml_collections.ConfigDict:", '    """The configuration."""']
    return "\n".join([*lines, "    return ml_collections.ConfigDict(CONFIG).lock()", ""])


def warnings(family: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    """What stands between a member and the runs that the law comes from, in words."""
    times = one["budget"] / family["law"]["largest"]
    if times <= FAR:
        return []
    return [
        f"WARNING: {times:.2g} times the largest run that the law was fitted to; "
        "sweep nearer to it before you book a pod."
    ]


def _law(family: Mapping[str, Any]) -> Law:
    return Law(**family["law"])


def _recipe(family: Mapping[str, Any]) -> Recipe:
    values = dict(family["recipe"])
    return Recipe(**(values | {"learning_rate": LearningRate(**values["learning_rate"])}))


def _positions(config: ml_collections.ConfigDict) -> int:
    """Of a whole training, targets or not: what chips compute on."""
    return int(config.train.steps * config.train.batch_rows * config.train.row_length)


def _for_accelerators(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.model.compute_dtype = "bfloat16"  # by name: "auto" would start JAX's devices
    return config


def _define_flags() -> None:
    flags.DEFINE_string("family", "runs/scaling/family.json", "a study's family.json, or comet")
    flags.DEFINE_string("topology", None, "the pod, as in v5p:4x8x8", required=True)
    flags.DEFINE_float("days", 7.0, "how long it is yours", lower_bound=1e-3)
    flags.DEFINE_float("mfu", MFU, "utilization of the chips' peak to plan with", lower_bound=0.01, upper_bound=1.0)
    flags.DEFINE_string("out", None, "configuration file to write", required=True)


def main() -> None:
    """Answer what the flags ask."""
    values = flags.FLAGS
    family = load(values.family)
    one, pod = for_time(family, values.topology, 24 * values.days, mfu=values.mfu)
    out = pathlib.Path(values.out)
    try:
        workdirs.write_text(out, config_file(family, one, pod, f"{family['name']} ({values.family})"))
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(out)) from error
    shape = one["shape"]
    print(f"{one['n']:,} parameters ({shape['layers']} layers, width {shape['width']}), {one['tokens']:.3g} tokens,")
    print(f"{one['budget']:.3g} FLOPs, learning rate {one['learning_rate']:.3g}, {one['batch_rows']} rows a step")
    print(
        f"{pod['topology']}: {pod['chips']} chips, {pod['hours']:.0f} hours, {pod['chip_hours']:,.0f} chip-hours at "
        f"{pod['mfu']:.0%} of peak" + ("" if pod["fits"] else "; DOES NOT FIT in memory: shard it (config.mesh)")
    )
    for warning in warnings(family, one):
        print(warning)
    print(f"{out}: python -m cometjax.train --config {out} --workdir DIR --config.corpus=CORPUS")


if __name__ == "__main__":
    command_line.run(main, _define_flags)
