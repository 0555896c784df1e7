"""A process that runs trials one after another, so that starting Python and JAX is paid once.

Not for hands: `experiments.scaling.local` starts it, writes a trial's name on its standard input and reads a line of
JSON for each from its standard output. When the input ends, because the launcher is done or was killed, it leaves at
once; what a trial has not saved by then it does again when the study is continued.

    python -m experiments.scaling.worker --plan=PLAN --workdir=DIR --core=0
"""

import argparse
import json
import os
import pathlib
import queue
import sys
import threading
import time


def _read_names(names: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        names.put(line.strip())
    os._exit(0)


def main() -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--core", type=int, default=-1)
    arguments = parser.parse_args()
    # Before JAX is imported: it makes as many threads as it sees cores. Two trials on a core each are faster than one
    # on two, for the matrices of a small model do not divide well.
    if arguments.core >= 0 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[arguments.core % len(cores)]})
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    names: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_names, args=(names,), daemon=True).start()

    import jax
    from absl import logging

    from cometjax import cpu_devices
    from data_pipeline.errors import UserError
    from experiments.scaling import trials
    from experiments.scaling.plan import Plan

    # One device for a worker with a core of its own; all cores for one that is alone.
    cpu_devices.show_cores()
    logging.set_verbosity(logging.WARNING)
    # Trials of one shape share their initialisation and evaluation; only the training step holds its own schedule.
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(arguments.workdir).resolve() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    plan = Plan.load(pathlib.Path(arguments.plan))
    by_name = {trial.name: trial for trial in plan.trials}
    while True:
        name = names.get()
        start = time.perf_counter()
        answer: dict[str, object] = {"trial": name}
        try:
            answer["loss"] = trials.run(plan, by_name[name], pathlib.Path(arguments.workdir))
        except UserError as error:
            answer["error"] = str(error)
        print(json.dumps(answer | {"seconds": time.perf_counter() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
