"""Simulate futures: many samples for each prompt, decoded in full batches, the same whatever runs beside them.

A prompt's keys and values are computed once and shared by its samples (`cometjax.decoding`); the samples of many
prompts fill the batches (`cometjax.batches`); several devices take prompts from one queue. The random number of (seed,
subject, prediction time, sample, step) is counter-based. So a prompt's futures depend neither on the other prompts, nor
on their order, nor on the number of devices.
"""

import collections
import queue
import threading
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from cometjax import batches, context_windows, decoding, grammar_states
from cometjax.futures import Future, Prompt, SimulationConfig, Start, check_horizon, start_of, timeline_end_of
from cometjax.model import Decoder
from cometjax.open_questions import Questions
from data_pipeline import engines
from data_pipeline.progress_bar import progress_bar
from data_pipeline.vocabulary import Vocabulary

_KEYS_AT_ONCE = 256
_MOST_BATCHES_ON_CPU = 8  # each has its pools of keys and values
_PROMPTS_OF_WAVE, _BATCHES_OF_WAVE = 256, 32

__all__ = ["Future", "Prompt", "SimulationConfig", "Start", "iter_futures", "simulate_futures", "start_of"]


def simulate_futures(
    model: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    config: SimulationConfig,
    *,
    horizons: Sequence[float] | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> list[Future]:
    """All futures, in order: prompt 0's samples 0 ... S-1, prompt 1's, ... Arguments as of `iter_futures`."""
    futures = dict(
        iter_futures(model, vocabulary, prompts, config, horizons=horizons, devices=devices, progress=progress)
    )
    return [future for index in range(len(prompts)) for future in futures[index]]


def iter_futures(
    model: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    config: SimulationConfig,
    *,
    horizons: Sequence[float] | None = None,
    outcomes: Sequence[frozenset[str]] = (),
    suppress: bool = False,
    questions: Questions | None = None,
    asks_PxK: np.ndarray | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = False,
) -> Iterator[tuple[int, list[Future]]]:
    """Yield (index of a prompt, its futures in order of samples) as prompts finish, in no order to rely on.

    Args:
        model: the decoder; its weights are copied to each device.
        vocabulary: the model's.
        prompts: whose futures to draw.
        config: how.
        horizons: in seconds, one for each prompt in place of config.horizon_seconds.
        outcomes: sets of concepts, whose probability each future then tells (`Future.hazard_TxK`); needs
            config.grammar, for without it no code is certain before its last token.
        suppress: never draw what makes the first outcome certain.
        questions: a future ends once those of them that are asked of its prompt are answered.
        asks_PxK: bool, which those are.
        devices: those that share the prompts, each as often as it is named (a thread and a batch for each); default:
            `default_devices()`.
        progress: show a bar.
    """
    if (outcomes or suppress) and not config.grammar:
        raise ValueError("outcomes are watched under the grammar only")
    if horizons is None:
        horizons = [config.horizon_seconds] * len(prompts)
    for seconds in horizons:
        check_horizon(seconds)
    if not prompts:
        return
    rules = decoding.Rules(
        decoding.token_table(
            vocabulary,
            timeline_end=timeline_end_of(config, vocabulary),
            mean_durations=config.mean_durations,
        ),
        grammar_states.build_states(vocabulary) if config.grammar else None,
        grammar_states.build_outcomes(vocabulary, outcomes) if outcomes else None,
        suppress,
    )
    devices = default_devices() if devices is None else devices
    on_devices = [batches.Batches(model, vocabulary, rules, config, device, questions) for device in devices]
    keys_PxSx2 = sample_keys(config.seed, prompts, config.samples, config.first_sample)
    by_bucket: dict[int, batches.Queue] = collections.defaultdict(collections.deque)
    for index, prompt in enumerate(prompts):
        start = start_of(prompt, vocabulary, config.max_prompt_tokens)
        asks_K = None if asks_PxK is None else asks_PxK[index]
        request = batches.Request(prompt, start, int(horizons[index]), keys_PxSx2[index], asks_K)
        by_bucket[request.bucket].append((index, request))
    with progress_bar(total=len(prompts) * config.samples, unit="future", desc="simulate", enabled=progress) as bar:
        for bucket, every in sorted(by_bucket.items()):
            for waiting in _waves(every, config):
                for index, futures in _through_windows(on_devices, bucket, waiting, vocabulary, config):
                    bar.update(config.samples)
                    yield index, [_whole(future, vocabulary, config) for future in futures]


def _waves(waiting: batches.Queue, config: SimulationConfig) -> Iterator[batches.Queue]:
    """All at once; where futures may go on in another window, so many that batches are mostly full, and that what is
    drawn of unfinished prompts, and lost with a kill, is bounded."""
    size = len(waiting)
    if config.max_windows > 1:
        size = max(_PROMPTS_OF_WAVE, _BATCHES_OF_WAVE * config.batch_rows // config.samples)
    for _ in range(0, len(waiting), size):
        yield collections.deque(waiting.popleft() for _ in range(min(size, len(waiting))))


def _through_windows(
    on_devices: Sequence[batches.Batches],
    bucket: int,
    waiting: batches.Queue,
    vocabulary: Vocabulary,
    config: SimulationConfig,
) -> Iterator[tuple[int, list[Future]]]:
    """Run a bucket's prompts, and window by window what outgrows the first; yield as prompts finish."""
    begun = dict(waiting)
    drawn: dict[int, list[Future]] = {}
    going_on: dict[int, int] = {}  # by prompt, how many of its futures
    cut: list[tuple[int, int, batches.Request]] = []  # prompt, sample, what goes on with it

    def go_on(index: int, samples: Sequence[int], last: batches.Drawn, places: Sequence[int]) -> None:
        for sample, place in zip(samples, places, strict=True):
            future = drawn[index][sample]
            request = context_windows.next_request(
                begun[index], future, last, place, vocabulary, config.max_prompt_tokens
            )
            cut.append((index, sample, request))

    for index, first in _share(on_devices, bucket, waiting):
        drawn[index] = first.futures
        samples = [s for s, future in enumerate(first.futures) if future.stop == "length" and config.max_windows > 1]
        if not samples:
            yield index, drawn.pop(index)
            continue
        going_on[index] = len(samples)
        go_on(index, samples, first, samples)
    one_by_one = [on_device.one_by_one() for on_device in on_devices] if cut else []
    for window in range(1, config.max_windows):
        places = [(index, sample) for index, sample, _ in cut]
        by_bucket: dict[int, batches.Queue] = collections.defaultdict(collections.deque)
        for number, request in enumerate(context_windows.with_keys([request for *_, request in cut], window)):
            by_bucket[request.bucket].append((number, request))
        cut.clear()
        for of_bucket, requests in sorted(by_bucket.items()):
            for number, last in _share(one_by_one, of_bucket, requests):
                index, sample = places[number]
                drawn[index][sample] = context_windows.joined(drawn[index][sample], last.futures[0])
                if last.futures[0].stop == "length" and window + 1 < config.max_windows:
                    go_on(index, [sample], last, [0])
                    continue
                going_on[index] -= 1
                if not going_on[index]:
                    yield index, drawn.pop(index)


def _whole(future: Future, vocabulary: Vocabulary, config: SimulationConfig) -> Future:
    """Under the grammar without the tokens of an event that the bound on tokens left unfinished."""
    if not config.grammar or future.stop != "length":
        return future
    return context_windows.first_tokens(future, len(grammar_states.whole_events(future.tokens_T, vocabulary)))


def default_devices() -> list[jax.Device]:
    """All devices of this process; on CPU each as often as there are cores for it, up to eight.

    The operations of a decoding step are too small for XLA to split one over cores; batches side by side fill them.
    """
    devices = jax.local_devices()
    if jax.default_backend() != "cpu":
        return devices
    times = max(1, min(_MOST_BATCHES_ON_CPU, engines.cores() // len(devices)))
    return [device for device in devices for _ in range(times)]


def _share(
    on_devices: Sequence[batches.Batches], bucket: int, waiting: batches.Queue
) -> Iterator[tuple[int, batches.Drawn]]:
    """Run a bucket's prompts on all devices, a thread for each beyond the first; yield as prompts finish."""
    if len(on_devices) == 1 or len(waiting) == 1:
        yield from on_devices[0].run(bucket, waiting)
        return
    finished: queue.Queue[tuple[int, batches.Drawn] | BaseException | None] = queue.Queue()
    abandoned = threading.Event()

    def work(on_device: batches.Batches) -> None:
        try:
            for item in on_device.run(bucket, waiting, takers=len(on_devices)):
                finished.put(item)
                if abandoned.is_set():
                    return
            finished.put(None)
        except BaseException as error:  # raised again where the futures are asked for
            finished.put(error)

    threads = [threading.Thread(target=work, args=(on_device,)) for on_device in on_devices]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            item = finished.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        abandoned.set()
        waiting.clear()
        for thread in threads:
            thread.join()


def sample_keys(seed: int, prompts: Sequence[Prompt], samples: int, first_sample: int = 0) -> np.ndarray:
    """Raw threefry keys, uint32 [prompts, samples, 2]: a function of (seed, subject, prediction time, sample) alone."""
    words_Px4 = np.array(
        [
            [
                word
                for value in (prompt.subject_id, prompt.prediction_time_us)
                for word in ((value >> 32) & 0xFFFFFFFF, value & 0xFFFFFFFF)
            ]
            for prompt in prompts
        ],
        np.uint32,
    ).reshape(-1, 4)
    key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
    sample_S = (first_sample + np.arange(samples)).astype(np.uint32)
    keys_PxSx2 = np.zeros((len(prompts), samples, 2), np.uint32)
    for at in range(0, len(prompts), _KEYS_AT_ONCE):  # one shape, whatever the number of prompts
        part_Px4 = words_Px4[at : at + _KEYS_AT_ONCE]
        padded = np.zeros((_KEYS_AT_ONCE, 4), np.uint32)
        padded[: len(part_Px4)] = part_Px4
        keys_PxSx2[at : at + _KEYS_AT_ONCE] = np.asarray(_fold(key, padded, sample_S))[: len(part_Px4)]
    return keys_PxSx2


@jax.jit
def _fold(key: jax.Array, words_Px4: jax.Array, sample_S: jax.Array) -> jax.Array:
    def one(words_4: jax.Array, sample: jax.Array) -> jax.Array:
        folded = jax.random.wrap_key_data(key, impl="threefry2x32")
        for word in words_4:
            folded = jax.random.fold_in(folded, word)
        return jax.random.key_data(jax.random.fold_in(folded, sample))

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(words_Px4, sample_S)
