"""The pure train and evaluation steps: loss, its parts per token kind, and an update that skips spikes and NaN.

B batch rows   L row length   V vocabulary   K token kinds   S sources of a mixture
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cometjax.cross_entropy import weighted_nats
from cometjax.group_norms import group_norms
from cometjax.microbatches import value_and_gradient
from cometjax.model import Decoder, ModelConfig
from cometjax.step_guard import GuardState, Verdict, init_guard, judge
from data_pipeline.vocabulary import KINDS, Vocabulary

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TokenTables:
    """What the loss must know of a token id: `kind_V` indexes KINDS, `first_V` says which begin an event."""

    kind_V: np.ndarray
    first_V: np.ndarray

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary, size: int) -> "TokenTables":
        """Tables of `size` entries; a model's vocabulary may be larger than the corpus's."""
        kind_V = np.zeros(size, np.int32)
        first_V = np.zeros(size, bool)
        for index, token in enumerate(vocabulary.tokens):
            kind_V[index] = KINDS.index(token.kind)
            first_V[index] = token.grammar == "first"
        return cls(kind_V, first_V)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes; parameters and moments are in the model's param_dtype, float32."""

    params: Any
    optimizer: Any
    step: jax.Array
    guard: GuardState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSums:
    """Sums over a batch's target tokens: `nats_K` float32 (weighted), `tokens_K` int32, `events` and `weight`.

    `by_source`: of a mixture's evaluation the same once more, each array with a first axis of the mixture's corpora.
    """

    nats_K: jax.Array
    tokens_K: jax.Array
    events: jax.Array
    weight: jax.Array
    by_source: "LossSums | None" = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """One step's figures; `positions`: tokens that are not padding; `segment_squares`: sum of the segments' length².

    `skipped_in_a_row`, `nonfinite_total` and `spike_total` count steps, this one included. `gradient_norms` (before
    clipping) and `update_norms` (of what is subtracted from the parameters, or would be if the step were not skipped)
    are by `cometjax.group_norms`.
    """

    sums: LossSums
    loss: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    verdict: Verdict
    skipped_in_a_row: jax.Array
    nonfinite_total: jax.Array
    spike_total: jax.Array
    positions: jax.Array
    segment_squares: jax.Array
    gradient_norms: dict[str, jax.Array]
    update_norms: dict[str, jax.Array]


def loss_sums(model: Decoder, batch: Batch, tables: TokenTables, sources: int = 0) -> tuple[jax.Array, LossSums]:
    """The model's cross-entropy on one batch: its weighted sum in nats, which has gradients, and sums by token kind.

    With `sources`, their number, the sums are told by source too, as `sources_BxL` of the batch has them.
    """
    x_BxLxD = model.hidden_of_rows(batch["tokens_BxL"], batch["segment_ids_BxL"], batch["positions_BxL"])
    targets_BxL, weights_BxL = batch["targets_BxL"], batch["loss_weights_BxL"]
    total, nats_BxL = weighted_nats(x_BxLxD, model.head(), targets_BxL, weights_BxL)
    sums = _by_kind(nats_BxL * weights_BxL, targets_BxL, weights_BxL, tables)
    if sources:
        weights_SxBxL = jnp.where(batch["sources_BxL"] == jnp.arange(sources)[:, None, None], weights_BxL, 0.0)
        by_source = jax.vmap(lambda own_BxL: _by_kind(nats_BxL * own_BxL, targets_BxL, own_BxL, tables))(weights_SxBxL)
        sums = dataclasses.replace(sums, by_source=by_source)
    return total, sums


def _by_kind(nats_BxL: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array, tables: TokenTables) -> LossSums:
    counted_BxL = weights_BxL > 0
    # A comparison and a sum, not a scatter: it fuses, and sharded rows reduce in any order but their own.
    is_kind_BxLxK = jnp.asarray(tables.kind_V)[targets_BxL][..., None] == jnp.arange(len(KINDS))
    return LossSums(
        nats_K=jnp.sum(jnp.where(is_kind_BxLxK, nats_BxL[..., None], 0.0), axis=(0, 1)),
        tokens_K=jnp.sum(is_kind_BxLxK & counted_BxL[..., None], axis=(0, 1), dtype=jnp.int32),
        events=jnp.sum(jnp.asarray(tables.first_V)[targets_BxL] & counted_BxL, dtype=jnp.int32),
        weight=jnp.sum(weights_BxL),
    )


def init_state(model: ModelConfig, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step, a function of the seed alone."""
    params = nnx.to_pure_dict(nnx.state(Decoder(model, rngs=nnx.Rngs(seed)), nnx.Param))
    return TrainState(params, optimizer.init(params), step=jnp.zeros((), jnp.int32), guard=init_guard())


def model_graph(model: ModelConfig) -> Any:
    """The model without its parameters: `nnx.merge(model_graph(config), params)` makes it whole."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param)
    return graph


def make_train_step(
    model: ModelConfig,
    tables: TokenTables,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    spike_threshold: float = 0.0,
    microbatches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """A pure function (state, batch) → (state, metrics); the batch is computed in `microbatches` parts.

    A loss or gradient that is not finite, or a spike by `cometjax.step_guard` (never with a threshold of 0), leaves
    parameters and optimizer as they were; only the counters move.
    """
    graph = model_graph(model)

    def sums_of(params: Any, batch: Batch, weight: jax.Array) -> tuple[jax.Array, LossSums]:
        total, sums = loss_sums(nnx.merge(graph, params), batch, tables)
        return total / weight, sums

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        (loss, sums), gradients = value_and_gradient(sums_of, state.params, batch, microbatches)
        gradient_norm = optax.tree.norm(gradients)
        directions, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        learning_rate = schedule(state.step)
        params = jax.tree.map(lambda p, d: (p - learning_rate * d).astype(p.dtype), state.params, directions)
        guard, verdict = judge(state.guard, loss, gradient_norm, spike_threshold)
        applied = verdict.skipped == 0
        params, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(applied, new, old), (params, optimizer_state), (state.params, state.optimizer)
        )
        positions, segment_squares = _segment_statistics(batch)
        return TrainState(params, optimizer_state, state.step + 1, guard), StepMetrics(
            sums, loss, gradient_norm, learning_rate, verdict, guard.skipped_in_a_row, guard.nonfinite_total,
            guard.spike_total, positions, segment_squares, group_norms(gradients),
            {group: learning_rate * norm for group, norm in group_norms(directions).items()},
        )  # fmt: skip

    return train_step


def make_evaluation_step(model: ModelConfig, tables: TokenTables, sources: int = 0) -> Callable[[Any, Batch], LossSums]:
    """A pure function (params, batch) → LossSums; of a mixture of so many `sources` by source too."""
    graph = model_graph(model)
    return lambda params, batch: loss_sums(nnx.merge(graph, params), batch, tables, sources)[1]


def _segment_statistics(batch: Batch) -> tuple[jax.Array, jax.Array]:
    # A segment of length n has positions 0..n-1, and the sum of 2i + 1 over them is n². In float32, for n² of a row of
    # 46,341 tokens is no int32; row by row, for then the terms of a sum are of a size.
    real_BxL = batch["segment_ids_BxL"] > 0
    squares_B = jnp.sum(jnp.where(real_BxL, 2 * batch["positions_BxL"] + 1, 0), axis=1, dtype=jnp.float32)
    return jnp.sum(real_BxL, dtype=jnp.int32), jnp.sum(squares_B)
