import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cometjax import group_norms, metrics, step_guard, train_step
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

# Most of the time is the compiler's, and no test here is of how its code rounds.
pytestmark = pytest.mark.usefixtures("hurried_compiler")

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


@pytest.mark.parametrize("length", [8_192, 46_341, 65_536])
def test_squared_segment_lengths_are_right_to_a_ten_millionth_in_long_rows(length):
    """FLOPs and MFU are made of them; 46,341² is more than an int32 holds."""
    lengths = [[length], [length - 1_000, 1_000]]
    segment_ids, positions = np.zeros((2, len(lengths), length), np.int32)
    for row, segments in enumerate(lengths):
        begin = 0
        for number, n in enumerate(segments):
            segment_ids[row, begin : begin + n], positions[row, begin : begin + n] = number + 1, np.arange(n)
            begin += n
    batch = {"segment_ids_BxL": jnp.asarray(segment_ids), "positions_BxL": jnp.asarray(positions)}
    _, squares = jax.jit(train_step._segment_statistics)(batch)
    assert float(squares) == pytest.approx(sum(n * n for row in lengths for n in row), rel=1e-7)


def test_norms_by_kind_and_by_layer_are_those_of_gradients_and_of_what_the_step_changed(step_and_state):
    step, state = step_and_state
    after, reported = step(state, batch_of(0))
    changes = jax.tree.map(lambda new, old: np.asarray(new, np.float64) - old, after.params, state.params)
    layers = changes["layers"]
    attention = [layers[name] for name in layers if name.startswith(("query", "key", "value", "attention_out"))]
    mlp = [layers[name] for name in ("mlp_gate", "mlp_up", "mlp_down")]
    norms = [layers["attention_norm"], layers["mlp_norm"], changes["final_norm"]]
    expected = {"attention": attention, "mlp": mlp, "norm": norms, "embedding": [changes["embedding"]]}
    expected["layer"] = [*attention, *mlp, *norms[:2]]
    assert len(attention) == 7 and reported.update_norms.keys() == expected.keys() == reported.gradient_norms.keys()
    for group, parts in expected.items():
        norm = np.sqrt(sum(np.sum(part**2) for part in parts))
        np.testing.assert_allclose(np.squeeze(reported.update_norms[group]), norm, rtol=1e-4, err_msg=group)
    squares = {group: np.sum(np.square(norm)) for group, norm in reported.gradient_norms.items()}
    assert sum(squares.values()) - squares["layer"] == pytest.approx(float(reported.gradient_norm) ** 2, rel=1e-5)


def test_norms_are_named_by_kind_and_by_layer_and_a_parameter_of_no_kind_is_an_error():
    norms = {"mlp": np.float32(2), "layer": np.arange(11, dtype=np.float32)}
    named = group_norms.named("gradient_norm", norms)
    assert (named["gradient_norm/mlp"], named["gradient_norm/layer_03"], named["gradient_norm/layer_10"]) == (2, 3, 10)
    assert len(named) == 12
    with pytest.raises(ValueError, match=r"no pattern.*names layers/stranger"):
        group_norms.group_norms({"layers": {"stranger": jnp.ones((2, 3))}})


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
        # AdamW's first step is the rate of 1e-2 times g / (|g| + eps): where g is near eps, its rounding shows.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_evaluation_step_gives_the_training_loss(step_and_state):
    step, state = step_and_state
    _, reported = step(state, batch_of(0))
    sums = jax.jit(make_evaluation_step(MODEL, TABLES))(state.params, batch_of(0))
    assert float(sums.nats_K.sum() / sums.weight) == pytest.approx(float(reported.loss), rel=1e-6)
