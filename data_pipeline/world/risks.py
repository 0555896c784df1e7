"""True risks: P(outcome within a horizon | history), by the world's own simulation from what the history leaves open.

A prompt's tokens are read (data_pipeline.world.reading); what its subject may be is drawn from the posterior, and each
draw lives on under the world's rules. The mean of many is the best possible prediction; its AUROC is the ceiling. Of
counts and durations the best prediction is the one with the least expected error (Question.kind says which error).

N prompts   P shares of the draws   R draws of a block of prompts   Q questions   W codes of an element
"""

import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
import threadpoolctl

from data_pipeline import cache
from data_pipeline.errors import UserError
from data_pipeline.progress_bar import progress_bar
from data_pipeline.prompts import Prompt
from data_pipeline.vocabulary import PREFIX_LENGTH, Vocabulary
from data_pipeline.world import catalogue, simulation, tables
from data_pipeline.world.draws import Draws, mix
from data_pipeline.world.futures import Futures, Outcomes
from data_pipeline.world.reading import Reader, Reading

DRAWS = 1_000
# Draws simulated together: wide columns, few enough for the cache.
_BLOCK_DRAWS = 16_000
# Years of futures, some five seconds: below, a new process costs more than it saves.
_YEARS_PER_PROCESS = 10_000
_US_PER_MINUTE = 60_000_000
_CACHE = "world"


@dataclasses.dataclass(frozen=True)
class Question:
    """What comes of an outcome in a window after the prediction time. Raises UserError for a wrong regular expression.

    Attributes:
        outcome: regular expression that a concept's name must match in full.
        horizon_days: the window's length.
        until: likewise; the first such event closes the window, its own instant included. "": none does.
        kind: what is answered. "binary": the probability of the outcome. "count": of the number N of outcomes the
            prediction whose RMSLE is least, exp(E log(1 + N)) - 1. "duration": of the days until the first, or until
            the window ends, the median, whose absolute error is least.
    """

    outcome: str
    horizon_days: float
    until: str = ""
    kind: str = "binary"

    def __post_init__(self) -> None:
        for name, pattern in (("outcome", self.outcome), ("until", self.until)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"is not a regular expression ({error})", where=f"{name} {pattern!r}") from error

    @property
    def horizon_minutes(self) -> float:
        """The horizon in minutes."""
        return self.horizon_days * simulation.DAY_MINUTES


def true_risks(
    prompts: Sequence[Prompt],
    vocabulary: Vocabulary,
    questions: Sequence[Question],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """Answers given the history, such as P(outcome in (prediction time, prediction time + horizon] | history).

    float64 [N, Q]; NaN where it can't be.

    The subject is taken to be observed throughout the horizon, as the labels of "dataset_end" tasks are. A prompt whose
    history the world cannot write has NaN. Results are kept in the user's cache. Raises UserError for a vocabulary that
    is not the world's.
    """
    return true_risks_by_part(prompts, vocabulary, questions, parts=1, draws=draws, seed=seed, progress=progress)[0]


def true_risks_by_part(
    prompts: Sequence[Prompt],
    vocabulary: Vocabulary,
    questions: Sequence[Question],
    *,
    parts: int,
    draws: int = DRAWS,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """The same, float64 [P, N, Q], from each of `parts` equal shares of the draws: what they differ by is their noise.

    `workers` processes share the prompts, which changes nothing; None: as many as pay.
    """
    reader = Reader(vocabulary)
    key = _digest(prompts, vocabulary, questions, (draws, parts, seed))
    path = cache.folder(_CACHE) / f"risks-{key}.npy"
    if path.is_file():
        return np.asarray(np.load(path, allow_pickle=False))
    risks_PxNxQ = np.full((parts, len(prompts), len(questions)), np.nan)
    size = max(1, _BLOCK_DRAWS // draws)
    blocks = [slice(begin, begin + size) for begin in range(0, len(prompts), size)]
    if workers is None:
        years = max((question.horizon_days for question in questions), default=0.0) / 365
        workers = min(os.cpu_count() or 1, 1 + int(len(prompts) * draws * years / _YEARS_PER_PROCESS))
    if workers > 1:
        size = min(size, -(-len(prompts) // workers))
        blocks = [slice(begin, begin + size) for begin in range(0, len(prompts), size)]
    with progress_bar(total=len(prompts), unit=" prompts", desc="true risks", enabled=progress) as bar:
        for index, risks_PxnxQ in _each_block(reader, prompts, blocks, questions, (draws, parts, seed), workers):
            risks_PxNxQ[:, blocks[index]] = risks_PxnxQ
            bar.update(risks_PxnxQ.shape[1])
    with cache.refusing_unusable(path.parent):
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
        np.save(temporary, risks_PxNxQ, allow_pickle=False)
        temporary.replace(path)
    return risks_PxNxQ


def _each_block(
    reader: Reader,
    prompts: Sequence[Prompt],
    blocks: Sequence[slice],
    questions: Sequence[Question],
    how: tuple[int, int, int],
    workers: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the block, its risks), in any order."""
    if workers <= 1:
        with threadpoolctl.threadpool_limits(1):
            for index, block in enumerate(blocks):
                yield index, _block_risks(reader, prompts[block], questions, how)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _open, (reader.vocabulary,)) as pool:
        numbers = {
            pool.submit(_opened_block_risks, prompts[block], questions, how): index
            for index, block in enumerate(blocks)
        }
        for future in concurrent.futures.as_completed(numbers):
            yield numbers[future], future.result()


# What a process reads with; set once by `_open`.
_opened: list[Reader] = []


def _open(vocabulary: Vocabulary) -> None:
    threadpoolctl.threadpool_limits(1)
    _opened[:] = [Reader(vocabulary)]


def _opened_block_risks(
    prompts: Sequence[Prompt], questions: Sequence[Question], how: tuple[int, int, int]
) -> np.ndarray:
    return _block_risks(_opened[0], prompts, questions, how)


def _digest(
    prompts: Sequence[Prompt], vocabulary: Vocabulary, questions: Sequence[Question], how: tuple[int, int, int]
) -> str:
    asked = [dataclasses.astuple(question) for question in questions]
    digest = hashlib.sha256(f"{tables.fingerprint()} {vocabulary.fingerprint} {asked} {how}".encode())
    for prompt in prompts:
        place = (prompt.subject_id, prompt.prediction_time_us, prompt.last_time_us, len(prompt.record.tokens_T))
        digest.update(str(place).encode() + prompt.record.tokens_T.tobytes())
    return digest.hexdigest()[:32]


def _block_risks(
    reader: Reader, prompts: Sequence[Prompt], questions: Sequence[Question], how: tuple[int, int, int]
) -> np.ndarray:
    """Risks [P, N, Q] of some prompts; `how`: (draws, parts, seed)."""
    draws, parts, seed = how
    reading = reader.read([prompt.record.tokens_T for prompt in prompts])
    chosen_R, prompt_R = _sample(reading, len(prompts), draws)
    risks_PxNxQ = np.full((parts, len(prompts), len(questions)), np.nan)
    if not len(chosen_R):
        return risks_PxNxQ
    keys_R = _stream_keys(prompts, prompt_R, draws)
    elapsed_N = np.array([(prompt.prediction_time_us - prompt.last_time_us) / _US_PER_MINUTE for prompt in prompts])
    gaps_NxM = gaps_of(prompts, reader)
    horizon_minutes = max(question.horizon_minutes for question in questions)
    futures = Futures(
        reading.state.take(chosen_R),
        Draws(seed, keys_R),
        elapsed_N[prompt_R],
        outcomes_of(questions, reader.vocabulary),
        horizon_minutes,
    )
    futures.drift_past(gaps_NxM[prompt_R])
    weight_R = futures.run()
    # Every other draw, or every third: each share is as systematic as the whole.
    place_R = (np.arange(len(prompt_R)) % draws % parts) * len(prompts) + prompt_R
    for index, question in enumerate(questions):
        answer_PN = _answers(futures, index, question, weight_R, place_R, parts * len(prompts))
        risks_PxNxQ[:, :, index] = answer_PN.reshape(parts, len(prompts))
    return risks_PxNxQ


def _answers(
    futures: Futures, index: int, question: Question, weight_R: np.ndarray, place_R: np.ndarray, places: int
) -> np.ndarray:
    """The answer to a question by the weighted draws of each place, float64 [places]; NaN where there are none."""
    first_R = futures.first_RxQ[:, index]
    if question.kind == "duration":
        end_R = np.minimum(futures.closed_RxQ[:, index], question.horizon_minutes)
        return weighted_medians(np.minimum(first_R, end_R) / simulation.DAY_MINUTES, weight_R, place_R, places)
    is_count = question.kind == "count"
    value_R = np.log1p(futures.count_RxQ[:, index]) if is_count else first_R <= question.horizon_minutes
    total_PN = np.bincount(place_R, weight_R, minlength=places)
    sum_PN = np.bincount(place_R, weight_R * value_R, minlength=places)
    mean_PN = np.divide(sum_PN, total_PN, out=np.full(places, np.nan), where=total_PN > 0)
    return np.expm1(mean_PN) if is_count else mean_PN


def weighted_medians(value_R: np.ndarray, weight_R: np.ndarray, place_R: np.ndarray, places: int) -> np.ndarray:
    """The least value of each place with at least half of its weight up to it, float64 [places]; NaN without weight."""
    order_R = np.lexsort((value_R, place_R))
    value_R, weight_R, place_R = value_R[order_R], weight_R[order_R], place_R[order_R]
    total_P = np.bincount(place_R, weight_R, minlength=places)
    before_P = np.cumsum(total_P) - total_P
    reached_R = np.cumsum(weight_R) - before_P[place_R] >= total_P[place_R] / 2 * (1 - 1e-12)
    medians_P = np.full(places, np.nan)
    found, first = np.unique(place_R[reached_R], return_index=True)
    medians_P[found] = value_R[reached_R][first]
    return np.where(total_P > 0, medians_P, np.nan)


def _sample(reading: Reading, prompts: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """(row of the reading's state, prompt) of each draw: systematic, so that shares are as near as they can be."""
    chosen, owner = [], []
    for prompt in range(prompts):
        rows = np.flatnonzero(reading.subject_P == prompt)
        if len(rows) and np.isfinite(reading.log_probabilities(prompt)).all():
            weights = np.exp(reading.log_weight_P[rows] - reading.log_weight_P[rows].max())
            points = (np.arange(draws) + 0.5) / draws * weights.sum()
            chosen.append(rows[np.minimum(np.searchsorted(np.cumsum(weights), points), len(rows) - 1)])
            owner.append(np.full(draws, prompt))
    if not chosen:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(chosen), np.concatenate(owner)


def _stream_keys(prompts: Sequence[Prompt], prompt_R: np.ndarray, draws: int) -> np.ndarray:
    """A random stream for each (subject, prediction time, draw), whatever runs beside it."""
    places = np.array([(p.subject_id, p.prediction_time_us) for p in prompts], np.int64).astype(np.uint64)
    place_N = mix(mix(places[:, 0] + np.uint64(1)) ^ places[:, 1])
    number_R = np.arange(len(prompt_R)) % draws
    return mix(place_N[prompt_R] + number_R.astype(np.uint64))


def gaps_of(prompts: Sequence[Prompt], reader: Reader) -> np.ndarray:
    """The columns (rules.GAPS) of each history's gaps, in order, [N, M]; -1 before them."""
    return _pad([_gaps(prompt.record.tokens_T, reader) for prompt in prompts])


def _gaps(tokens_T: np.ndarray, reader: Reader) -> np.ndarray:
    """The columns (rules.GAPS) of a history's gaps, in order."""
    bin_T = reader.bin_V[tokens_T[PREFIX_LENGTH:]]
    starts = np.flatnonzero((bin_T >= 0) & (np.append(-1, bin_T[:-1]) != bin_T))
    ends = np.flatnonzero((bin_T >= 0) & (np.append(bin_T[1:], -1) != bin_T))
    return bin_T[starts] + ends - starts


def _pad(lists: Sequence[np.ndarray]) -> np.ndarray:
    """The arrays as rows, aligned at their ends, -1 before them."""
    out = np.full((len(lists), max(map(len, lists), default=0)), -1)
    for row, values in enumerate(lists):
        out[row, out.shape[1] - len(values) :] = values
    return out


def outcomes_of(questions: Sequence[Question], vocabulary: Vocabulary) -> Outcomes:
    """Which codes of each element are the outcomes of these questions, or close their windows."""

    def table(patterns: Sequence[str]) -> list[np.ndarray]:
        return [np.stack(parts, axis=1) for parts in zip(*(_codes(p, vocabulary) for p in patterns), strict=True)]

    horizons_Q = np.array([question.horizon_minutes for question in questions])
    return Outcomes(
        table([question.outcome for question in questions]),
        table([question.until for question in questions]),
        horizons_Q,
        np.array([question.kind == "count" for question in questions]),
    )


def can_happen(question: Question, vocabulary: Vocabulary) -> bool:
    """Is any event that the world writes the outcome?"""
    return any(codes.any() for codes in _codes(question.outcome, vocabulary))


def _codes(pattern: str, vocabulary: Vocabulary) -> list[np.ndarray]:
    """For each element, bool [W]: which of its codes match the pattern; the empty one matches none."""
    compiled = re.compile(pattern)
    return [
        np.array([compiled.fullmatch(concept.name) is not None for concept in vocabulary.code_map.map_codes(codes)])
        for codes in catalogue.ELEMENT_CODES
    ]
