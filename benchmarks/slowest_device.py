"""How much longer a step is because devices wait for the one whose rows cost most, with and without grouping.

    python -m benchmarks.slowest_device
    python -m benchmarks.slowest_device --corpus=runs/world/corpus --row_length=4096 --devices=2

Counted, not timed, so no accelerator is needed: the training batches of a corpus, or of records with log-normal lengths
as the paper's patients (1,280 tokens on average, sigma 1), are dealt to devices as training would, for each value of
`config.train.group_by_length`. A device's share costs the model's FLOPs (`cometjax.flops`); the longest share over the
mean is what the step waits. Kernels recompute scores, so a real step waits longer than that. Ten seconds on one core.
Prints one JSON object as its last line.
"""

import json
import pathlib

import numpy as np
from absl import flags

from cometjax import flops
from cometjax.model import ModelConfig
from cometjax.pod_run import PAPER_VOCABULARY
from data_pipeline import command_line, packing
from data_pipeline.corpus import Corpus
from data_pipeline.length_groups import attention_cost, places_of_steps
from data_pipeline.vocabulary import PREFIX_LENGTH
from experiments.configs import comet_l, comet_m, comet_s

RECORDS = 400_000
MODELS = {"S": comet_s, "M": comet_m, "L": comet_l}


def define_flags() -> None:
    """Flags of this command."""
    flags.DEFINE_string("corpus", "", "a build's folder; default: log-normal lengths")
    flags.DEFINE_integer("row_length", 8192, "positions in a row", lower_bound=16)
    flags.DEFINE_integer("devices", 64, "devices that share a step's rows", lower_bound=2)
    flags.DEFINE_list("rows", ["1", "2", "4"], "rows of a step on each device")
    flags.DEFINE_list("groups", ["0", "1", "4", "16"], "values of config.train.group_by_length")
    flags.DEFINE_integer("steps", 32, "steps that are looked at", lower_bound=1)


def record_lengths() -> np.ndarray:
    """Tokens of each record."""
    if flags.FLAGS.corpus:
        return Corpus.open(pathlib.Path(flags.FLAGS.corpus)).split("train").lengths_R
    lengths_R = np.random.default_rng(0).lognormal(np.log(1280) - 0.5, 1.0, RECORDS)
    return np.maximum(lengths_R, 8).astype(np.int64)


def costs_of_shares(plan: packing.PackingPlan, rows: int, devices: int, group: int, steps: int) -> np.ndarray:
    """Each step's sums of squared segment lengths by device, [steps, devices]."""
    places_of = places_of_steps(plan, rows * devices, group, seed=0)
    costs = [[attention_cost(plan.stream(place)) for place in places_of(step)] for step in range(steps)]
    return np.array(costs).reshape(steps, devices, rows).sum(axis=2)


def main() -> None:
    """Print a line for each number of rows and group, and the table as JSON."""
    f = flags.FLAGS
    plan = packing.plan(record_lengths(), row_length=f.row_length, prefix_length=PREFIX_LENGTH, seed=0)
    models = {name: ModelConfig.from_config(m.get_config().model, PAPER_VOCABULARY) for name, m in MODELS.items()}
    table = []
    print(f"{plan.num_rows:,} rows of {f.row_length:,}, {f.devices} devices: the slowest device's FLOPs over the mean")
    print(f"{'rows a device':>13}  {'group_by_length':>15}  {'attention':>9}  {'  '.join(f'step {n}' for n in models)}")
    for rows in map(int, f.rows):
        for group in map(int, f.groups):
            squared = costs_of_shares(plan, rows, f.devices, group, f.steps)
            tokens = rows * f.row_length
            row = {"rows": rows, "group_by_length": group, "attention": _waiting(squared)}
            for name, model in models.items():
                of_tokens = flops.train_flops(model, tokens=tokens, sum_segment_squared=0)
                row[name] = _waiting(of_tokens + squared * flops.train_flops(model, tokens=0, sum_segment_squared=1))
            table.append(row)
            steps = "  ".join(f"{row[name]:6.2f}" for name in models)
            print(f"{rows:>13}  {group:>15}  {row['attention']:>9.2f}  {steps}", flush=True)
    print(json.dumps({"devices": f.devices, "row_length": f.row_length, "table": table}))


def _waiting(costs_SxD: np.ndarray) -> float:
    return round(float(costs_SxD.max(axis=1).sum() / costs_SxD.mean(axis=1).sum()), 3)


if __name__ == "__main__":
    command_line.run(main, define_flags)
