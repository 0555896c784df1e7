"""True risks: P(outcome within a horizon | history), by the world's own simulation from what the history leaves open.

A prompt's tokens are read (data_pipeline.world.reading); what its subject may be is drawn from the posterior, and each
draw lives on under the world's rules. The mean of many is the best possible prediction; its AUROC is the ceiling.

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
import tqdm

from data_pipeline import cache
from data_pipeline.errors import UserError
from data_pipeline.prompts import Prompt
from data_pipeline.vocabulary import PREFIX_LENGTH, Vocabulary
from data_pipeline.world import catalogue, instants, rules, simulation, tables, walk
from data_pipeline.world.draws import Draws, mix
from data_pipeline.world.instants import OVER
from data_pipeline.world.reading import Reader, Reading
from data_pipeline.world.state import State

DRAWS = 1_000
# Draws simulated together: wide columns, few enough for the cache.
_BLOCK_DRAWS = 16_000
# Years of futures, some five seconds: below, a new process costs more than it saves.
_YEARS_PER_PROCESS = 10_000
_US_PER_MINUTE = 60_000_000
_CACHE = "world"


@dataclasses.dataclass(frozen=True)
class Question:
    """Does an event whose concept name matches `outcome` (a regular expression, in full) come within the horizon?

    Raises UserError where it is no regular expression.
    """

    outcome: str
    horizon_days: float

    def __post_init__(self) -> None:
        try:
            re.compile(self.outcome)
        except re.error as error:
            raise UserError(f"is not a regular expression ({error})", where=f"outcome {self.outcome!r}") from error

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
    """P(outcome in (prediction time, prediction time + horizon] | history), float64 [N, Q]; NaN where it can't be.

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
    with tqdm.tqdm(total=len(prompts), unit=" prompts", desc="true risks", disable=None if progress else True) as bar:
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
    asked = [(question.outcome, question.horizon_days) for question in questions]
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
    total_PN = np.bincount(place_R, weight_R, minlength=parts * len(prompts))
    for index, question in enumerate(questions):
        hit_R = futures.first_RxQ[:, index] <= question.horizon_minutes
        hits_PN = np.bincount(place_R, weight_R * hit_R, minlength=parts * len(prompts))
        risk_PN = np.divide(hits_PN, total_PN, out=np.full(len(total_PN), np.nan), where=total_PN > 0)
        risks_PxNxQ[:, :, index] = risk_PN.reshape(parts, len(prompts))
    return risks_PxNxQ


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


def outcomes_of(questions: Sequence[Question], vocabulary: Vocabulary) -> "Outcomes":
    """Which codes of each element are the outcomes of these questions."""
    return Outcomes([_outcome_codes(question.outcome, vocabulary) for question in questions])


def can_happen(question: Question, vocabulary: Vocabulary) -> bool:
    """Is any event that the world writes the outcome?"""
    return any(codes.any() for codes in _outcome_codes(question.outcome, vocabulary))


def _outcome_codes(pattern: str, vocabulary: Vocabulary) -> list[np.ndarray]:
    """For each element, bool [W]: which of its codes are the outcome."""
    compiled = re.compile(pattern)
    return [
        np.array([compiled.fullmatch(concept.name) is not None for concept in vocabulary.code_map.map_codes(codes)])
        for codes in catalogue.ELEMENT_CODES
    ]


class Outcomes:
    """bool [W, Q] for each element: which codes are which question's outcome."""

    def __init__(self, codes_of_question: Sequence[Sequence[np.ndarray]]) -> None:
        self.questions = len(codes_of_question)
        self.of_element = [np.stack(parts, axis=1) for parts in zip(*codes_of_question, strict=True)]

    def asked(self, element: int) -> bool:
        """Is any code of the element an outcome?"""
        return bool(self.of_element[element].any())


class Futures:
    """A walk.Chooser that draws what follows a history, and notes when each outcome first comes.

    Attributes:
        first_RxQ: minutes from the prediction time to the first outcome; inf where it has not come.
    """

    def __init__(
        self, state: State, draws: Draws, elapsed_R: np.ndarray, outcomes: Outcomes, horizon_minutes: float
    ) -> None:
        self.state, self.draws = state, draws
        self.first_RxQ = np.full((len(state), outcomes.questions), np.inf)
        self._elapsed_R, self._outcomes, self._horizon = elapsed_R, outcomes, horizon_minutes
        self._clock_R = state.clock_P.copy()
        self._drift_R = np.zeros(len(state), np.int64)
        self._now_R = -elapsed_R.copy()
        self._weight_R = np.ones(len(state))
        self._answered_R = np.zeros(len(state), bool)
        self._is_first = True
        # Nothing else depends on these.
        self.skips = frozenset(e for e in (instants.TESTS, instants.PROCEDURES) if not outcomes.asked(e))

    def drift_past(self, gaps_RxM: np.ndarray) -> None:
        """Draw how far the dates of each history are from its clock, which depends on its gaps alone (-1: no more)."""
        for gap_R in gaps_RxM.T:
            rows = np.flatnonzero(gap_R >= 0)
            u_n = self.draws.uniform(rows, 1)[:, 0]
            self._drift_R[rows] = simulation.drift(self._drift_R[rows], gap_R[rows], u_n)
        self._drift_before_R = self._drift_R.copy()

    def run(self) -> np.ndarray:
        """Live on to the horizon; returns each draw's weight: how well it agrees with nothing having happened yet."""
        while (self.state.instant_P != OVER).any():
            walk.pass_instant(self.state, self)
        return self._weight_R

    def time(self, s: State, rows_n: np.ndarray, weights_nxG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw how long each row waits; those past the horizon are over."""
        if self._is_first:
            weights_nxG = self._agree(rows_n, weights_nxG)
            self._is_first = False
        left_nx1 = np.maximum(1e-300, 1 - weights_nxG.sum(axis=1, keepdims=True))
        gap_n = self.draws.choice(rows_n, np.concatenate([weights_nxG, left_nx1], axis=1))
        ended_n = gap_n >= rules.GAPS
        gap_n = np.where(ended_n, 0, gap_n)
        drift_n = self._drift_after(rows_n, gap_n)
        clock_n = s.clock_P[rows_n] + rules.CLOCK_MINUTES[gap_n] - self._clock_R[rows_n]
        now_n = clock_n + drift_n - self._drift_before_R[rows_n] - self._elapsed_R[rows_n]
        ended_n |= (now_n > self._horizon) | self._answered_R[rows_n]
        s.instant_P[rows_n[ended_n]] = OVER
        rows_n, gap_n = rows_n[~ended_n], gap_n[~ended_n]
        self._drift_R[rows_n], self._now_R[rows_n] = drift_n[~ended_n], now_n[~ended_n]
        return rows_n, gap_n

    def _agree(self, rows_n: np.ndarray, weights_nxG: np.ndarray) -> np.ndarray:
        """The first gap's weights, given that it outlasts the time since the last event; keeps each row's weight."""
        columns_G = np.arange(rules.GAPS)
        low_nxG, high_nxG = simulation.drift_bounds(self._drift_R[rows_n][:, None], columns_G)
        # Minutes drawn are whole: those that outlast are drifts from `least` on.
        least_nxG = (
            np.floor(self._elapsed_R[rows_n])[:, None] + 1 - rules.CLOCK_MINUTES + self._drift_R[rows_n][:, None]
        )
        share_nxG = np.clip((high_nxG - np.maximum(low_nxG, least_nxG)) / np.maximum(high_nxG - low_nxG, 1), 0, 1)
        agreeing_nxG = weights_nxG * share_nxG
        left_n = np.maximum(1 - weights_nxG.sum(axis=1), 0.0)
        total_n = agreeing_nxG.sum(axis=1) + left_n
        self._weight_R[rows_n] = total_n
        self._least_RxG = least_nxG
        self._least_row = {int(row): index for index, row in enumerate(rows_n)} if self._elapsed_R.any() else {}
        return np.divide(agreeing_nxG, total_n[:, None], out=np.zeros(agreeing_nxG.shape), where=total_n[:, None] > 0)

    def _drift_after(self, rows_n: np.ndarray, gap_n: np.ndarray) -> np.ndarray:
        low_n, high_n = simulation.drift_bounds(self._drift_R[rows_n], gap_n)
        if self._least_row:
            index_n = np.array([self._least_row[row] for row in rows_n.tolist()])
            low_n = np.maximum(low_n, self._least_RxG[index_n, gap_n])
            self._least_row = {}
        u_n = self.draws.uniform(rows_n, 1)[:, 0]
        return (low_n + np.floor(u_n * np.maximum(high_n - low_n, 0))).astype(np.int64)

    def one(self, s: State, element: int, rows_n: np.ndarray, weights_nxW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw one outcome for each row."""
        chosen_n = self.draws.choice(rows_n, weights_nxW)
        if self._outcomes.asked(element):
            self._note(rows_n, self._outcomes.of_element[element][chosen_n])
        return rows_n, chosen_n

    def some(
        self, s: State, element: int, rows_n: np.ndarray, probabilities_nxW: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw each outcome by itself."""
        happens_nxW = self.draws.events(rows_n, probabilities_nxW)
        if self._outcomes.asked(element):
            self._note(rows_n, happens_nxW @ self._outcomes.of_element[element])
        return rows_n, happens_nxW

    def tests(self, s: State, rows_n: np.ndarray, probabilities_nxL: np.ndarray, means_nxL: np.ndarray) -> None:
        """Draw which tests are made; no value is asked for."""
        self.some(s, instants.TESTS, rows_n, probabilities_nxL)

    def _note(self, rows_n: np.ndarray, is_outcome_nxQ: np.ndarray) -> None:
        times_nxQ = np.where(is_outcome_nxQ, self._now_R[rows_n][:, None], np.inf)
        self.first_RxQ[rows_n] = np.minimum(self.first_RxQ[rows_n], times_nxQ)
        self._answered_R[rows_n] = np.isfinite(self.first_RxQ[rows_n]).all(axis=1)
