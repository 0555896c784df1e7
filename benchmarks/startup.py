"""From the start of `cometjax.train` to its first finished step: with an empty compile cache, and with what that left.

    python -m benchmarks.startup

The demo's model on a small synthetic world, each start in a new process and a new workdir; the process is killed once
it has written the line of its first step. Cold and warm starts alternate. Also checks that both starts gave the same
loss, bit for bit. Under two minutes on two quiet CPU cores.

The last line is one JSON object; `ratio` is cold over warm. `cold` and `warm` say where the seconds went, by the causes
of docs/observability.md: `setup` is Python, imports, corpus, first batch and initial state (which is compiled too);
`compile` the step's tracing and compiling, or reading; `step` the first step itself, which no cache makes faster.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from cometjax import metrics
from data_pipeline import build_config
from data_pipeline.build import build_corpus
from data_pipeline.cache import VARIABLE
from data_pipeline.world import write_world

ROUNDS = 3
PATIENTS = 300
BAR = 3.0
_GIVE_UP_SECONDS = 600


def first_step(corpus: pathlib.Path, workdir: pathlib.Path, cache: pathlib.Path) -> tuple[float, dict[str, Any]]:
    """(seconds from the process's start to its first step's line, that line)."""
    command = [
        sys.executable, "-m", "cometjax.train", "--config=experiments/configs/demo.py", f"--workdir={workdir}",
        f"--config.corpus={corpus}", "--config.train.log_every=1",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment | {VARIABLE: str(cache)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while not (lines := metrics.read(workdir)):
            if process.poll() is not None or time.perf_counter() - began > _GIVE_UP_SECONDS:
                raise RuntimeError(f"no first step: {process.communicate()[1].decode()}")
            time.sleep(0.005)
        return time.perf_counter() - began, lines[0]
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Print the comparison."""
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        write_world(root / "meds", patients=PATIENTS, seed=1, shards=1)
        config = build_config.get_config()
        config.update(code_map="world", min_subjects_per_code=3, min_values_per_code=20)
        build_corpus(root / "meds", root / "corpus", config, workers=1)
        seconds: dict[str, list[float]] = {"cold": [], "warm": []}
        lines: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
        for i in range(ROUNDS):
            for start in seconds:
                spent, line = first_step(root / "corpus", root / f"{start}-{i}", root / f"cache-{i}")
                seconds[start].append(spent)
                lines[start].append(line)
                print(f"{start} start {i}: {spent:.2f} s", flush=True)
    ratio = statistics.median(seconds["cold"]) / statistics.median(seconds["warm"])
    causes = {
        start: {
            cause: round(statistics.median(line[f"seconds/{cause}"] for line in lines[start]), 2)
            for cause in ("setup", "compile", "step")
        }
        for start in seconds
    }
    print(
        json.dumps(
            {
                "benchmark": "startup",
                "cold_seconds": [round(spent, 2) for spent in seconds["cold"]],
                "warm_seconds": [round(spent, 2) for spent in seconds["warm"]],
                **causes,
                "ratio": round(ratio, 2),
                "bar": BAR,
                "passed": ratio >= BAR,
                "identical_loss": len({line["loss"] for each in lines.values() for line in each}) == 1,
            }
        )
    )


if __name__ == "__main__":
    main()
