"""Exact floating-point operations of the decoder's matrix products: the numerator of every MFU in this project.

A multiplication and an addition count as two. Per token of the forward pass:

    layers:    2 * N * (D*H*C + 2*D*K*C + H*C*D + 3*D*F)     query; key and value; attention output; gate, up and down
    LM head:   2 * D * V
and per packed batch, with s the lengths of its segments:
    attention: 2 * N * H * C * sum(s * s)      scores and weighted values, 2*H*C each for the s*s / 2 causal pairs

The causal half is counted as s*s / 2 (the diagonal, s / 2 pairs more, is left out as is the custom). The backward pass
of a product is two products of the same size, so a training step is three forward passes. Not counted: embedding
lookups, norms, rotation, softmax, biases, the optimizer, and what rematerialisation repeats.
"""

from cometjax.model import ModelConfig


def forward_flops(model: ModelConfig, *, tokens: int, sum_segment_squared: int) -> int:
    """FLOPs of one forward pass over `tokens` tokens in segments whose squared lengths sum to `sum_segment_squared`.

    Count tokens that are not padding for what the data needs; count rows * row_length for what the hardware does.
    """
    query_width, kv_width = model.heads * model.head_dim, model.kv_heads * model.head_dim
    layer_weights = model.width * (2 * query_width + 2 * kv_width + 3 * model.mlp_width)
    head_weights = model.width * model.vocab_size
    attention = 2 * model.layers * query_width * sum_segment_squared
    return 2 * tokens * (model.layers * layer_weights + head_weights) + attention


def train_flops(model: ModelConfig, *, tokens: int, sum_segment_squared: int) -> int:
    """FLOPs of the forward and backward pass; arguments as in `forward_flops`."""
    return 3 * forward_flops(model, tokens=tokens, sum_segment_squared=sum_segment_squared)
