"""Simulate futures: many samples for each prompt, decoded in full batches, the same whatever runs beside them.

The host keeps slots: a prompt slot holds a prompt's keys and values, and each of its samples has a sample slot. Between
chunks it takes running samples of like length into the next batch and fills freed slots with waiting prompts
(continuous batching at chunk borders). All shapes are static: a prompt's length bucket depends on the prompt alone, a
batch's bound of earlier tokens on its rows alone. The random number of (seed, subject, prediction time, sample, step)
is counter-based. So a prompt's futures depend neither on the other prompts, nor on their order.

The clock counts whole seconds since the prediction time and advances by the mean durations of interval tokens. What
happened between a prompt's last event and its prediction time is known: nothing. Futures are conditioned on it:
- the gap is too short for an interval token: no condition, the clock starts at 0;
- it has reached the last, repeating interval: as many of its tokens as the gap is worth are appended to the prompt;
- otherwise the first token must be an interval whose range ends after the gap (exact up to the range that holds the
  gap), and the clock after it is at least 0.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx

from cometjax import decoding
from cometjax.model import Decoder
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import PREFIX_LENGTH, Vocabulary

_SMALLEST_BUCKET = 128
# Clocks are int32 seconds: 34 years of horizon leave room for the longest gap before it.
_LONGEST_HORIZON = 2**30


class Prompt(Protocol):
    """What the engine reads of a `data_pipeline.prompts.Prompt`."""

    @property
    def subject_id(self) -> int:
        """The MEDS subject id."""

    @property
    def prediction_time_us(self) -> int:
        """Microseconds since 1970."""

    @property
    def last_time_us(self) -> int:
        """Time of the history's last event."""

    def tokens(self, max_tokens: int) -> np.ndarray:
        """int32 tokens of the history, at most so many."""


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """How to simulate.

    Attributes:
        samples: futures for each prompt.
        horizon_seconds: a sample stops once its clock is later than prediction time + horizon. It only ends a future
            sooner or later: what a longer one draws begins with what a shorter one does.
        max_new_tokens: bound on a future's tokens (stop "length").
        max_prompt_tokens: bound on a prompt's tokens; the latest are kept, behind the static prefix.
        temperature: logits are divided by it.
        seed: of the futures; the same seed gives the same futures.
        stop_at_timeline_end: may TIMELINE_END be drawn, and stop a future? By default it is masked out: futures are
            under continued observation, and the chance of leaving the data set is no part of them.
        stop_after_tokens: token ids that answer the open question (stop "answered").
        batch_rows: samples decoded at a time.
        chunk_steps: tokens decoded before finished samples are replaced.
        pool_batches: how many batches of samples are held at a time; more keep the batches fuller.
    """

    samples: int
    horizon_seconds: float
    max_new_tokens: int = 256
    max_prompt_tokens: int = 512
    temperature: float = 1.0
    seed: int = 0
    stop_at_timeline_end: bool = False
    stop_after_tokens: frozenset[int] = frozenset()
    batch_rows: int = 128
    chunk_steps: int = 32
    pool_batches: int = 3

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_rows", "chunk_steps", "pool_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"{getattr(self, name)} is too small", where=name, fix="give at least 1")
        if self.max_prompt_tokens <= PREFIX_LENGTH:
            raise UserError(
                f"{self.max_prompt_tokens} is too small",
                where="max_prompt_tokens",
                fix=f"give more than the {PREFIX_LENGTH} tokens of the static prefix",
            )
        if not self.temperature > 0:
            raise UserError(f"{self.temperature} is not above 0", where="temperature")
        _check_horizon(self.horizon_seconds)


def _check_horizon(seconds: float) -> None:
    if not 0 < seconds < _LONGEST_HORIZON:
        raise UserError(
            f"{seconds} s is no usable horizon",
            where="horizon_seconds",
            fix=f"give more than 0 s and less than {_LONGEST_HORIZON} s (34 years)",
        )


@dataclasses.dataclass(frozen=True)
class Future:
    """One simulated continuation.

    Attributes:
        subject_id, prediction_time_us: the prompt's; microseconds since 1970.
        sample: 0 ... samples - 1.
        tokens_T: int32, the drawn tokens, the one that stopped it included.
        stop: "death", "timeline_end", "horizon", "length" or "answered".
        start_seconds: the clock before the first token, in seconds after the prediction time: after token t the clock
            is start_seconds plus `decoding.token_seconds` of tokens 0 ... t. Negative where the first interval began
            before the prediction time.
    """

    subject_id: int
    prediction_time_us: int
    sample: int
    tokens_T: np.ndarray
    stop: str
    start_seconds: int = 0


@dataclasses.dataclass(frozen=True)
class Start:
    """A prompt made ready: its tokens, the clock in seconds (0 or less), and the least interval index that the first
    token may have (-1: any token may come)."""

    tokens_T: np.ndarray
    clock: int
    first_interval: int


def start_of(prompt: Prompt, vocabulary: Vocabulary, max_prompt_tokens: int) -> Start:
    """Condition a prompt on survival, without events, from its last event to its prediction time (module docstring)."""
    elapsed = max(0, prompt.prediction_time_us - prompt.last_time_us) / 1e6
    index, repeats = (int(array[0]) for array in vocabulary.interval_preset.classify(np.array([elapsed])))
    if index < 0:
        return Start(prompt.tokens(max_prompt_tokens), 0, -1)
    if index < len(vocabulary.interval_ids) - 1:
        return Start(prompt.tokens(max_prompt_tokens), -round(elapsed), index)
    repeats = min(repeats, max_prompt_tokens - PREFIX_LENGTH)
    gap_T = np.full(repeats, vocabulary.interval_ids[-1], np.int32)
    return Start(np.concatenate([prompt.tokens(max_prompt_tokens - repeats), gap_T]).astype(np.int32), 0, -1)


def simulate_futures(
    model: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    config: SimulationConfig,
    *,
    horizons: Sequence[float] | None = None,
    progress: bool = False,
) -> list[Future]:
    """Futures of all prompts, in order: prompt 0's samples 0 ... S-1, prompt 1's, ... `progress` shows a bar.

    `horizons`, in seconds, gives each prompt one of its own in place of config.horizon_seconds.
    """
    if horizons is None:
        horizons = [config.horizon_seconds] * len(prompts)
    for seconds in horizons:
        _check_horizon(seconds)
    table = decoding.token_table(
        vocabulary, stop_at_timeline_end=config.stop_at_timeline_end, answers=config.stop_after_tokens
    )
    starts = [start_of(prompt, vocabulary, config.max_prompt_tokens) for prompt in prompts]
    by_bucket = collections.defaultdict(list)
    for index, start in enumerate(starts):
        by_bucket[_bucket(len(start.tokens_T) - 1)].append(index)
    batches = _Batches(model, table, config)
    futures: dict[int, list[Future]] = {}
    with tqdm.tqdm(
        total=len(prompts) * config.samples, unit="future", desc="simulate", disable=None if progress else True
    ) as bar:
        for bucket, indices in sorted(by_bucket.items()):
            for index, samples in batches.run(
                bucket, {index: (prompts[index], starts[index], int(horizons[index])) for index in indices}, bar.update
            ):
                futures[index] = samples
    return [future for index in range(len(prompts)) for future in futures[index]]


def _bucket(length: int) -> int:
    return max(_SMALLEST_BUCKET, 1 << (length - 1).bit_length())


@dataclasses.dataclass
class _Slots:
    """What the host knows of the slots: W prompt slots, each with S sample slots; sample slot = w S + s."""

    prompt_W: np.ndarray  # index of the prompt, -1 where free
    prefix_length_W: np.ndarray
    first_interval_W: np.ndarray
    horizon_W: np.ndarray
    key_WxSx2: np.ndarray
    length_WxS: np.ndarray
    token_WxS: np.ndarray
    clock_WxS: np.ndarray
    stop_WxS: np.ndarray
    tokens_WxSxT: np.ndarray

    @classmethod
    def empty(cls, prompts: int, samples: int, max_tokens: int) -> "_Slots":
        zeros = lambda *shape: np.zeros(shape, np.int32)  # noqa: E731
        pair = (prompts, samples)
        return cls(
            zeros(prompts) - 1,
            zeros(prompts),
            zeros(prompts) - 1,
            zeros(prompts),
            np.zeros((*pair, 2), np.uint32),
            zeros(*pair),
            zeros(*pair),
            zeros(*pair),
            zeros(*pair) + 1,
            zeros(*pair, max_tokens),
        )

    def admit(self, slot: int, index: int, start: Start, horizon: int, key_Sx2: np.ndarray) -> None:
        """Put a prompt and its samples into a free slot."""
        self.prompt_W[slot] = index
        self.prefix_length_W[slot] = len(start.tokens_T) - 1
        self.first_interval_W[slot] = start.first_interval
        self.horizon_W[slot] = horizon
        self.key_WxSx2[slot] = key_Sx2
        self.length_WxS[slot], self.stop_WxS[slot] = 0, 0
        self.token_WxS[slot], self.clock_WxS[slot] = start.tokens_T[-1], start.clock

    def record(self, slot_R: np.ndarray, result: dict[str, np.ndarray]) -> None:
        """Take in a chunk's result for the rows of these sample slots."""
        for row, slot in enumerate(slot_R):
            at = divmod(int(slot), self.stop_WxS.shape[1])
            taken, length = result["taken_R"][row], self.length_WxS[at]
            self.tokens_WxSxT[at][length : length + taken] = result["tokens_RxT"][row, :taken]
            self.token_WxS[at] = result["tokens_RxT"][row, taken - 1]
            self.length_WxS[at] += taken
            self.clock_WxS[at], self.stop_WxS[at] = result["clock_R"][row], result["stop_R"][row]


class _Batches:
    """Runs the prompts of one length bucket after another through `decoding`."""

    prefill_rows = 8

    def __init__(self, model: Decoder, table: decoding.TokenTable, config: SimulationConfig) -> None:
        self.graph, self.weights = nnx.split(model)
        self.table, self.config = table, config
        self.shape = model.config
        self.block = 1 << (min(8, config.samples, config.batch_rows).bit_length() - 1)
        self.blocks = config.batch_rows // self.block
        self.chunks = -(-config.max_new_tokens // config.chunk_steps)
        # Bounds on earlier chunks: powers of four times a chunk or two, up to all. Each costs a compilation.
        self.bounds = sorted({-(-self.chunks // 4**power) for power in range(1 + int(math.log(self.chunks, 4)))})
        self.limits = jax.device_put(
            {
                "temperature": np.float32(config.temperature),
                "max_new_tokens": np.int32(config.max_new_tokens),
            }
        )

    def run(
        self, bucket: int, prompts: dict[int, tuple[Prompt, Start, int]], finished: Any
    ) -> Iterator[tuple[int, list[Future]]]:
        """Yield (prompt's index, its futures) as prompts finish; `finished(n)` is told of n more finished samples.

        `prompts`: by index, the prompt, its start, and its horizon in seconds.
        """
        config = self.config
        num_slots = -(-config.pool_batches * self.blocks * self.block // config.samples)
        num_slots = min(num_slots, 1 << (len(prompts) - 1).bit_length())
        slots = _Slots.empty(num_slots, config.samples, config.max_new_tokens)
        # The last slot of each pool takes what padding writes.
        prefixes = self._pool(num_slots + 1, (), bucket)
        suffixes = self._pool(num_slots * config.samples + 1, (self.chunks,), config.chunk_steps)
        keys = sample_keys(config.seed, [prompt for prompt, _, _ in prompts.values()], config.samples)
        waiting = collections.deque(zip(prompts, keys, strict=True))
        while waiting or (slots.prompt_W >= 0).any():
            free = np.flatnonzero(slots.prompt_W < 0)
            chunks, blocks = self._fullest(slots)
            if waiting and len(free) and len(blocks) < self.blocks:
                admitted = [(int(slot), *waiting.popleft()) for slot in free[: min(self.prefill_rows, len(waiting))]]
                for slot, index, key_Sx2 in admitted:
                    slots.admit(slot, index, *prompts[index][1:], key_Sx2)
                starts = [(slot, prompts[index][1].tokens_T[:-1]) for slot, index, _ in admitted]
                prefixes = self._prefill(prefixes, starts, bucket)
                continue
            slot_R, rows = self._rows(slots, blocks[: self.blocks])
            suffixes, result = decoding.decode_chunk(
                self.graph,
                self.weights,
                self.table,
                self.limits,
                prefixes,
                suffixes,
                jax.device_put(rows),
                earlier_chunks=chunks,
            )
            real_R = np.flatnonzero(slot_R < slots.stop_WxS.size)
            result = {name: array[real_R] for name, array in jax.device_get(result).items()}
            slots.record(slot_R[real_R], result)
            finished(int((result["stop_R"] > 0).sum()))
            for slot in np.flatnonzero((slots.prompt_W >= 0) & (slots.stop_WxS > 0).all(1)).tolist():
                index = int(slots.prompt_W[slot])
                yield index, self._futures(slots, slot, *prompts[index][:2])
                slots.prompt_W[slot] = -1

    def _pool(self, slots: int, chunks: tuple[int, ...], tokens: int) -> decoding.Pool:
        shape = (slots, self.shape.kv_heads, *chunks, tokens, self.shape.head_dim)
        empty = lambda: jnp.zeros(shape, self.shape.compute_dtype)  # noqa: E731
        return [(empty(), empty()) for _ in range(self.shape.layers)]

    def _prefill(self, pool: decoding.Pool, starts: list[tuple[int, np.ndarray]], bucket: int) -> decoding.Pool:
        tokens_PxX = np.zeros((self.prefill_rows, bucket), np.int32)
        slot_P = np.full(self.prefill_rows, len(pool[0][0]) - 1, np.int32)
        for row, (slot, tokens_T) in enumerate(starts):
            tokens_PxX[row, : len(tokens_T)] = tokens_T
            slot_P[row] = slot
        return decoding.prefill(self.graph, self.weights, pool, *jax.device_put((tokens_PxX, slot_P)))

    def _fullest(self, slots: _Slots) -> tuple[int, list[tuple[int, np.ndarray]]]:
        # Rows whose earlier chunks share a bound can go together: of the bounds, the one with the most blocks.
        chunks_WxS = slots.length_WxS // self.config.chunk_steps
        bound_WxS = np.asarray(self.bounds)[np.searchsorted(self.bounds, chunks_WxS)]
        bound_WxS[slots.stop_WxS > 0] = 0
        best: tuple[int, list[tuple[int, np.ndarray]]] = (0, [])
        for bound in self.bounds[::-1]:
            blocks = []
            for slot in np.flatnonzero((bound_WxS == bound).any(1)).tolist():
                samples = np.flatnonzero(bound_WxS[slot] == bound)
                blocks += [(slot, samples[at : at + self.block]) for at in range(0, len(samples), self.block)]
            if len(blocks) > len(best[1]):
                best = bound, blocks
        return best

    def _rows(self, slots: _Slots, blocks: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, decoding.Rows]:
        num_slots, samples = slots.stop_WxS.shape
        prefix_slot_Q = np.full(self.blocks, num_slots, np.int32)
        slot_QxS = np.full((self.blocks, self.block), num_slots * samples, np.int32)
        for row, (slot, chosen) in enumerate(blocks):
            prefix_slot_Q[row] = slot
            slot_QxS[row, : len(chosen)] = slot * samples + chosen
        slot_R = slot_QxS.reshape(-1)

        def of_prompts(values_W: np.ndarray, padding: int) -> np.ndarray:
            return np.append(values_W, values_W.dtype.type(padding))[prefix_slot_Q]

        def of_rows(values_WxS: np.ndarray, padding: int) -> np.ndarray:
            return np.append(values_WxS.reshape(-1), values_WxS.dtype.type(padding))[slot_R]

        key_Rx2 = np.append(slots.key_WxSx2.reshape(-1, 2), np.zeros((1, 2), np.uint32), axis=0)[slot_R]
        return slot_R, decoding.Rows(
            prefix_slot_Q=prefix_slot_Q,
            prefix_length_Q=of_prompts(slots.prefix_length_W, 0),
            slot_R=slot_R,
            length_R=of_rows(slots.length_WxS, 0),
            token_R=of_rows(slots.token_WxS, 0),
            clock_R=of_rows(slots.clock_WxS, 0),
            stop_R=of_rows(slots.stop_WxS, 1),
            key_Rx2=key_Rx2,
            first_interval_R=np.repeat(of_prompts(slots.first_interval_W, -1), self.block),
            horizon_R=np.repeat(of_prompts(slots.horizon_W, 0), self.block),
        )

    def _futures(self, slots: _Slots, slot: int, prompt: Prompt, start: Start) -> list[Future]:
        seconds_V = np.asarray(self.table.seconds_V)
        futures = []
        for sample in range(self.config.samples):
            tokens_T = slots.tokens_WxSxT[slot, sample, : slots.length_WxS[slot, sample]].copy()
            before = start.clock
            if start.first_interval >= 0:
                before = max(start.clock, -int(seconds_V[tokens_T[0]]))
            stop = decoding.STOPS[slots.stop_WxS[slot, sample]]
            futures.append(Future(prompt.subject_id, prompt.prediction_time_us, sample, tokens_T, stop, before))
        return futures


def sample_keys(seed: int, prompts: Sequence[Prompt], samples: int) -> np.ndarray:
    """Raw threefry keys, uint32 [prompts, samples, 2]: a function of (seed, subject, prediction time, sample) alone."""
    words = [
        [
            word
            for value in (prompt.subject_id, prompt.prediction_time_us)
            for word in ((value >> 32) & 0xFFFFFFFF, value & 0xFFFFFFFF)
        ]
        for prompt in prompts
    ]

    def one(words_4: jax.Array, sample: jax.Array) -> jax.Array:
        key = jax.random.key(seed, impl="threefry2x32")
        for word in words_4:
            key = jax.random.fold_in(key, word)
        return jax.random.key_data(jax.random.fold_in(key, sample))

    each = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return np.asarray(each(jnp.asarray(words, jnp.uint32), jnp.arange(samples, dtype=jnp.uint32)))
