"""FLOPs against a sum by hand, and against XLA's own count."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from cometjax.flops import forward_flops, train_flops
from cometjax.model import Decoder, ModelConfig

CONFIG = ModelConfig(vocab_size=512, layers=3, width=128, heads=4, kv_heads=2, head_dim=32, mlp_width=384)

# XLA counts a loop's body once, whatever its trips: no scan over layers, and no loop over blocks of attention.
UNROLLED = dataclasses.replace(CONFIG, scan_layers=False, attention="reference")


def test_forward_flops_are_the_sum_over_matrix_products() -> None:
    per_token_and_layer = 2 * 128 * (4 * 32 + 2 * 32 + 2 * 32) + 2 * 4 * 32 * 128 + 3 * 2 * 128 * 384
    head = 2 * 128 * 512
    attention = 3 * (10 * 10 + 6 * 6) * 2 * 4 * 32  # two products of 2 * H * C over s * s / 2 pairs
    assert (
        forward_flops(CONFIG, tokens=16, sum_segment_squared=136) == 16 * (3 * per_token_and_layer + head) + attention
    )


def test_a_training_step_is_three_forward_passes() -> None:
    counts = {"tokens": 100, "sum_segment_squared": 100**2}
    assert train_flops(CONFIG, **counts) == 3 * forward_flops(CONFIG, **counts)


def test_xla_counts_the_same_matrix_products() -> None:
    """XLA computes the diagonal query block in full, so its attention is counted as a full square here."""
    rows, length = 2, 64
    abstract = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(UNROLLED, rngs=nnx.Rngs(0))))

    def forward(state: nnx.State, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(tokens, jnp.ones_like(tokens), tokens)

    counted = jax.jit(forward).lower(state, abstract).compile().cost_analysis()["flops"]
    exact = forward_flops(UNROLLED, tokens=rows * length, sum_segment_squared=2 * rows * length**2)
    assert exact < counted < 1.05 * exact  # norms, rotation and softmax are the rest
