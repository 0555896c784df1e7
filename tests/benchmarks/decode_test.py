"""The bound that decoding is measured against."""

import dataclasses

from benchmarks import decode


def test_a_step_reads_weights_prompts_and_half_of_the_samples_tokens() -> None:
    shape = dataclasses.replace(decode.shape_of("L"), compute_dtype="bfloat16")
    weights, token = 2 * 1_088_458_752, 2 * 2 * 16 * 32 * 64  # keys and values of 16 layers of 32 heads of 64
    cached = (4 * 256 + 64 * 127.5) * token
    assert decode.least_bytes(shape) == 256 * (weights + cached)
    assert decode.least_bytes(shape, 2) == 256 * (weights + cached / 2)  # each has all weights
