"""The figures of a line, by docs/observability.md's formulas."""

import time

import jax
import numpy as np
import pytest

from cometjax import chips, flops, metrics
from cometjax.config import default_config
from cometjax.goodput import Clock
from cometjax.model import ModelConfig
from cometjax.run_records import RunRecords
from cometjax.step_guard import Verdict
from cometjax.train_step import LossSums, StepMetrics
from data_pipeline.vocabulary import KINDS

MODEL = ModelConfig(vocab_size=64, layers=2, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64)


def step_metrics(*, tokens, positions, segment_squares):
    """What a step gives: `tokens` targets, all of one kind."""
    one, none = np.float32(1), np.int32(0)
    tokens_K = np.zeros(len(KINDS), np.int32)
    tokens_K[1] = tokens
    sums = LossSums(nats_K=2.0 * tokens_K, tokens_K=tokens_K, events=np.int32(1), weight=np.float32(tokens))
    return StepMetrics(
        sums, one, one, one, Verdict(none, one, one), none, none, none,
        np.int32(positions), np.float32(segment_squares), {"layer": np.ones(2)}, {"layer": np.ones(2)},
    )  # fmt: skip


def test_speeds_are_of_the_steps_since_the_line_before_and_mfu_is_of_all_chips_peaks(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(chips, "peak_flops_per_second", lambda kind: 1000.0)
    config = default_config()
    config.train.update(steps=3, log_every=2)
    clock = Clock()

    def spend(cause, seconds):
        with clock.measure(cause):
            now[0] += seconds

    two_chips = jax.sharding.AbstractMesh((2,), ("data",))
    records = RunRecords(tmp_path, config, MODEL, two_chips, clock, resumed_step=0, progress=False)
    spend("setup", 64)
    for step in (1, 2):
        spend("input", 1)
        spend("step", 3)
        records.step(step, step_metrics(tokens=12, positions=14, segment_squares=100))
    spend("evaluation", 16)
    spend("input", 4)
    spend("step", 12)
    records.step(3, step_metrics(tokens=48, positions=50, segment_squares=900))
    records.close()

    first, second = metrics.read(tmp_path)
    work = 2 * flops.train_flops(MODEL, tokens=14, sum_segment_squared=100)
    assert first["tokens_per_second"] == 24 / 8 and first["input_wait"] == 2 / 8
    assert first["model_flops_per_second"] == work / 8 and first["mfu"] == pytest.approx(work / 8 / 2000)
    work = flops.train_flops(MODEL, tokens=50, sum_segment_squared=900)
    assert second["tokens_per_second"] == 48 / 16 and second["input_wait"] == 4 / 16
    assert second["model_flops_per_second"] == work / 16 and second["mfu"] == pytest.approx(work / 16 / 2000)
    assert second["goodput"] == 18 / 104
