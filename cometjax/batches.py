"""The host side of simulation on one device: slots, who goes into the next batch, and what comes back.

A prompt slot holds a prompt's keys and values, and each of its running samples has a sample slot. Between chunks the
host takes running samples of like length into the next batch and fills freed slots with waiting prompts (continuous
batching at chunk borders). Where some of a prompt's samples still run, the slots of the others are taken again: the
longest of a prompt's futures is several times as long as the mean one. All shapes are static: a prompt's length bucket
depends on the prompt alone, a batch's bound of earlier tokens on its rows alone.

W prompt slots   S samples of a prompt   T tokens of a future   K outcomes
Q blocks of a batch   R rows of a batch
"""

import collections
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cometjax import decoding, hopper_decoding
from cometjax.decoding_caches import pool_dtype
from cometjax.futures import Future, Prompt, SimulationConfig, Start
from cometjax.model import Decoder, in_compute_dtype
from cometjax.open_questions import Questions, Watch
from cometjax.sharding import described
from data_pipeline.vocabulary import Vocabulary

_SMALLEST_BUCKET = 128
_PROMPTS = 4  # prompt slots for each prompt whose samples all have slots, if these take no less memory
_FIRST = 3  # chunks that the least bound may have
# Rows that a CPU draws at a time: sums over a row are ordered by the shape of the whole, so of a constant one a future
# does not depend on what is drawn beside it, nor on `batch_rows`.
_TILE_ROWS = 32
_LONG = 256  # tokens of a future: beyond, bounds are closer, and without tiles some batches have _FEW times fewer rows
_FEW = 4
_NARROW = 1.25  # times the rows: worth it to read a prompt's keys for a quarter of a block
_PREFILL_TOKENS = 4096  # of a prefill: several short prompts, or one long one


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt made ready.

    Attributes:
        prompt: whose.
        start: what the model sees of it, the clock, the grammar's state.
        horizon: in seconds.
        key_Sx2: uint32, the random keys of its samples.
        asks_K: bool, which of the questions are asked of it; None: its futures end by themselves.
        watches: by sample, what is still asked of a future that has begun.
    """

    prompt: Prompt
    start: Start
    horizon: int
    key_Sx2: np.ndarray
    asks_K: np.ndarray | None = None
    watches: dict[int, Watch] = dataclasses.field(default_factory=dict)

    @property
    def bucket(self) -> int:
        """How many tokens its prefix is padded to."""
        return max(_SMALLEST_BUCKET, 1 << (len(self.start.tokens_T) - 2).bit_length())


# (number of the request, the request); several devices take from one queue.
Queue = collections.deque[tuple[int, Request]]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What came of a request: its samples' futures, as far as one context window holds them, and after each the
    grammar's state (0 where no grammar is kept) and what the longest interval has taken beyond (`decoding.Rows`)."""

    request: Request
    futures: list[Future]
    state_S: np.ndarray
    excess_S: np.ndarray


@dataclasses.dataclass
class _Slots:
    """What the host knows of the slots; `cache_WxS` is a running sample's slot, `free` those that none has."""

    free: list[int]
    cache_WxS: np.ndarray
    prompt_W: np.ndarray  # index of the prompt, -1 where free
    prefix_length_W: np.ndarray
    first_interval_W: np.ndarray
    horizon_W: np.ndarray
    key_WxSx2: np.ndarray
    length_WxS: np.ndarray
    token_WxS: np.ndarray
    clock_WxS: np.ndarray
    stop_WxS: np.ndarray
    state_WxS: np.ndarray
    excess_WxS: np.ndarray
    tokens_WxSxT: np.ndarray
    clock_WxSxT: np.ndarray
    hazard_WxSxTxK: np.ndarray
    decided_WxSxTxK: np.ndarray

    @classmethod
    def empty(cls, prompts: int, samples: int, caches: int, max_tokens: int, outcomes: int) -> "_Slots":
        zeros = lambda *shape: np.zeros(shape, np.int32)  # noqa: E731
        pair = (prompts, samples)
        return cls(
            free=list(range(caches)),
            cache_WxS=zeros(*pair) - 1,
            prompt_W=zeros(prompts) - 1,
            prefix_length_W=zeros(prompts),
            first_interval_W=zeros(prompts) - 1,
            horizon_W=zeros(prompts),
            key_WxSx2=np.zeros((*pair, 2), np.uint32),
            length_WxS=zeros(*pair),
            token_WxS=zeros(*pair),
            clock_WxS=zeros(*pair),
            stop_WxS=zeros(*pair) + 1,
            state_WxS=zeros(*pair),
            excess_WxS=zeros(*pair),
            tokens_WxSxT=zeros(*pair, max_tokens),
            clock_WxSxT=zeros(*pair, max_tokens),
            hazard_WxSxTxK=np.zeros((*pair, max_tokens, outcomes), np.float32),
            decided_WxSxTxK=np.zeros((*pair, max_tokens, outcomes), bool),
        )

    def admit(self, slot: int, index: int, request: Request) -> None:
        """Put a prompt and its samples into a free slot, and slots that are free."""
        start = request.start
        self.cache_WxS[slot] = [self.free.pop() for _ in request.key_Sx2]
        self.prompt_W[slot] = index
        self.prefix_length_W[slot] = len(start.tokens_T) - 1
        self.first_interval_W[slot] = start.first_interval
        self.horizon_W[slot] = request.horizon
        self.key_WxSx2[slot] = request.key_Sx2
        self.length_WxS[slot], self.stop_WxS[slot] = 0, 0
        self.token_WxS[slot], self.clock_WxS[slot] = start.tokens_T[-1], start.clock
        self.state_WxS[slot], self.excess_WxS[slot] = start.state, start.excess

    def record(
        self,
        at_R: np.ndarray,
        result: Mapping[str, np.ndarray],
        since_answered: Callable[[tuple[int, int], np.ndarray, np.ndarray], int | None],
    ) -> None:
        """Take in a chunk's result for the rows of these samples (w S + s), and free the slots of those that ended.

        `since_answered`: of a sample, its new tokens and the clock after each, how many came since all that is asked
        was answered.
        """
        for row, flat in enumerate(at_R):
            at = divmod(int(flat), self.stop_WxS.shape[1])
            taken, length = result["taken_R"][row], self.length_WxS[at]
            self.tokens_WxSxT[at][length : length + taken] = result["tokens_RxT"][row, :taken]
            self.clock_WxSxT[at][length : length + taken] = result["clock_RxT"][row, :taken]
            self.hazard_WxSxTxK[at][length : length + taken] = result["hazard_RxTxK"][row, :taken]
            self.decided_WxSxTxK[at][length : length + taken] = result["decided_RxTxK"][row, :taken]
            self.token_WxS[at] = result["tokens_RxT"][row, taken - 1]
            self.length_WxS[at] += taken
            for name in ("clock", "stop", "state", "excess"):
                getattr(self, f"{name}_WxS")[at] = result[f"{name}_R"][row]
            surplus = since_answered(at, result["tokens_RxT"][row, :taken], result["clock_RxT"][row, :taken])
            # Of a future that just stopped by itself, what it stopped by is told, unless it was answered before.
            if surplus is not None and (surplus or not self.stop_WxS[at]):
                self.length_WxS[at] -= surplus
                self.stop_WxS[at] = decoding.STOPS.index("answered")
            if self.stop_WxS[at]:
                self.free.append(int(self.cache_WxS[at]))


class Batches:
    """Runs requests of one length bucket after another through `decoding`, on one device."""

    def __init__(
        self,
        model: Decoder,
        vocabulary: Vocabulary,
        rules: decoding.Rules,
        config: SimulationConfig,
        device: jax.Device,
        questions: Questions | None = None,
    ) -> None:
        self.device, self.questions = device, questions
        self.graph, weights = nnx.split(model)
        weights, self.rules = jax.device_put((in_compute_dtype(weights, model.config), rules), device)
        self.weights = decoding.laid_out(self.graph, weights)
        self.vocabulary, self.config, self.shape = vocabulary, config, model.config
        self.cache_dtype = config.cache_dtype or model.config.compute_dtype
        self.outcomes = 0 if rules.outcomes is None else rules.outcomes.first_VxK.shape[1]
        self.chunks = -(-config.max_new_tokens // config.chunk_steps)
        self.bounds = _bounds(self.chunks, config.chunk_steps, close=device.platform != "cpu")
        self.in_place = hopper_decoding.sizes_for(
            model.config.attention_heads, self.cache_dtype, config.chunk_steps, described(device)
        )
        if self.in_place:  # each row reads what it has, and no more
            self.bounds = [self.chunks]
        self.tile_rows = _TILE_ROWS if device.platform == "cpu" and not self.in_place else None
        self.limits = self._put(
            {"temperature": np.float32(config.temperature), "max_new_tokens": np.int32(config.max_new_tokens)}
        )

    def one_by_one(self) -> "Batches":
        """The same for requests of one sample each."""
        single = copy.copy(self)
        # Each then has a prompt of its own in memory: no more are held than a batch takes.
        single.config = dataclasses.replace(self.config, samples=1, pool_batches=1)
        return single

    def run(self, bucket: int, waiting: Queue, takers: int = 1) -> Iterator[tuple[int, Drawn]]:
        """Yield (request's number, its futures) as requests finish, until `waiting` (all of this bucket) is empty.

        `takers`: how many take from `waiting`; near its end none takes more than its share.
        """
        config = self.config
        prefill_rows = max(1, min(8, _PREFILL_TOKENS // bucket))
        most = 1 << max(0, len(waiting) - 1).bit_length()
        whole = min(most, -(-config.pool_batches * config.batch_rows // config.samples))  # prompts with all samples
        caches = whole * config.samples
        num_slots = min(most, _PROMPTS * whole, max(whole, caches * config.max_new_tokens // bucket))
        slots = _Slots.empty(num_slots, config.samples, caches, config.max_new_tokens, self.outcomes)
        prefixes = self._pool(num_slots, (), bucket)
        chunks = self.chunks
        if self.in_place:
            chunks = hopper_decoding.whole_chunks(chunks, config.chunk_steps, self.in_place)
        suffixes = self._pool(caches, (chunks,), config.chunk_steps)
        requests: dict[int, Request] = {}

        def since_answered(at: tuple[int, int], new_T: np.ndarray, clock_T: np.ndarray) -> int | None:
            request = requests[int(slots.prompt_W[at[0]])]
            if self.questions is None or request.asks_K is None:
                return None
            if at[1] not in request.watches:
                request.watches[at[1]] = self.questions.watch(request.asks_K)
            return request.watches[at[1]].read(new_T, clock_T)

        while waiting or requests:
            free = np.flatnonzero(slots.prompt_W < 0)[: len(slots.free) // config.samples]
            group = self._fullest(slots, bucket)
            if waiting and len(free) and not group.full:
                admitted = []
                share = -(-len(waiting) // takers)
                for slot in free[: min(prefill_rows, share)].tolist():
                    try:  # another device may have taken the last
                        index, request = waiting.popleft()
                    except IndexError:
                        break
                    requests[index] = request
                    slots.admit(slot, index, request)
                    admitted.append((slot, request.start.tokens_T[:-1]))
                prefixes = self._prefill(prefixes, admitted, (prefill_rows, bucket))
                continue
            if not requests:
                continue
            at_R, rows = _rows(slots, group, caches)
            suffixes, result = decoding.decode_chunk(
                self.graph,
                self.weights,
                self.rules,
                self.limits,
                prefixes,
                suffixes,
                self._put(rows),
                earlier_chunks=group.bound,
                tile_rows=max(self.tile_rows, group.block) if self.tile_rows else None,
                in_place=self.in_place,
            )
            real_R = np.flatnonzero(at_R < slots.stop_WxS.size)
            chunk = {name: array[real_R] for name, array in jax.device_get(result).items()}
            slots.record(at_R[real_R], chunk, since_answered)
            for slot in np.flatnonzero((slots.prompt_W >= 0) & (slots.stop_WxS > 0).all(1)).tolist():
                index = int(slots.prompt_W[slot])
                slots.prompt_W[slot] = -1
                request = requests.pop(index)
                after = (slots.state_WxS[slot].copy(), slots.excess_WxS[slot].copy())
                yield index, Drawn(request, self._futures(slots, slot, request), *after)

    def _put(self, tree):
        return jax.device_put(tree, self.device)

    def _pool(self, slots: int, chunks: tuple[int, ...], tokens: int) -> decoding.Pool:
        shape = (slots, self.shape.kv_heads, *chunks, tokens, self.shape.head_dim)
        dtype = self.cache_dtype if self.in_place else pool_dtype(self.cache_dtype, self.device.platform)
        empty = lambda: jnp.zeros(shape, dtype, device=self.device)  # noqa: E731
        return [(empty(), empty()) for _ in range(self.shape.layers)]

    def _prefill(
        self, pool: decoding.Pool, starts: list[tuple[int, np.ndarray]], shape: tuple[int, int]
    ) -> decoding.Pool:
        tokens_PxX = np.zeros(shape, np.int32)
        slot_P = np.full(len(tokens_PxX), len(pool[0][0]), np.int32)  # of padding: no slot, and nothing is written
        for row, (slot, tokens_T) in enumerate(starts):
            tokens_PxX[row, : len(tokens_T)] = tokens_T
            slot_P[row] = slot
        return decoding.prefill(self.graph, self.weights, pool, *self._put((tokens_PxX, slot_P)))

    def _fullest(self, slots: _Slots, bucket: int) -> "_Group":
        # Rows whose earlier chunks share a bound can go together: of the bounds, the one with the most rows.
        config = self.config
        chunks_WxS = slots.length_WxS // config.chunk_steps
        bound_WxS = np.asarray(self.bounds)[np.searchsorted(self.bounds, chunks_WxS)]
        bound_WxS[slots.stop_WxS > 0] = 0
        groups = []
        for bound, block in self._shapes(bucket):
            rows_of = []
            for slot in np.flatnonzero((bound_WxS == bound).any(1)).tolist():
                samples = np.flatnonzero(bound_WxS[slot] == bound)
                rows_of += [(slot, samples[at : at + block]) for at in range(0, len(samples), block)]
            rows_of.sort(key=lambda chosen: -len(chosen[1]))
            most = max(1, config.batch_rows // block)
            if self.tile_rows:  # whole tiles
                most += -most % max(1, self.tile_rows // block)
            with_few = bound * config.chunk_steps > _LONG and not (self.in_place or self.tile_rows)
            few = max(1, most // _FEW) if with_few else most
            size = few if len(rows_of) <= few else most
            groups.append(_Group(bound, block, size, rows_of[:size], full=len(rows_of) >= most))
        rows_in = lambda group: sum(len(samples) for _, samples in group.rows_of)  # noqa: E731
        if self.in_place:
            wide, narrow = groups
            return narrow if rows_in(narrow) > _NARROW * rows_in(wide) else wide
        return max(groups, key=rows_in)

    def _shapes(self, bucket: int) -> list[tuple[int, int]]:
        # (bound, rows of a block) that batches may have.
        if self.in_place:
            block = block_rows(bucket, 0, self.config)
            return [(self.chunks, block), (self.chunks, max(1, block // 4))]
        return [(bound, block_rows(bucket, bound, self.config)) for bound in self.bounds[::-1]]

    def _futures(self, slots: _Slots, slot: int, request: Request) -> list[Future]:
        futures = []
        for sample in range(self.config.samples):
            at, stop = (slot, sample), decoding.STOPS[slots.stop_WxS[slot, sample]]
            tokens_T = slots.tokens_WxSxT[at][: slots.length_WxS[at]].copy()
            futures.append(
                Future(
                    request.prompt.subject_id,
                    request.prompt.prediction_time_us,
                    self.config.first_sample + sample,
                    tokens_T,
                    stop,
                    request.start.clock,
                    slots.hazard_WxSxTxK[at][: len(tokens_T)].copy() if self.outcomes else None,
                    slots.decided_WxSxTxK[at][: len(tokens_T)].copy() if self.outcomes else None,
                    slots.clock_WxSxT[at][: len(tokens_T)].astype(np.int64),
                )
            )
        return futures


def _bounds(chunks: int, chunk_steps: int, close: bool) -> list[int]:
    """Bounds on a row's earlier chunks, up to all. A row attends to as many as its bound, and each bound costs a
    compilation: halves of each other where they are long, or all short and so few, or `close`, for a device whose steps
    wait for memory alone; quarters elsewhere."""
    bounds = [chunks]
    close |= chunks * chunk_steps <= _LONG
    while bounds[-1] > _FIRST:
        bounds.append(-(-bounds[-1] // (2 if close or bounds[-1] * chunk_steps > _LONG else 4)))
    return bounds[::-1]


def block_rows(bucket: int, bound: int, config: SimulationConfig) -> int:
    """How many samples of one prompt share a block, and so a copy of its keys and values, in a batch.

    At first all run: more where the prompt is long, for the copies' sake, few otherwise. Later few of a prompt's
    samples are of like length: two, or as many as bring a row's part of the copy to half of what it reads of its own.
    """
    block = max(8, bucket // 64)
    if bound > _FIRST:
        block = min(block, max(2, 2 * bucket // (bound * config.chunk_steps)))
    return 1 << (min(block, config.samples).bit_length() - 1)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Rows of a batch of `size` blocks: of each block, the prompt's slot and which of its samples."""

    bound: int
    block: int
    size: int
    rows_of: list[tuple[int, np.ndarray]]
    full: bool


def _rows(slots: _Slots, group: _Group, caches: int) -> tuple[np.ndarray, decoding.Rows]:
    num_slots, samples = slots.stop_WxS.shape
    # Padding has slots that are not there: what it would write is dropped.
    prefix_slot_Q = np.full(group.size, num_slots, np.int32)
    at_QxS = np.full((group.size, group.block), num_slots * samples, np.int32)
    for row, (slot, of_slot) in enumerate(group.rows_of):
        prefix_slot_Q[row] = slot
        at_QxS[row, : len(of_slot)] = slot * samples + of_slot
    at_R = at_QxS.reshape(-1)

    def of_prompts(values_W: np.ndarray, padding: int) -> np.ndarray:
        return np.append(values_W, values_W.dtype.type(padding))[prefix_slot_Q]

    def of_rows(values_WxS: np.ndarray, padding: int) -> np.ndarray:
        return np.append(values_WxS.reshape(-1), values_WxS.dtype.type(padding))[at_R]

    return at_R, decoding.Rows(
        prefix_slot_Q=prefix_slot_Q,
        prefix_length_Q=of_prompts(slots.prefix_length_W, 1),
        slot_R=of_rows(slots.cache_WxS, caches),
        length_R=of_rows(slots.length_WxS, 0),
        token_R=of_rows(slots.token_WxS, 0),
        clock_R=of_rows(slots.clock_WxS, 0),
        stop_R=of_rows(slots.stop_WxS, 1),
        key_Rx2=np.append(slots.key_WxSx2.reshape(-1, 2), np.zeros((1, 2), np.uint32), axis=0)[at_R],
        first_interval_R=np.repeat(of_prompts(slots.first_interval_W, -1), group.block),
        horizon_R=np.repeat(of_prompts(slots.horizon_W, 0), group.block),
        state_R=of_rows(slots.state_WxS, 0),
        excess_R=of_rows(slots.excess_WxS, 0),
    )
