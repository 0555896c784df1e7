"""The device side of simulation: prefill, decode in chunks, sampling. Static shapes, nothing here waits for the host.

Keys and values live in two pools. A prompt's are computed once (`prefill`) and shared by all its samples; what a
sample adds goes into its own suffix slot. A chunk decodes R rows, some steps each; rows come in blocks of one prompt's
samples, so that attention to the prompt is a matrix product over the block (`cometjax.decoding_caches`).

N layers   P prompts in a prefill   Q blocks   S rows of a block   R = QS rows   T steps of a chunk   M earlier chunks
H query heads   K key/value heads   G = H/K   C head dim   X prompt tokens kept   Y earlier suffix tokens   V vocabulary
E durations of an interval
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cometjax import attention, grammar_states, hopper_decoding
from cometjax.decoding_caches import Copies, InPlace, Pool, as_stored, written
from cometjax.futures import token_seconds
from cometjax.model import Decoder, LayerWeights, side_by_side
from cometjax.sharding import path_name
from data_pipeline.vocabulary import Vocabulary

# Why a row stopped; 0 while it runs. What answers it is seen between chunks only (`cometjax.open_questions`).
STOPS = ("", "death", "timeline_end", "horizon", "length", "answered", "unobserved")
_BLOCK = 32  # tokens per block of the inverse CDF's first level
_CARRIED = ("token_R", "clock_R", "stop_R", "state_R", "excess_R")
_FIRST_DURATION = 2**30  # of the steps by which durations are drawn; tokens' own are below

Weights = tuple[Any, list[LayerWeights]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["allowed_V", "interval_V", "stop_V", "token_I", "seconds_IxE", "repeats_E", "repeat_seconds"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TokenTable:
    """What each token does to a simulation.

    May it be drawn, its interval index (-1: none), and the index into STOPS that drawing it means (0: go on). Of each
    interval the token and the whole seconds that it may last (each as likely, rising). Where the last interval repeats
    n times it lasts n `repeat_seconds` and one of `repeats_E`, which may be negative.
    """

    allowed_V: jax.Array
    interval_V: jax.Array
    stop_V: jax.Array
    token_I: jax.Array
    seconds_IxE: jax.Array
    repeats_E: jax.Array
    repeat_seconds: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "prefix_slot_Q",
        "prefix_length_Q",
        "slot_R",
        "length_R",
        "token_R",
        "clock_R",
        "stop_R",
        "key_Rx2",
        "first_interval_R",
        "horizon_R",
        "state_R",
        "excess_R",
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one chunk; those with a stop only fill it up.

    `length_R` tokens were drawn so far, a multiple of the chunk's steps; `token_R` is the last of them (or the
    prompt's last); `clock_R` and `horizon_R` are in whole seconds since the prediction time; `state_R` is the grammar's
    (0 where no grammar is kept); `excess_R` is what the longest interval, where it came last, has taken beyond as many
    times its repeat_seconds.
    """

    prefix_slot_Q: Any
    prefix_length_Q: Any
    slot_R: Any
    length_R: Any
    token_R: Any
    clock_R: Any
    stop_R: Any
    key_Rx2: Any
    first_interval_R: Any
    horizon_R: Any
    state_R: Any
    excess_R: Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["table", "states", "outcomes"], meta_fields=["suppress"]
)
@dataclasses.dataclass(frozen=True)
class Rules:
    """What may be drawn, and what is watched.

    Attributes:
        table: what each token does.
        states: the grammar to keep; None: any token may follow any.
        outcomes: whose probability is told before each token; None, or with `states`.
        suppress: never draw what makes the first outcome certain; the rest keeps its proportions.
    """

    table: TokenTable
    states: grammar_states.States | None = None
    outcomes: grammar_states.Outcomes | None = None
    suppress: bool = False

    def next_probabilities(self, probability_RxV: jax.Array, state_R: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(probabilities to draw from, float32 [R, K] probability that an outcome becomes certain), of unnormalized
        probabilities that obey the grammar."""
        if self.states is None or self.outcomes is None:
            return probability_RxV, jnp.zeros((len(state_R), 0))
        normalized_RxV = probability_RxV / probability_RxV.sum(-1, keepdims=True)
        hazard_RxK = self.outcomes.hazard(self.states, normalized_RxV, state_R)
        if self.suppress:
            others_RxV = jnp.where(self.outcomes.deciding(self.states, state_R, 0), 0, probability_RxV)
            # Where nothing else can come, the outcome does: its weight is 0 from then on.
            possible_Rx1 = (others_RxV > 0).any(-1, keepdims=True)
            probability_RxV = jnp.where(possible_Rx1, others_RxV, probability_RxV)
        return probability_RxV, hazard_RxK


def token_table(vocabulary: Vocabulary, *, timeline_end: str, mean_durations: bool = False) -> TokenTable:
    """The vocabulary's table, `timeline_end` of futures.TIMELINE_ENDS. PAD and static-prefix tokens are never drawn."""
    token_I = np.array(vocabulary.interval_ids, np.int32)
    seconds_GxE = np.array(vocabulary.interval_quantiles, np.int32)
    if mean_durations or not len(seconds_GxE):
        seconds_GxE = np.append(token_seconds(vocabulary)[token_I], 0)[:, None]
    grammar = vocabulary.grammar_of
    banned = ("pad", "static", "end") if timeline_end == "never" else ("pad", "static")
    interval_V = np.full(len(grammar), -1, np.int32)
    interval_V[list(vocabulary.interval_ids)] = np.arange(len(vocabulary.interval_ids))
    stop_V = np.zeros(len(grammar), np.int32)
    stop_V[[kind == "end" for kind in grammar]] = STOPS.index(
        "unobserved" if timeline_end == "censor" else "timeline_end"
    )
    stop_V[[token.kind == "DEATH" for token in vocabulary.tokens]] = STOPS.index("death")
    return TokenTable(
        allowed_V=jnp.asarray([kind not in banned for kind in grammar]),
        interval_V=jnp.asarray(interval_V),
        stop_V=jnp.asarray(stop_V),
        token_I=jnp.asarray(token_I),
        seconds_IxE=jnp.asarray(seconds_GxE[:-1]),
        repeats_E=jnp.asarray(seconds_GxE[-1]),
        repeat_seconds=jnp.int32(round(vocabulary.interval_preset.repeat_seconds)),
    )


def draw(probability_RxV: jax.Array, uniform_R: jax.Array) -> jax.Array:
    """One token per row by inverse CDF: the first whose cumulative (unnormalized) probability exceeds uniform x total.

    Two levels, blocks of tokens and then tokens of one block, so that no cumulative sum runs over the vocabulary.
    A token of probability 0 is never drawn, whatever rounding does.
    """
    rows, size = probability_RxV.shape
    blocks = -(-size // _BLOCK)
    padded = jnp.pad(probability_RxV, ((0, 0), (0, blocks * _BLOCK - size))).reshape(rows, blocks, _BLOCK)
    mass = padded.sum(-1)
    upto = jnp.cumsum(mass, -1)
    target_R = uniform_R * upto[:, -1]
    block_R = _first_above(upto, target_R, mass)
    before_R = jnp.take_along_axis(upto - mass, block_R[:, None], 1)[:, 0]
    inner = jnp.take_along_axis(padded, block_R[:, None, None], 1)[:, 0]
    return block_R * _BLOCK + _first_above(jnp.cumsum(inner, -1), target_R - before_R, inner)


def _first_above(upto: jax.Array, target_R: jax.Array, mass: jax.Array) -> jax.Array:
    # The last possible index is the fallback when rounding leaves the target above every sum.
    index = jnp.arange(mass.shape[-1])
    possible = mass > 0
    first_R = jnp.where(possible & (upto > target_R[:, None]), index, mass.shape[-1]).min(-1)
    return jnp.minimum(first_R, jnp.where(possible, index, 0).max(-1))


def token_probabilities(
    logits_RxV: jax.Array,
    table: TokenTable,
    temperature: jax.Array,
    least_interval_R: jax.Array,
    elapsed_R: jax.Array,
    possible_RxV: jax.Array | bool = True,
) -> jax.Array:
    """Unnormalized probabilities of the possible tokens; where least_interval_R >= 0 these are only interval tokens,
    from that index on, each with the share of its durations that are longer than the seconds elapsed already."""
    least_Rx1 = least_interval_R[:, None]
    possible = table.allowed_V & ((least_Rx1 < 0) | (table.interval_V >= least_Rx1)) & possible_RxV
    scores_RxV = jnp.where(possible, logits_RxV / temperature, -jnp.inf)
    probability_RxV = jnp.exp(scores_RxV - scores_RxV.max(-1, keepdims=True))
    if table.seconds_IxE.shape[1] == 1:  # a mean alone does not tell what share is longer
        return probability_RxV

    def weighed(probability_RxV: jax.Array) -> jax.Array:
        # Not below a little: where none is longer, the next interval may be out of the model's or the grammar's reach.
        longer_RxI = jnp.maximum((table.seconds_IxE > elapsed_R[:, None, None]).mean(-1), 1e-6)
        return probability_RxV.at[:, table.token_I].multiply(jnp.where(least_Rx1 < 0, 1.0, longer_RxI))

    # In a future's first step alone: it costs a copy.
    return jax.lax.cond((least_interval_R >= 0).any(), weighed, lambda same: same, probability_RxV)


def ended(probability_RxV: jax.Array, table: TokenTable, longer_R: jax.Array) -> jax.Array:
    """Probabilities after the longest interval, of whose durations a share `longer_R` outlasts the silence that is
    known: a gap that ends with it is as much rarer, one that another repeat makes longer is not."""

    def weighed(probability_RxV: jax.Array) -> jax.Array:
        is_repeat_V = jnp.arange(probability_RxV.shape[1]) == table.token_I[-1]
        return probability_RxV * jnp.where(is_repeat_V, 1.0, longer_R[:, None])

    # In a future's second step alone.
    return jax.lax.cond((longer_R < 1).any(), weighed, lambda same: same, probability_RxV)


def uniforms(key_Rx2: jax.Array, step_RxT: jax.Array) -> jax.Array:
    """One uniform in [0, 1) per row and step: a function of the row's key and the step alone."""
    keys_R = jax.random.wrap_key_data(key_Rx2, impl="threefry2x32")
    one = lambda key, step: jax.random.uniform(jax.random.fold_in(key, step), dtype=jnp.float32)  # noqa: E731
    return jax.vmap(jax.vmap(one, (None, 0)))(keys_R, step_RxT)


@functools.partial(jax.jit, static_argnames="graph")
def laid_out(graph: Any, weights: Any) -> Weights:
    """`nnx.split` of the Decoder as `prefill` and `decode_chunk` take it: done once, and not in every chunk.

    The weights without the layers' stacks, and each layer's own, those that multiply the same input side by side.
    """
    layers = [side_by_side(of_layer) for of_layer in nnx.merge(graph, weights).layer_weights()]
    others = jax.tree_util.tree_map_with_path(
        lambda path, w: w[:0] if path_name(path).startswith("layers/") else w, weights
    )
    return others, layers


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="pool")
def prefill(graph: Any, weights: Weights, pool: Pool, tokens_PxX: jax.Array, slot_P: jax.Array) -> Pool:
    """Write the keys and values of right-padded prompts into their slots of the prompt pool (N x [slots, K, X, C]).

    A row whose slot is not there is padding.
    """
    others, layers = weights
    model = nnx.merge(graph, others)
    # Padding stands on the right: a causal mask alone keeps it from every real token.
    one_segment = jnp.ones_like(tokens_PxX)

    def attend(q_PxXxHxC, k_PxXxKxC, v_PxXxKxC, _):
        out = attention.attention(
            q_PxXxHxC, k_PxXxKxC, v_PxXxKxC, segment_ids_BxL=one_segment, implementation=model.config.attention
        )
        return out, (jnp.swapaxes(k_PxXxKxC, 1, 2), jnp.swapaxes(v_PxXxKxC, 1, 2))

    positions_PxX = jnp.broadcast_to(jnp.arange(tokens_PxX.shape[1]), tokens_PxX.shape)
    _, new = model.hidden(tokens_PxX, positions_PxX, attend, [None] * len(pool), layers)
    return jax.tree.map(
        lambda pooled, cache: pooled.at[slot_P].set(as_stored(cache, pooled.dtype), mode="drop"), pool, new
    )


@functools.partial(
    jax.jit, static_argnames=("graph", "earlier_chunks", "tile_rows", "in_place"), donate_argnames="suffixes"
)
def decode_chunk(
    graph: Any,
    weights: Weights,
    rules: Rules,
    limits: dict[str, jax.Array],
    prefixes: Pool,
    suffixes: Pool,
    rows: Rows,
    *,
    earlier_chunks: int,
    tile_rows: int | None = None,
    in_place: hopper_decoding.Sizes | None = None,
) -> tuple[Pool, dict[str, jax.Array]]:
    """Draw up to T tokens for each row.

    Args:
        graph, weights: the Decoder's, the weights `laid_out`.
        rules: what may be drawn, and what is watched.
        limits: scalars `temperature`, `max_new_tokens`.
        prefixes: prompt pool, N x [slots, K, X, C].
        suffixes: sample pool, N x [slots, K, chunks, T, C]; donated.
        rows: the rows, as host arrays.
        earlier_chunks: bound on the earlier chunks of any row.
        tile_rows: of a tile; tiles are drawn one after another, and what a row gets does not depend on their number.
            None: all rows at once.
        in_place: sizes of the kernel that works on the pools (`hopper_decoding.sizes_for`) and needs no bound; None:
            XLA's operations, on copies of what the rows need.

    Returns:
        The sample pool with this chunk written, and `tokens_RxT`, `clock_RxT` (after each of them), `clock_R`,
        `stop_R`, `state_R`, `excess_R`, `taken_R` (how many were drawn), `hazard_RxTxK` (probability that each token
        would make an outcome certain) and `decided_RxTxK` (it did).
    """
    others, layers = weights
    model = nnx.merge(graph, others)
    decode = functools.partial(_decode_rows, model, layers, rules, limits, suffixes[0][0].shape[3])
    if in_place:
        kernels = InPlace(prefixes, suffixes, in_place)
        changed, result = decode(kernels, rows)
        return kernels.written(changed), result
    with_copies = lambda rows: decode(Copies(prefixes, suffixes, rows, earlier_chunks), rows)  # noqa: E731
    changed, result = _by_tiles(with_copies, rows, tile_rows) if tile_rows else with_copies(rows)
    return written(suffixes, changed, rows), result


def _by_tiles(decode: Callable[[Rows], Any], rows: Rows, tile_rows: int) -> Any:
    """`decode(rows)`, a tile at a time; nothing is computed of tiles in which no row runs, which come last."""
    num_rows = len(rows.slot_R)

    def tile_of(array: Any, tile: jax.Array | int) -> jax.Array:
        size = tile_rows * len(array) // num_rows  # of an array of rows, or of blocks
        return jax.lax.dynamic_slice_in_dim(array, tile * size, size)

    def decode_tile(tile: jax.Array | int) -> Any:
        return decode(jax.tree.map(lambda array: tile_of(array, tile), rows))

    def put(tile: jax.Array, so_far: Any) -> Any:
        at = tile * tile_rows
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, at, axis=0), so_far, decode_tile(tile)
        )

    of_tile = jax.eval_shape(decode_tile, 0)
    nothing = jax.tree.map(lambda part: jnp.zeros((num_rows, *part.shape[1:]), part.dtype), of_tile)
    tiles = jnp.max(jnp.where(rows.stop_R == 0, jnp.arange(num_rows) // tile_rows + 1, 0))
    return jax.lax.fori_loop(0, tiles, put, nothing)


def _decode_rows(
    model: Decoder,
    layers: list[LayerWeights],
    rules: Rules,
    limits: dict[str, jax.Array],
    steps: int,
    caches: Copies | InPlace,
    rows: Rows,
) -> tuple[Any, dict[str, jax.Array]]:
    """(what the steps changed of the caches, the result of `decode_chunk`)."""
    step_RxT = rows.length_R[:, None] + jnp.arange(steps)
    uniform_TxR = uniforms(rows.key_Rx2, step_RxT).T
    duration_TxR = uniforms(rows.key_Rx2, step_RxT + _FIRST_DURATION).T
    start_R = jnp.repeat(rows.prefix_length_Q, len(rows.slot_R) // len(rows.prefix_slot_Q)) + rows.length_R

    def step(carry):
        i, last, changing, kept = carry
        attend = functools.partial(caches.attend, rows=rows, step=i)
        x_Rx1xD, changing = model.hidden(
            last["token_R"][:, None],
            (start_R + i)[:, None],
            attend,
            list(zip(caches.constant, changing, strict=True)),
            layers,
        )
        uniform_2xR = jnp.stack([uniform_TxR[i], duration_TxR[i]])
        last, drawn = _draw_next(model.logits(x_Rx1xD[:, 0]), last, rules, limits, rows, i, uniform_2xR)
        return i + 1, last, changing, {name: kept[name].at[i].set(values) for name, values in drawn.items()}

    num_rows = len(rows.slot_R)
    outcomes = 0 if rules.outcomes is None else rules.outcomes.first_VxK.shape[1]
    carry = (
        jnp.int32(0),
        {name: jnp.asarray(getattr(rows, name)) for name in _CARRIED} | {"longer_R": jnp.ones(num_rows)},
        caches.first,
        {
            "tokens": jnp.full((steps, num_rows), -1, jnp.int32),
            "clock": jnp.zeros((steps, num_rows), jnp.int32),
            "hazard": jnp.zeros((steps, num_rows, outcomes)),
            "decided": jnp.zeros((steps, num_rows, outcomes), bool),
        },
    )
    going = lambda carry: (carry[0] < steps) & (carry[1]["stop_R"] == 0).any()  # noqa: E731
    _, last, changed, kept = jax.lax.while_loop(going, step, carry)
    return changed, {
        "tokens_RxT": kept["tokens"].T,
        "clock_RxT": kept["clock"].T,
        "clock_R": last["clock_R"],
        "stop_R": last["stop_R"],
        "state_R": last["state_R"],
        "excess_R": last["excess_R"],
        "taken_R": (kept["tokens"] >= 0).sum(0),
        "hazard_RxTxK": jnp.swapaxes(kept["hazard"], 0, 1),
        "decided_RxTxK": jnp.swapaxes(kept["decided"], 0, 1),
    }


def _draw_next(
    logits_RxV: jax.Array,
    last: dict[str, jax.Array],
    rules: Rules,
    limits: dict[str, jax.Array],
    rows: Rows,
    step: jax.Array,
    uniform_2xR: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(the rows' token, clock, stop and state after a token and its duration drawn by `uniform_2xR`; what is kept of
    the step)."""
    table, state_R, running_R = rules.table, last["state_R"], last["stop_R"] == 0
    drawn_R = rows.length_R + step
    restricted_R = jnp.where(drawn_R == 0, rows.first_interval_R, -1)
    possible = True if rules.states is None else rules.states.possible(state_R)
    # Survival to the prediction time is given: the gap that spans it can't end before it.
    elapsed_R = jnp.where(restricted_R >= 0, -last["clock_R"], -1)
    probability_RxV = token_probabilities(logits_RxV, table, limits["temperature"], restricted_R, elapsed_R, possible)
    probability_RxV = ended(probability_RxV, table, last["longer_R"])
    probability_RxV, hazard_RxK = rules.next_probabilities(probability_RxV, state_R)
    token_R = draw(probability_RxV, uniform_2xR[0])
    interval_R = table.interval_V[token_R]
    seconds_RxE = jnp.where(interval_R[:, None] >= 0, table.seconds_IxE[interval_R], 0)
    is_longest_R = token_R == table.token_I[-1]
    if table.repeats_E.shape[0] > 1:
        repeats_R = is_longest_R & (last["token_R"] == table.token_I[-1])
        repeat_RxE = table.repeat_seconds + table.repeats_E - last["excess_R"][:, None]
        seconds_RxE = jnp.where(repeats_R[:, None], repeat_RxE, seconds_RxE)
    # Of the durations that are long enough, which are the last ones, each is as likely.
    durations = seconds_RxE.shape[1]
    enough_R = (seconds_RxE > elapsed_R[:, None]).sum(-1)
    # As in token_probabilities: a mean alone does not tell, and not below a little.
    is_told_R = (restricted_R >= 0) & is_longest_R & (durations > 1)
    longer_R = jnp.where(is_told_R, jnp.maximum(enough_R / durations, 1e-6), 1.0)
    place_R = durations - 1 - jnp.minimum((uniform_2xR[1] * enough_R).astype(jnp.int32), durations - 1)
    seconds_R = jnp.take_along_axis(seconds_RxE, place_R[:, None], 1)[:, 0]
    later_R = last["clock_R"] + seconds_R
    later_R = jnp.where(restricted_R >= 0, jnp.maximum(later_R, 0), later_R)
    excess_R = jnp.where(is_longest_R, seconds_R - table.repeat_seconds, 0)
    if table.repeats_E.shape[0] > 1:
        excess_R = excess_R + jnp.where(repeats_R, last["excess_R"], 0)
    now_R = table.stop_V[token_R]
    now_R = jnp.where((now_R == 0) & (later_R > rows.horizon_R), STOPS.index("horizon"), now_R)
    now_R = jnp.where((now_R == 0) & (drawn_R + 1 >= limits["max_new_tokens"]), STOPS.index("length"), now_R)
    decided_RxK = jnp.zeros(hazard_RxK.shape, bool)
    if rules.states is not None and rules.outcomes is not None:
        decided_RxK = rules.outcomes.decided(rules.states, state_R, token_R)
    after = {
        "token_R": token_R,
        "clock_R": jnp.where(running_R, later_R, last["clock_R"]),
        "stop_R": jnp.where(running_R, now_R, last["stop_R"]),
        "excess_R": jnp.where(running_R, excess_R, last["excess_R"]),
        "longer_R": longer_R,
        "state_R": state_R
        if rules.states is None
        else jnp.where(running_R, rules.states.after(state_R, token_R), state_R),
    }
    kept = {"tokens": jnp.where(running_R, token_R, -1), "clock": later_R, "hazard": hazard_RxK, "decided": decided_RxK}
    return after, kept
