"""Plan a training run on a pod that is not here: does it fit, how fast, how long, what does it cost.

    python -m cometjax.plan --config experiments/configs/comet_l.py \\
        --topology v5p:4x4x4 --tokens 151e9 --price 4.2 --json plan.json

For a TPU topology the very step that training runs is compiled by the pod's own compiler (pip install -e '.[plan]';
no TPU is needed), which takes a minute or two. For GPUs, and with --nocompile, memory and speed are worked out from
shapes, and the output says so.

Topologies: v5e:16x16, v5p:4x4x4, v6e:8x8 and other shapes; several slices as 2xv5e:16x16; GPUs by number, as h100:64,
in hosts of eight. --search tries meshes, remat policies and batches, ranks those that fit, and compiles the best.

docs/planner.md explains each figure, docs/config.md every key of --config. The exit code is 1 when the run does
not fit.
"""

import json
import os
import pathlib
import sys

import jax
from absl import flags
from ml_collections import config_flags

from cometjax import chips, output_folder, plan_report, plan_search, pod_compiler, roofline
from cometjax.pod_run import PodRun, pod_run
from cometjax.roofline import Plan, analytic_plan
from data_pipeline import command_line
from data_pipeline.errors import UserError

__all__ = ["Plan", "analytic_plan", "plan"]

DOES_NOT_FIT_EXIT_CODE = 1
# Of a search's ranking: how many are compiled until one fits, and how many are shown.
COMPILED, SHOWN = 3, 12


def plan(run: PodRun, *, compiled: bool, budget: plan_report.Budget) -> dict[str, object]:
    """The report of one run as JSON-ready values; `compiled`: by the TPU's compiler, else from shapes alone."""
    step = pod_compiler.compile_step(run) if compiled else None
    return plan_report.report(run, roofline.plan_of(run, budget.mean_segment), step, budget)


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config(); single keys are overridden by --config.key=value"
    )
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("topology", None, "v5p:4x4x4, 2xv5e:16x16 (two slices), h100:64, ...", required=True)
    flags.DEFINE_string("json", None, "file to write the plan to")
    flags.DEFINE_float("tokens", None, "token budget: adds days, chip-hours and, with --price, money")
    flags.DEFINE_float("price", None, "of a chip for an hour")
    flags.DEFINE_float("mfu", None, "model FLOP utilization that you expect (0.4): adds time and cost at it")
    flags.DEFINE_float("mean_segment", roofline.PAPER_SEGMENT, "tokens of a patient, for the cost of attention")
    flags.DEFINE_boolean("compile", True, "compile for a TPU topology; --nocompile: from shapes alone")
    flags.DEFINE_boolean("search", False, "try meshes, remat policies, batches and microbatches")
    flags.DEFINE_list("batch_rows", [], "global batches that --search tries; default: config's, x2, x4, one row a chip")


def _budget() -> plan_report.Budget:
    values = flags.FLAGS
    for name, most in (("tokens", None), ("price", None), ("mfu", 1.0), ("mean_segment", None)):
        value = values[name].value
        if value is not None and not (0 < value < float("inf") and (most is None or value <= most)):
            raise UserError(f"{value} cannot be used", where=f"--{name}", fix="use a number above 0")
    for name in ("price", "mfu"):
        if values[name].value is not None and values.tokens is None:
            raise UserError("needs a budget", where=f"--{name}", fix="give --tokens too")
    return plan_report.Budget(values.tokens, values.price, values.mfu, values.mean_segment)


def _batch_rows() -> list[int]:
    try:
        rows = [int(value) for value in flags.FLAGS.batch_rows]
    except ValueError as error:
        raise UserError("is not a list of numbers", where="--batch_rows", fix="write 64,128") from error
    if any(value < 1 for value in rows):
        raise UserError("has a batch without rows", where="--batch_rows", fix="use 1 or more")
    return rows


def _planned(topology: chips.Topology, compiled: bool, budget: plan_report.Budget) -> dict[str, object]:
    values = flags.FLAGS
    if not values.search:
        if values.batch_rows:
            raise UserError(
                "needs --search",
                where="--batch_rows",
                fix="give --search too, or one batch, --config.train.batch_rows=N",
            )
        return plan(pod_run(values.config, topology), compiled=compiled, budget=budget)
    candidates = plan_search.search(values.config, topology, batch_rows=_batch_rows(), mean_segment=budget.mean_segment)
    print(plan_report.ranking_text(candidates[:SHOWN], len(candidates)), flush=True)
    ranking = plan_report.ranking(candidates)
    for candidate in candidates[:COMPILED]:
        best = plan(pod_run(candidate.config, topology), compiled=compiled, budget=budget)
        if plan_report.fits(best):
            break
        print(f"the compiler finds no room for {candidate.name}", flush=True)
    return best | {"search": ranking}


def _require_writable(file: pathlib.Path) -> None:
    """Raise UserError for what cannot become the file of the plan, before minutes go into one."""
    if file.is_dir() or not os.access(file if file.exists() else file.resolve().parent, os.W_OK):
        raise UserError("cannot be written", where=str(file), fix="give a file in a folder that is there, --json=FILE")


def main() -> None:
    """Plan as the flags say."""
    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and no accelerator is to be taken
    budget = _budget()
    topology = chips.parse_topology(values.topology)
    compiled = values.compile and topology.chip.platform == "tpu"
    if compiled:
        pod_compiler.require_libtpu()
    if values.json:
        _require_writable(pathlib.Path(values.json))
    found = _planned(topology, compiled, budget)
    print(plan_report.text(found))
    if values.json:
        output_folder.write_file(pathlib.Path(values.json), json.dumps(found, indent=2) + "\n")
    if not plan_report.fits(found):
        sys.exit(DOES_NOT_FIT_EXIT_CODE)


if __name__ == "__main__":
    command_line.run(main, _define_flags)
