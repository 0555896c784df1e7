"""The training step beside Hugging Face's Qwen2 on the same device: tokens/s, MFU by exact FLOPs, memory.

    python -m benchmarks.train_step                                 # CPU: 6M parameters, 8 rows of 512, float32
    python -m benchmarks.train_step --models=S,M,L                  # one GPU or TPU: packed rows of 8,192, and unpacked
    python -m benchmarks.train_step --models=L --attention=splash,pallas_tpu --rows=4
    PYTHONPATH=DIR python -m benchmarks.train_step                  # where torch and transformers lie in DIR

Each case is the whole step of cometjax.train (loss, gradients, clipping, AdamW, guard) on random tokens, in turn
with the rival's (on accelerators four steps a turn): the same model, batch and optimizer, PyTorch in a process of its
own. Without torch the rival is named as missing, and nothing else changes; one whose process ends is named as failed.
MFU counts the model's products exactly, attention as the sum of squared segment lengths (cometjax/flops.py), over the
device's dense bfloat16 peak. Prints one JSON object as its last line; `ratio` is tokens/s over the rival's in the first
case. About a minute on two CPU cores; on an accelerator two to three minutes for each case with its rival.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

# Before JAX starts: a rival on the same GPU needs memory too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import time

import jax
import numpy as np
from absl import flags

from benchmarks.attention import packed_segments, sum_segment_squared
from cometjax import attention, chips, config, cpu_devices, flops
from cometjax.compiled_step import make_compiled_steps
from cometjax.model import ModelConfig, num_parameters
from cometjax.sharding import make_mesh, put_batch
from cometjax.train_step import TokenTables
from data_pipeline import command_line
from experiments.configs import comet_l, comet_m, comet_s

# Steps of a turn on an accelerator, of which only the last is waited for: training waits no sooner (cometjax/train.py),
# and what the host does between steps is then the devices' wait no more, the rival's neither.
STEPS_AHEAD = 4
VOCABULARY = 7168  # the paper's 7,105, rounded up to whole lanes
MEAN_SEGMENT = 1280

Case = dict[str, Any]

ENDED = {"failed": "its process ended, for want of memory perhaps: what it said is above"}


class RivalEndedError(Exception):
    """The rival's process is no more."""


def define_flags() -> None:
    """Flags of this command."""
    flags.DEFINE_list("models", [], "of 6M, S, M, L; default: 6M on CPU, S,M,L on accelerators")
    flags.DEFINE_list("attention", ["auto"], "implementations, by name")
    flags.DEFINE_list("packing", [], "of packed, unpacked; default: unpacked for 6M, both for S, M, L")
    flags.DEFINE_integer("rows", 0, "rows in a batch; default: 8, for L 4", lower_bound=0)
    flags.DEFINE_string("remat", "", "remat policy; default: none for 6M and S, dots for M and L")
    flags.DEFINE_bool("scan_layers", None, "scan or unroll the layers; default: unroll 6M and on GPUs")
    flags.DEFINE_integer("steps", 7, "timed turns: a step on CPU, else 4; the median counts", lower_bound=1)
    flags.DEFINE_bool("rival", True, "run the rival where torch is installed")


def _configuration(name: str, values: Any) -> Any:
    cfg = {"6M": config.default_config, "S": comet_s.get_config, "M": comet_m.get_config, "L": comet_l.get_config}[
        name
    ]()
    small = name == "6M"
    unrolled = small or jax.default_backend() == "gpu"
    cfg.model.scan_layers = (not unrolled) if values.scan_layers is None else values.scan_layers
    cfg.model.remat = values.remat or ("dots" if name in ("M", "L") else "none")
    cfg.train.row_length = 512 if small else 8192
    cfg.train.batch_rows = values.rows or (4 if name == "L" else 8)
    return cfg


def _batch(rows: int, length: int, packed: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    tokens = random.integers(1, VOCABULARY, (rows, length + 1)).astype(np.int32)
    segment_ids_BxL = packed_segments(rows, length, MEAN_SEGMENT if packed else 0)
    begins_BxL = np.diff(segment_ids_BxL, axis=1, prepend=0) != 0
    at_L = np.arange(length, dtype=np.int32)
    return {
        "tokens_BxL": tokens[:, :-1],
        "targets_BxL": tokens[:, 1:],
        "segment_ids_BxL": segment_ids_BxL,
        "positions_BxL": at_L - np.maximum.accumulate(np.where(begins_BxL, at_L, 0), axis=1),
        "loss_weights_BxL": np.ones((rows, length), np.float32),
    }


@contextlib.contextmanager
def _rival(model: ModelConfig, batch: dict[str, np.ndarray]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(a function that makes so many steps and gives their figures, or None; what runs, or what is missing)."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        yield None, {"missing": f"{' and '.join(missing)}: pip install torch transformers"}
        return
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "batch.npz"
        np.savez(path, **batch)
        program = [sys.executable, "-m", "benchmarks._hf_qwen2"]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

            def ask(line: Any) -> Any:
                assert process.stdin is not None and process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    print(json.dumps(line), file=process.stdin, flush=True)
                answer = process.stdout.readline()
                if not answer:
                    raise RivalEndedError
                return json.loads(answer)

            length = batch["tokens_BxL"].shape[1]
            try:
                what = ask(dataclasses.asdict(model) | {"row_length": length, "batch": str(path)})
            except RivalEndedError:
                yield None, ENDED
                return
            try:
                yield ask, what
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()  # type: ignore[union-attr]


def _measure(name: str, implementation: str, packed: bool, values: Any) -> Case:
    cfg = _configuration(name, values)
    cfg.model.attention = implementation
    model = ModelConfig.from_config(cfg.model, VOCABULARY)
    rows, length = cfg.train.batch_rows, cfg.train.row_length
    numbers = _batch(rows, length, packed)
    # One accelerator, or all cores of a CPU, as training has them: the rival takes all cores too.
    on_cpu = jax.default_backend() == "cpu"
    mesh = make_mesh(cfg.mesh, cpu_devices.for_batch(cfg) if on_cpu else jax.devices()[:1])
    ahead = 1 if on_cpu else STEPS_AHEAD
    tables = TokenTables(np.zeros(VOCABULARY, np.int32), np.ones(VOCABULARY, bool))
    with jax.set_mesh(mesh), _rival(model, numbers) if values.rival else _no_rival() as (rival, rival_is):
        steps = make_compiled_steps(cfg, model, tables, mesh)
        compiled = steps.train.lower(steps.abstract_state, steps.abstract_batch).compile()
        memory = compiled.memory_analysis()
        ours, theirs, rival_figures = [], [], {}
        for index in range(values.steps + 2):  # two to warm up
            if rival is not None:
                try:
                    rival_figures = rival(ahead)
                except RivalEndedError:
                    rival, rival_is = None, ENDED
            if index == 0:  # the rival has its memory: XLA's allocator makes do with the rest, torch's would not
                state, batch = steps.init(), put_batch(mesh, numbers)
            began = time.perf_counter()
            for _ in range(ahead):
                state, metrics = compiled(state, batch)
            loss = float(metrics.loss)
            seconds = (time.perf_counter() - began) / ahead
            if index >= 2:
                ours.append(seconds)
                theirs.append(rival_figures.get("seconds", np.nan))
        resolved = attention.resolve(implementation, model.attention_heads)
    tokens, seconds = rows * length, float(np.median(ours))
    counted = flops.train_flops(
        model, tokens=tokens, sum_segment_squared=sum_segment_squared(numbers["segment_ids_BxL"])
    )
    peak = chips.peak_flops_per_second(jax.devices()[0].device_kind)
    in_use = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    case = {
        "model": name,
        "parameters": num_parameters(model),
        "attention": resolved,
        "packed": packed,
        "rows_x_length": [rows, length],
        "remat": model.remat,
        "dtype": model.compute_dtype,
        "loss": round(loss, 4),
        "ms": round(1e3 * seconds, 1),
        "tokens_per_s": round(tokens / seconds),
        "model_tflop_per_s": round(counted / seconds / 1e12, 4),
        "mfu": round(counted / seconds / peak, 4) if peak else None,
        "memory_GiB": round((in_use or memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 3),
        "rival": rival_is,
    }
    if rival is not None:
        rival_seconds = float(np.median(theirs))
        case["rival"] = rival_is | {"tokens_per_s": round(tokens / rival_seconds), **rival_figures}
        case["ratio"] = round(rival_seconds / seconds, 3)
    return case


@contextlib.contextmanager
def _no_rival() -> Iterator[tuple[None, dict[str, Any]]]:
    yield None, {"missing": "left out by --norival"}


def main() -> None:
    """Measure and print."""
    values = flags.FLAGS
    cpu_devices.show_cores()
    names = values.models or (["6M"] if jax.default_backend() == "cpu" else ["S", "M", "L"])
    cases = []
    for name in names:
        for packing in values.packing or (["unpacked"] if name == "6M" else ["packed", "unpacked"]):
            for implementation in values.attention:
                cases.append(_measure(name, implementation, packing == "packed", values))
                print(json.dumps(cases[-1]), flush=True)
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "cases": cases,
                "ratio": cases[0].get("ratio"),
            }
        )
    )


if __name__ == "__main__":
    command_line.run(main, define_flags)
