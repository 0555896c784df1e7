"""The device side of simulation: prefill, decode in chunks, sampling. Static shapes, nothing here waits for the host.

Keys and values live in two pools. A prompt's are computed once (`prefill`) and shared by all its samples; what a
sample adds goes into its own suffix slot. A chunk decodes R rows, some steps each; rows come in blocks of one prompt's
samples, so that attention to the prompt is a matrix product over the block. One softmax spans three score blocks: the
prompt, the sample's earlier chunks, and the chunk at hand (kept apart because it alone is written in the loop).

N layers   P prompts in a prefill   Q blocks   S rows of a block   R = QS rows   T steps of a chunk   M earlier chunks
H query heads   K key/value heads   G = H/K   C head dim   X prompt tokens kept   Y earlier suffix tokens   V vocabulary
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cometjax import attention, grammar_states
from cometjax.model import side_by_side
from data_pipeline.vocabulary import Vocabulary

# Why a row stopped; 0 while it runs.
STOPS = ("", "death", "timeline_end", "horizon", "length", "answered")
_BLOCK = 32  # tokens per block of the inverse CDF's first level

Cache = tuple[jax.Array, jax.Array]
# One per layer: the decoder's layers then run unrolled, and no layer's cache is copied to stack it.
Pool = list[Cache]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["allowed_V", "seconds_V", "interval_V", "stop_V"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TokenTable:
    """What each token does to a simulation.

    May it be drawn, the whole seconds that it lasts, its interval index (-1: none), and the index into STOPS that
    drawing it means (0: go on).
    """

    allowed_V: jax.Array
    seconds_V: jax.Array
    interval_V: jax.Array
    stop_V: jax.Array


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
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one chunk; those with a stop only fill it up.

    `length_R` tokens were drawn so far, a multiple of the chunk's steps; `token_R` is the last of them (or the
    prompt's last); `clock_R` and `horizon_R` are in whole seconds since the prediction time; `state_R` is the grammar's
    (0 where no grammar is kept).
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


def token_seconds(vocabulary: Vocabulary) -> np.ndarray:
    """Whole seconds (int32, [V]) by which each token advances the clock: integers, so that no sum ever rounds."""
    return np.rint(np.asarray(vocabulary.seconds_per_token())).astype(np.int32)


def token_table(vocabulary: Vocabulary, *, stop_at_timeline_end: bool, answers: frozenset[int]) -> TokenTable:
    """The vocabulary's table. PAD and static-prefix tokens are never drawn, TIMELINE_END only where it may stop."""
    grammar = [token.grammar for token in vocabulary.tokens]
    banned = ("pad", "static") if stop_at_timeline_end else ("pad", "static", "end")
    interval_V = np.full(len(grammar), -1, np.int32)
    interval_V[list(vocabulary.interval_ids)] = np.arange(len(vocabulary.interval_ids))
    stop_V = np.zeros(len(grammar), np.int32)
    stop_V[list(answers)] = STOPS.index("answered")
    stop_V[[kind == "end" for kind in grammar]] = STOPS.index("timeline_end")
    stop_V[[token.kind == "DEATH" for token in vocabulary.tokens]] = STOPS.index("death")
    return TokenTable(
        allowed_V=jnp.asarray([kind not in banned for kind in grammar]),
        seconds_V=jnp.asarray(token_seconds(vocabulary)),
        interval_V=jnp.asarray(interval_V),
        stop_V=jnp.asarray(stop_V),
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
    possible_RxV: jax.Array | bool = True,
) -> jax.Array:
    """Unnormalized probabilities of the possible tokens; where least_interval_R >= 0 these are only interval tokens,
    from that index on."""
    least_Rx1 = least_interval_R[:, None]
    possible = table.allowed_V & ((least_Rx1 < 0) | (table.interval_V >= least_Rx1)) & possible_RxV
    scores_RxV = jnp.where(possible, logits_RxV / temperature, -jnp.inf)
    return jnp.exp(scores_RxV - scores_RxV.max(-1, keepdims=True))


def uniforms(key_Rx2: jax.Array, step_RxT: jax.Array) -> jax.Array:
    """One uniform in [0, 1) per row and step: a function of the row's key and the step alone."""
    keys_R = jax.random.wrap_key_data(key_Rx2, impl="threefry2x32")
    one = lambda key, step: jax.random.uniform(jax.random.fold_in(key, step), dtype=jnp.float32)  # noqa: E731
    return jax.vmap(jax.vmap(one, (None, 0)))(keys_R, step_RxT)


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="pool")
def prefill(graph: Any, weights: Any, pool: Pool, tokens_PxX: jax.Array, slot_P: jax.Array) -> Pool:
    """Write the keys and values of right-padded prompts into their slots of the prompt pool (N x [slots, K, X, C]).

    A row whose slot is not there is padding.
    """
    model = nnx.merge(graph, weights)
    # Padding stands on the right: a causal mask alone keeps it from every real token.
    one_segment = jnp.ones_like(tokens_PxX)

    def attend(q_PxXxHxC, k_PxXxKxC, v_PxXxKxC, _):
        out = attention.attention(
            q_PxXxHxC, k_PxXxKxC, v_PxXxKxC, segment_ids_BxL=one_segment, implementation=model.config.attention
        )
        return out, (jnp.swapaxes(k_PxXxKxC, 1, 2), jnp.swapaxes(v_PxXxKxC, 1, 2))

    positions_PxX = jnp.broadcast_to(jnp.arange(tokens_PxX.shape[1]), tokens_PxX.shape)
    _, new = model.hidden(tokens_PxX, positions_PxX, attend, [None] * len(pool))
    return jax.tree.map(lambda pooled, cache: pooled.at[slot_P].set(cache.astype(pooled.dtype), mode="drop"), pool, new)


@functools.partial(jax.jit, static_argnames=("graph", "earlier_chunks"), donate_argnames="suffixes")
def decode_chunk(
    graph: Any,
    weights: Any,
    rules: Rules,
    limits: dict[str, jax.Array],
    prefixes: Pool,
    suffixes: Pool,
    rows: Rows,
    *,
    earlier_chunks: int,
) -> tuple[Pool, dict[str, jax.Array]]:
    """Draw up to T tokens for each row.

    Args:
        graph, weights: `nnx.split` of the Decoder.
        rules: what may be drawn, and what is watched.
        limits: scalars `temperature`, `max_new_tokens`.
        prefixes: prompt pool, N x [slots, K, X, C].
        suffixes: sample pool, N x [slots, K, chunks, T, C]; donated.
        rows: the rows, as host arrays.
        earlier_chunks: bound on the earlier chunks of any row.

    Returns:
        The sample pool with this chunk written, and `tokens_RxT`, `clock_R`, `stop_R`, `state_R`, `taken_R` (how many
        were drawn), `hazard_RxTxK` (probability that each token would make an outcome certain) and `decided_RxTxK` (it
        did).
    """
    model = nnx.merge(graph, weights)
    kv_heads, _, steps, head_dim = suffixes[0][0].shape[1:]
    prefix = [_keys_across(pool.at[rows.prefix_slot_Q].get(mode="clip") for pool in layer) for layer in prefixes]
    earlier = [_keys_across(_gather_earlier(pool, rows.slot_R, earlier_chunks) for pool in layer) for layer in suffixes]
    layers = [side_by_side(weights) for weights in model.layer_weights()]
    uniform_TxR = uniforms(rows.key_Rx2, rows.length_R[:, None] + jnp.arange(steps)).T
    start_R = jnp.repeat(rows.prefix_length_Q, len(rows.slot_R) // len(rows.prefix_slot_Q)) + rows.length_R

    def step(carry):
        i, last, recent, written = carry
        attend = functools.partial(_attend, rows=rows, step=i)
        x_Rx1xD, recent = model.hidden(
            last["token_R"][:, None],
            (start_R + i)[:, None],
            attend,
            list(zip(prefix, earlier, recent, strict=True)),
            layers,
        )
        last, drawn = _draw_next(model.logits(x_Rx1xD[:, 0]), last, rules, limits, rows, i, uniform_TxR[i])
        return i + 1, last, recent, {name: written[name].at[i].set(values) for name, values in drawn.items()}

    num_rows = len(rows.slot_R)
    outcomes = 0 if rules.outcomes is None else rules.outcomes.first_VxK.shape[1]
    carry = (
        jnp.int32(0),
        {name: jnp.asarray(getattr(rows, name)) for name in ("token_R", "clock_R", "stop_R", "state_R")},
        [
            _keys_across(jnp.zeros((num_rows, kv_heads, steps, head_dim), pool.dtype) for pool in layer)
            for layer in suffixes
        ],
        {
            "tokens": jnp.full((steps, num_rows), -1, jnp.int32),
            "hazard": jnp.zeros((steps, num_rows, outcomes)),
            "decided": jnp.zeros((steps, num_rows, outcomes), bool),
        },
    )
    going = lambda carry: (carry[0] < steps) & (carry[1]["stop_R"] == 0).any()  # noqa: E731
    _, last, recent, written = jax.lax.while_loop(going, step, carry)
    recent = [_keys_across(layer) for layer in recent]
    chunk_R = rows.length_R // steps
    suffixes = jax.tree.map(
        lambda pooled, new: pooled.at[rows.slot_R, :, chunk_R].set(new, mode="drop"), suffixes, recent
    )
    return suffixes, {
        "tokens_RxT": written["tokens"].T,
        "clock_R": last["clock_R"],
        "stop_R": last["stop_R"],
        "state_R": last["state_R"],
        "taken_R": (written["tokens"] >= 0).sum(0),
        "hazard_RxTxK": jnp.swapaxes(written["hazard"], 0, 1),
        "decided_RxTxK": jnp.swapaxes(written["decided"], 0, 1),
    }


def _draw_next(
    logits_RxV: jax.Array,
    last: dict[str, jax.Array],
    rules: Rules,
    limits: dict[str, jax.Array],
    rows: Rows,
    step: jax.Array,
    uniform_R: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(the rows' token, clock, stop and state after a token drawn by `uniform_R`; what is kept of the step)."""
    table, state_R, running_R = rules.table, last["state_R"], last["stop_R"] == 0
    drawn_R = rows.length_R + step
    restricted_R = jnp.where(drawn_R == 0, rows.first_interval_R, -1)
    possible = True if rules.states is None else rules.states.possible(state_R)
    probability_RxV = token_probabilities(logits_RxV, table, limits["temperature"], restricted_R, possible)
    probability_RxV, hazard_RxK = rules.next_probabilities(probability_RxV, state_R)
    token_R = draw(probability_RxV, uniform_R)
    later_R = last["clock_R"] + table.seconds_V[token_R]
    # Survival to the prediction time is given: the gap that spans it can't end before it.
    later_R = jnp.where(restricted_R >= 0, jnp.maximum(later_R, 0), later_R)
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
        "state_R": state_R if rules.states is None else rules.states.after(state_R, token_R),
    }
    return after, {"tokens": jnp.where(running_R, token_R, -1), "hazard": hazard_RxK, "decided": decided_RxK}


def _keys_across(keys_and_values: Iterable[jax.Array]) -> Cache:
    """(keys [..., L, C], values [..., L, C]) with the keys as [..., C, L], or back.

    A step's product of queries and keys is up to five times faster on CPU where it need not transpose the keys; a chunk
    does so once for all its steps.
    """
    keys, values = keys_and_values
    return jnp.swapaxes(keys, -1, -2), values


def _gather_earlier(pool: jax.Array, slot_R: jax.Array, chunks: int) -> jax.Array:
    _, kv_heads, _, steps, head_dim = pool.shape
    earlier = pool[:, :, :chunks].at[slot_R].get(mode="clip")
    return earlier.reshape(len(slot_R), kv_heads, chunks * steps, head_dim)


def _attend(
    q_Rx1xHxC: jax.Array, k_Rx1xKxC: jax.Array, v_Rx1xKxC: jax.Array, caches: Any, *, rows: Rows, step: jax.Array
) -> tuple[jax.Array, Cache]:
    # Attention of one new token per row to its prompt, its earlier chunks and this chunk (itself included).
    (pk_QxKxCxX, pv_QxKxXxC), (ek_RxKxCxY, ev_RxKxYxC), (rk_RxKxCxT, rv_RxKxTxC) = caches
    k_RxKxCx1, v_RxKx1xC = k_Rx1xKxC.transpose(0, 2, 3, 1), jnp.swapaxes(v_Rx1xKxC, 1, 2)
    rk_RxKxCxT = jax.lax.dynamic_update_slice_in_dim(rk_RxKxCxT, k_RxKxCx1.astype(rk_RxKxCxT.dtype), step, axis=3)
    rv_RxKxTxC = jax.lax.dynamic_update_slice_in_dim(rv_RxKxTxC, v_RxKx1xC.astype(rv_RxKxTxC.dtype), step, axis=2)
    num_rows, _, heads, head_dim = q_Rx1xHxC.shape
    blocks, kv_heads = pk_QxKxCxX.shape[:2]
    groups, block = heads // kv_heads, num_rows // blocks

    def by_block(x):  # [R, K, G, A] -> [Q, K, SG, A]: only small arrays change their order, scores never
        x = jnp.swapaxes(x.reshape(blocks, block, kv_heads, groups, x.shape[-1]), 1, 2)
        return x.reshape(blocks, kv_heads, block * groups, x.shape[-1])

    def by_row(x):  # the inverse
        x = jnp.swapaxes(x.reshape(blocks, kv_heads, block, groups, x.shape[-1]), 1, 2)
        return x.reshape(num_rows, kv_heads, groups, x.shape[-1])

    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    q_RxKxGxC = (q_Rx1xHxC * head_dim**-0.5).reshape(num_rows, kv_heads, groups, head_dim)
    prompt_QxKxSGxX = _masked(product("qkmc,qkcx->qkmx", by_block(q_RxKxGxC), pk_QxKxCxX), rows.prefix_length_Q)
    earlier_RxKxGxY = _masked(product("rkgc,rkcy->rkgy", q_RxKxGxC, ek_RxKxCxY), rows.length_R)
    recent_RxKxGxT = _masked(product("rkgc,rkct->rkgt", q_RxKxGxC, rk_RxKxCxT), jnp.full(num_rows, step + 1))

    tops = [
        by_row(prompt_QxKxSGxX.max(-1, keepdims=True)),
        earlier_RxKxGxY.max(-1, keepdims=True),
        recent_RxKxGxT.max(-1, keepdims=True),
    ]
    top_RxKxGx1 = functools.reduce(jnp.maximum, tops)
    prompt_QxKxSGxX = jnp.exp(prompt_QxKxSGxX - by_block(top_RxKxGx1))
    earlier_RxKxGxY, recent_RxKxGxT = jnp.exp(earlier_RxKxGxY - top_RxKxGx1), jnp.exp(recent_RxKxGxT - top_RxKxGx1)
    total_RxKxGx1 = by_row(prompt_QxKxSGxX.sum(-1, keepdims=True))
    total_RxKxGx1 += earlier_RxKxGxY.sum(-1, keepdims=True) + recent_RxKxGxT.sum(-1, keepdims=True)
    dtype = pv_QxKxXxC.dtype
    out_RxKxGxC = by_row(product("qkmx,qkxc->qkmc", prompt_QxKxSGxX.astype(dtype), pv_QxKxXxC))
    out_RxKxGxC += product("rkgy,rkyc->rkgc", earlier_RxKxGxY.astype(dtype), ev_RxKxYxC)
    out_RxKxGxC += product("rkgt,rktc->rkgc", recent_RxKxGxT.astype(dtype), rv_RxKxTxC)
    out_Rx1xHxC = (out_RxKxGxC / total_RxKxGx1).astype(q_Rx1xHxC.dtype).reshape(q_Rx1xHxC.shape)
    return out_Rx1xHxC, (rk_RxKxCxT, rv_RxKxTxC)


def _masked(scores: jax.Array, length: jax.Array) -> jax.Array:
    # scores [A, ..., L]: only the first length[a] columns count.
    shape = (-1, *[1] * (scores.ndim - 1))
    return jnp.where(jnp.arange(scores.shape[-1]) < jnp.reshape(length, shape), scores, -jnp.inf)
