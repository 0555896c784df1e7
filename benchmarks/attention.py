"""Packed causal attention: every implementation that runs here, beside the reference on the same rows.

    python -m benchmarks.attention
    python -m benchmarks.attention --heads=32 --kv_heads=32 --rows=2 --blocks=64,128    # CoMET-L's layer, on a GPU
    python -m benchmarks.attention --heads=16 --kv_heads=8 --head_dim=128 --blocks=256,512,1024    # on a TPU

Rows of 8,192 hold segments of 1,280 tokens on average (log-normal), as the paper's patients. For each implementation:
forward, and forward and backward, in milliseconds; model FLOP/s over the causal pairs of the segments only; temporary
memory; the largest difference of output and gradients from the reference's, over the largest value. On GPU cuDNN's
causal attention over whole rows stands beside, which ignores segments: what skipping must beat. Prints one JSON object
as its last line; `ratio` is the reference's time over the default's, forward and backward. Two minutes on two CPU
cores, less than eight on an accelerator.
"""

import functools
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cometjax import attention, packed
from data_pipeline import command_line

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def define_flags() -> None:
    """Flags of this command."""
    flags.DEFINE_integer("rows", 1, "rows in a batch", lower_bound=1)
    flags.DEFINE_integer("row_length", 8192, "positions in a row", lower_bound=16)
    flags.DEFINE_integer("mean_segment", 1280, "mean tokens of a segment; 0: a row is one segment", lower_bound=0)
    flags.DEFINE_integer("heads", 4, "query heads", lower_bound=1)
    flags.DEFINE_integer("kv_heads", 4, "key/value heads", lower_bound=1)
    flags.DEFINE_integer("head_dim", 64, "width of a head", lower_bound=2)
    flags.DEFINE_string("dtype", "", "of the inputs; default: bfloat16 on accelerators, float32 on CPU")
    flags.DEFINE_list("blocks", [], "also try the Pallas kernel with these positions in a block")
    flags.DEFINE_integer("repeats", 5, "timed calls; the median counts", lower_bound=1)


def packed_segments(rows: int, length: int, mean: int, seed: int = 0) -> np.ndarray:
    """segment_ids_BxL of full rows: segments of log-normal lengths (sigma 1), the last of a row cut; mean 0: one."""
    random = np.random.default_rng(seed)
    segment_ids_BxL = np.ones((rows, length), np.int32)
    for row in segment_ids_BxL if mean else ():
        at, segment = 0, 1
        while at < length:
            size = max(8, int(random.lognormal(np.log(mean) - 0.5, 1.0)))
            row[at : at + size] = segment
            at, segment = at + size, segment + 1
    return segment_ids_BxL


def sum_segment_squared(segment_ids_BxL: np.ndarray) -> int:
    """Sum over the segments of all rows (not padding) of their squared length."""
    counts = [np.unique(row[row > 0], return_counts=True)[1].astype(np.int64) for row in segment_ids_BxL]
    return int(sum(np.sum(count**2) for count in counts))


def _implementations(segment_ids_BxL: jax.Array, heads: attention.Heads, blocks: list[int]) -> dict[str, Attend]:
    def by_name(name: str) -> Attend:
        return lambda q, k, v: attention.attention(q, k, v, segment_ids_BxL=segment_ids_BxL, implementation=name)

    found = {name: by_name(name) for name in attention.available_implementations(heads)}
    kernels = {"pallas_tpu": packed.pallas_tpu_attention, "pallas_gpu": packed.pallas_gpu_attention}
    for name in found.keys() & kernels.keys():
        for block in blocks:
            attend = functools.partial(kernels[name], block=block)
            found[f"{name} block {block}"] = lambda q, k, v, attend=attend: attend(q, k, v, segment_ids_BxL)
    if jax.default_backend() == "gpu":
        found["cudnn, whole rows"] = lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, is_causal=True, implementation="cudnn"
        )
    return found


def _measure(attend: Attend, inputs: tuple[jax.Array, ...], repeats: int) -> tuple[dict[str, float], list[np.ndarray]]:
    *qkv, weight = inputs

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(q, k, v)
        return jnp.sum((out * weight).astype(jnp.float32)), out

    forward = jax.jit(attend).lower(*qkv).compile()
    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)).lower(*qkv).compile()
    (_, out), gradients = jax.block_until_ready(both(*qkv))
    seconds: dict[str, list[float]] = {"forward_ms": [], "forward_backward_ms": []}
    for _ in range(repeats):
        for name, function in zip(seconds, (forward, both), strict=True):
            began = time.perf_counter()
            jax.block_until_ready(function(*qkv))
            seconds[name].append(time.perf_counter() - began)
    figures = {name: round(1e3 * float(np.median(times)), 3) for name, times in seconds.items()}
    figures["temporary_MiB"] = round(both.memory_analysis().temp_size_in_bytes / 2**20, 1)
    return figures, [np.asarray(x, np.float32) for x in (out, *gradients)]


def main() -> None:
    """Measure and print."""
    values = flags.FLAGS
    dtype = values.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    ids_BxL = packed_segments(values.rows, values.row_length, values.mean_segment)
    random = np.random.default_rng(1)
    inputs = tuple(
        jnp.asarray(random.normal(size=(*ids_BxL.shape, heads, values.head_dim)), dtype)
        for heads in (values.heads, values.kv_heads, values.kv_heads, values.heads)
    )
    forward_flops = 2 * values.heads * values.head_dim * sum_segment_squared(ids_BxL)
    results, wanted = {}, None
    of_heads, blocks = attention.Heads(values.head_dim, dtype), [int(block) for block in values.blocks]
    for name, attend in _implementations(jnp.asarray(ids_BxL), of_heads, blocks).items():
        figures, arrays = _measure(attend, inputs, values.repeats)
        figures["model_gflop_per_s"] = round(3 * forward_flops / figures["forward_backward_ms"] / 1e6, 1)
        wanted = arrays if wanted is None else wanted  # the reference comes first
        if "whole rows" not in name:
            figures["difference"] = max(
                float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(arrays, wanted, strict=True)
            )
        results[name] = figures
        print(name, figures, flush=True)
    default = attention.resolve("auto", of_heads)
    ratio = results["reference"]["forward_backward_ms"] / results[default]["forward_backward_ms"]
    shape = [*ids_BxL.shape, values.heads, values.kv_heads, values.head_dim]
    print(
        json.dumps(
            {
                "benchmark": "attention",
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "shape_B_L_H_K_C": shape,
                "dtype": dtype,
                "mean_segment": values.mean_segment,
                "sum_segment_squared": sum_segment_squared(ids_BxL),
                "implementations": results,
                "default": default,
                "ratio": round(ratio, 2),
            }
        )
    )


if __name__ == "__main__":
    command_line.run(main, define_flags)
