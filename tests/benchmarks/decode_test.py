"""What decoding is measured against: the memory's bound, and a rival at its best."""

import dataclasses
import itertools
import types

import numpy as np
import pytest

from benchmarks import decode
from cometjax.model import ModelConfig


def test_a_step_reads_weights_prompts_and_half_of_the_samples_tokens() -> None:
    shape = dataclasses.replace(decode.shape_of("L"), compute_dtype="bfloat16")
    weights, token = 2 * 1_088_458_752, 2 * 2 * 16 * 32 * 64  # keys and values of 16 layers of 32 heads of 64
    cached = (4 * 256 + 64 * 127.5) * token
    assert decode.least_bytes(shape) == 256 * (weights + cached)
    assert decode.least_bytes(shape, 2) == 256 * (weights + cached / 2)  # each has all weights


def test_the_rival_takes_as_many_prompts_at_once_as_are_faster_in_whole_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"PROMPTS": 4, "SAMPLES": 2, "PROMPT_TOKENS": 8, "NEW_TOKENS": 32}.items():
        monkeypatch.setattr(decode, name, number)
    slept, ticks, made = [0.0], itertools.count(), []
    monkeypatch.setattr(decode, "time", types.SimpleNamespace(perf_counter=lambda: next(ticks) + slept[0]))

    def generate(prompt_BxL: np.ndarray, at_once: int, new_tokens: int) -> None:
        assert prompt_BxL.shape == (4, 8)
        made.append((at_once, new_tokens))
        slept[0] += 7 * new_tokens if at_once == 1 else 60 + 2 * new_tokens  # one at a time is ahead for 12 tokens

    monkeypatch.setattr(decode, "_generate", lambda _: generate)
    shape = ModelConfig(vocab_size=40, layers=1, width=8, heads=2, kv_heads=1, head_dim=4, mlp_width=8)
    result = decode.measure(shape, with_rival=True)
    assert result["generate_prompts_at_once"] == 4 and made == [(1, 32)] + [(4, 32)] * 4
    assert result["ratio"] == 60 + 2 * 32 + 1  # ours takes a tick
