import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cometjax import metrics, step_guard
from cometjax.config import default_config
from cometjax.model import Decoder, ModelConfig
from cometjax.optimizer import learning_rate_schedule, make_optimizer
from cometjax.train_step import (
    TokenTables,
    init_state,
    loss_sums,
    make_evaluation_step,
    make_train_step,
)
from data_pipeline.vocabulary import KINDS

V = 20
MODEL = ModelConfig(vocab_size=V, layers=1, width=8, heads=2, kv_heads=2, head_dim=4, mlp_width=16, scan_layers=False)
TABLES = TokenTables(
    kind_V=np.array([KINDS.index("LAB" if token < 12 else "DIAGNOSIS") for token in range(V)], np.int32),
    first_V=np.arange(V) % 2 == 1,
)


def batch_of(seed, rows=4, length=16, segments=((0, 6), (6, 13))):
    """Random tokens in segments, the rest of each row padding; the first two targets of a row carry no loss."""
    random = np.random.default_rng(seed)
    segment_ids = np.zeros((rows, length), np.int32)
    positions = np.zeros((rows, length), np.int32)
    for number, (begin, end) in enumerate(segments, start=1):
        segment_ids[:, begin:end] = number
        positions[:, begin:end] = np.arange(end - begin)
    weights = (segment_ids > 0).astype(np.float32)
    weights[:, :2] = 0
    tokens = random.integers(1, V, (2, rows, length)).astype(np.int32) * (segment_ids > 0)
    return {
        "tokens_BxL": tokens[0],
        "targets_BxL": tokens[1],
        "segment_ids_BxL": segment_ids,
        "positions_BxL": positions,
        "loss_weights_BxL": weights,
    }


@pytest.fixture(scope="module")
def step_and_state():
    config = default_config()
    config.train.steps = 50
    config.optimizer.update(warmup_steps=1, learning_rate=1e-2)
    optimizer = make_optimizer(config)
    step = jax.jit(make_train_step(MODEL, TABLES, optimizer, learning_rate_schedule(config)))
    return step, init_state(MODEL, optimizer, seed=0)


def test_loss_and_its_parts_are_the_weighted_sums_by_kind_of_the_target():
    batch = batch_of(0)
    model = Decoder(MODEL, rngs=nnx.Rngs(1))
    logits = model(*(jnp.asarray(batch[name]) for name in ("tokens_BxL", "segment_ids_BxL", "positions_BxL")))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    targets, counted = batch["targets_BxL"], batch["loss_weights_BxL"] > 0
    nats = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    totals = metrics.LossTotals()
    totals.add(loss_sums(model, batch, TABLES)[1])

    assert totals.loss == pytest.approx(nats[counted].mean(), rel=1e-5)
    labs = counted & (targets < 12)
    assert totals.loss_by_kind["LAB"] == pytest.approx(nats[labs].mean(), rel=1e-5)
    assert totals.loss_by_kind.keys() == {"LAB", "DIAGNOSIS"}
    assert totals.values()["tokens/LAB"] == labs.sum()
    events = (counted & (targets % 2 == 1)).sum()
    assert totals.bits_per_event == pytest.approx(nats[counted].sum() / np.log(2) / events, rel=1e-5)


def test_step_reports_positions_and_squared_segment_lengths(step_and_state):
    step, state = step_and_state
    _, reported = step(state, batch_of(0))
    assert int(reported.positions) == 4 * 13
    assert int(reported.segment_squares) == 4 * (6**2 + 7**2)


def test_repeated_steps_on_one_batch_lower_its_loss(step_and_state):
    step, state = step_and_state
    losses = []
    for _ in range(30):
        state, reported = step(state, batch_of(0))
        losses.append(float(reported.loss))
    assert losses[-1] < losses[0] - 0.5
    assert int(state.step) == 30 and int(reported.nonfinite_total) == 0


def test_a_step_with_a_nonfinite_gradient_changes_nothing_but_the_counters(step_and_state):
    step, state = step_and_state
    state, _ = step(state, batch_of(0))
    poisoned = batch_of(1)
    poisoned["loss_weights_BxL"][1, 4] = np.nan
    after, reported = step(state, poisoned)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.optimizer), (state.params, state.optimizer))
    assert int(after.step) == 2 and int(reported.verdict.skipped) == step_guard.NONFINITE
    again, _ = step(after, poisoned)
    assert int(again.guard.skipped_in_a_row) == 2
    healed, reported = step(again, batch_of(2))
    assert (int(healed.guard.skipped_in_a_row), int(healed.guard.nonfinite_total), int(reported.verdict.skipped)) == (
        0,
        2,
        0,
    )
    assert not np.array_equal(healed.params["embedding"], again.params["embedding"])


def test_a_step_in_microbatches_is_the_step_of_the_whole_batch():
    config = default_config()
    config.optimizer.update(warmup_steps=1, learning_rate=1e-2)
    optimizer = make_optimizer(config)
    state, batch = init_state(MODEL, optimizer, seed=0), batch_of(0)
    batch["loss_weights_BxL"][0, 3:] = 0  # rows, and with them microbatches, of unequal weight
    whole, parts = (
        jax.jit(make_train_step(MODEL, TABLES, optimizer, learning_rate_schedule(config), microbatches=microbatches))(
            state, batch
        )
        for microbatches in (1, 4)
    )
    for expected, found in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_evaluation_step_gives_the_training_loss(step_and_state):
    step, state = step_and_state
    _, reported = step(state, batch_of(0))
    sums = jax.jit(make_evaluation_step(MODEL, TABLES))(state.params, batch_of(0))
    assert float(sums.nats_K.sum() / sums.weight) == pytest.approx(float(reported.loss), rel=1e-6)
