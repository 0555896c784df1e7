"""The analytic memory model against the TPU compiler's own figures, on seven runs.

    python -m benchmarks.plan_memory

Compiles each run's train step (libtpu, extra `plan`; no TPU), a minute or more apiece on two CPU cores, and
prints what a chip needs by the model, by the compiler, and their ratio. Prints one JSON object as its last line.
"""

import json

import jax

from cometjax import memory_model, pod_compiler
from cometjax.chips import GiB, parse_topology
from cometjax.pod_run import pod_run
from data_pipeline.errors import UserError
from experiments.configs import comet_l, comet_m, comet_s

BAR = 0.15
SHORT_ROWS = {"model.layers": 12, "model.vocab_size": 1024, "train.batch_rows": 16, "train.row_length": 512}
RUNS = (
    ("comet_s none", comet_s, "v5p:2x2x2", {}),
    ("comet_m dots", comet_m, "v5e:4x4", {}),
    ("comet_l full", comet_l, "v5p:4x4x4", {}),
    ("comet_l full, tensor 4", comet_l, "v5e:16x16", {"mesh.tensor": 4}),
    ("comet_l full, two slices", comet_l, "2xv5e:8x8", {"mesh.slices": 2, "mesh.data": 2, "train.batch_rows": 128}),
    ("12 layers none, short rows", comet_l, "v5p:2x2x4", {"model.remat": "none"} | SHORT_ROWS),
    ("12 layers dots, short rows", comet_l, "v5p:2x2x4", {"model.remat": "dots"} | SHORT_ROWS),
)


def main() -> None:
    """Compile, compare and print."""
    jax.config.update("jax_platforms", "cpu")
    try:
        pod_compiler.require_libtpu()
    except UserError as error:
        print(json.dumps({"benchmark": "plan_memory", "skipped": str(error)}))
        return
    rows = []
    for name, config_file, topology, changes in RUNS:
        config = config_file.get_config()
        config.model.vocab_size = 7105
        config.update_from_flattened_dict(changes)
        run = pod_run(config, parse_topology(topology))
        analytic, step = memory_model.chip_memory(run).total, pod_compiler.compile_step(run)
        ratio = analytic / step.total_bytes
        rows.append({"run": name, "topology": topology, "compiler_bytes": step.total_bytes, "analytic_bytes": analytic,
                     "ratio": round(ratio, 4), "compile_seconds": round(step.seconds, 1)})  # fmt: skip
        print(
            f"{name:26} {topology:10} compiler {step.total_bytes / GiB:7.2f} GiB   analytic {analytic / GiB:7.2f} GiB"
            f"   ratio {ratio:.3f}   compiled in {step.seconds:.0f} s",
            flush=True,
        )
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(json.dumps({"benchmark": "plan_memory", "runs": rows, "worst": worst, "bar": BAR, "passed": worst <= BAR}))


if __name__ == "__main__":
    main()
