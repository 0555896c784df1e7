"""What is asked of a simulation, and what it gives: prompts and how they start, settings, futures.

The clock counts whole seconds since the prediction time. An interval token advances it by one of the durations that it
had in training, drawn by a random number of its own (of the future and the step). What happened between a prompt's last
event and its prediction time is known: nothing. Futures are conditioned on it:
- the gap is too short for an interval token: no condition, the clock starts at 0;
- otherwise the first token must be an interval that holds the gap or lies beyond it, the one that holds it with the
  share of its durations that are longer than the gap, and it lasts as long as one of these; where that is the last,
  repeating one, all but one of the tokens that the gap is worth are appended to the prompt before.
"""

import dataclasses
from typing import Protocol

import numpy as np

from cometjax import grammar_states
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import PREFIX_LENGTH, Vocabulary

# Clocks are int32 seconds: 34 years of horizon leave room for the longest gap before it.
_LONGEST_HORIZON = 2**30
CACHE_DTYPES = ("", "float32", "bfloat16")
# What TIMELINE_END may be: never drawn, an end after which nothing happens, an end after which nothing is known.
TIMELINE_ENDS = ("never", "stop", "censor")
# Why a future may have stopped of which more could have happened: it ran out of tokens, or observation ended.
CENSORED = ("length", "unobserved")
MAX_WINDOWS = 4  # by default of the commands: what the busiest patients' futures cost is bounded


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

    def prefix_before(self, tokens: int) -> np.ndarray:
        """int32 static prefix of a window that begins so many tokens before the end of the history."""

    def prefix_after(self, seconds: int, vocabulary: Vocabulary) -> np.ndarray:
        """int32 static prefix of a window that begins so many seconds after the prediction time."""


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """How to simulate.

    Attributes:
        samples: futures for each prompt.
        horizon_seconds: a sample stops once its clock is later than prediction time + horizon. It only ends a future
            sooner or later: what a longer one draws begins with what a shorter one does.
        max_new_tokens: bound on a future's tokens in one context window.
        max_windows: how many context windows a future may go through (stop "length" at the end of the last): each after
            the first begins with the static prefix of its time and the latest tokens, at most max_prompt_tokens.
        max_prompt_tokens: bound on a prompt's tokens; the latest are kept, behind the static prefix.
        temperature: logits are divided by it.
        seed: of the futures; the same seed gives the same futures.
        timeline_end: one of TIMELINE_ENDS, or "", which is "censor" where the vocabulary knows follow-up and "never"
            elsewhere: futures are under continued observation, and the chance of leaving the data set is no part of
            them (`timeline_end_of`).
        batch_rows: samples decoded at a time; on CPU whole tiles of 32 (`cometjax.batches`).
        chunk_steps: tokens decoded before finished samples are replaced; at least 2.
        pool_batches: how many batches of samples are held at a time; more keep the batches fuller.
        mean_durations: do intervals last as long as they did on average in training? By default as long as some did.
        grammar: may only tokens be drawn that continue or begin an event of the vocabulary? Without it a model may
            write events that are none.
        cache_dtype: of keys and values, "float32" or "bfloat16"; "" is the model's compute dtype.
        first_sample: number of the first sample; a later call may go on where an earlier one ended.
    """

    samples: int
    horizon_seconds: float
    max_new_tokens: int = 256
    max_windows: int = 1
    max_prompt_tokens: int = 512
    temperature: float = 1.0
    seed: int = 0
    timeline_end: str = ""
    batch_rows: int = 128
    chunk_steps: int = 32
    pool_batches: int = 3
    mean_durations: bool = False
    grammar: bool = False
    cache_dtype: str = ""
    first_sample: int = 0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("samples", "max_new_tokens", "max_windows", "batch_rows", "pool_batches"), 1)
        # What a future's first step tells of the second is kept within a chunk.
        for name, value in (least | {"chunk_steps": 2}).items():
            if getattr(self, name) < value:
                raise UserError(f"{getattr(self, name)} is too small", where=name, fix=f"give at least {value}")
        if self.max_prompt_tokens <= PREFIX_LENGTH:
            raise UserError(
                f"{self.max_prompt_tokens} is too small",
                where="max_prompt_tokens",
                fix=f"give more than the {PREFIX_LENGTH} tokens of the static prefix",
            )
        if not self.temperature > 0:
            raise UserError(f"{self.temperature} is not above 0", where="temperature")
        if self.cache_dtype not in CACHE_DTYPES:
            raise UserError(f"{self.cache_dtype!r} is not known", where="cache_dtype", fix=f"use one of {CACHE_DTYPES}")
        if self.timeline_end not in ("", *TIMELINE_ENDS):
            fix = f"use one of {', '.join(TIMELINE_ENDS)}, or none"
            raise UserError(f"{self.timeline_end!r} is not known", where="timeline_end", fix=fix)
        check_horizon(self.horizon_seconds)


def timeline_end_of(config: SimulationConfig, vocabulary: Vocabulary) -> str:
    """Which of TIMELINE_ENDS holds for this vocabulary's futures; raises UserError where it makes no sense."""
    if not config.timeline_end:
        return "censor" if vocabulary.knows_follow_up else "never"
    if config.timeline_end == "never" and vocabulary.knows_follow_up:
        raise UserError(
            "the model tells silences that end with observation: without their end each would end with an event",
            where="timeline_end never",
            fix="leave it out: futures whose observation ends are censored",
        )
    if config.timeline_end == "censor" and not vocabulary.knows_follow_up:
        raise UserError(
            "the corpus does not tell how long subjects were observed",
            where="timeline_end censor",
            fix="build it with --config.observed_until, or leave it out",
        )
    return config.timeline_end


def token_bounds(row_length: int, max_prompt_tokens: int, max_new_tokens: int) -> tuple[int, int]:
    """(of a prompt, of a future): by default (0) together within the positions that training saw, of rows so long."""
    max_new_tokens = max_new_tokens or row_length // 2
    return max_prompt_tokens or max(row_length - max_new_tokens, row_length // 2), max_new_tokens


def check_horizon(seconds: float) -> None:
    """Raise UserError where a horizon is not above 0, or does not fit the clock."""
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
        stop: "death", "timeline_end", "unobserved" (TIMELINE_END, where it censors), "horizon", "length" (out of
            tokens) or "answered" (all that was asked of it).
        start_seconds: the clock before the first token, in seconds after the prediction time. Negative where the first
            interval began before the prediction time.
        hazard_TxK: float32, where outcomes are watched: the probability, given all before token t, that it makes
            outcome k certain (`cometjax.grammar_states`).
        decided_TxK: bool, where outcomes are watched: it did.
        drawn_clock_T: int64, the clock after each token, in seconds after the prediction time; None: start_seconds and
            the mean durations of the intervals since (`clock`).
    """

    subject_id: int
    prediction_time_us: int
    sample: int
    tokens_T: np.ndarray
    stop: str
    start_seconds: int = 0
    hazard_TxK: np.ndarray | None = None
    decided_TxK: np.ndarray | None = None
    drawn_clock_T: np.ndarray | None = None

    @property
    def is_censored(self) -> bool:
        """Could more have happened than it tells?"""
        return self.stop in CENSORED


def token_seconds(vocabulary: Vocabulary) -> np.ndarray:
    """Whole seconds (int32, [V]) by which each token advances the clock on average: integers, so that no sum rounds."""
    return np.rint(np.asarray(vocabulary.seconds_per_token())).astype(np.int32)


def clock(future: Future, vocabulary: Vocabulary) -> np.ndarray:
    """The clock after each token, in whole seconds (int64, [T]) since the prediction time."""
    if future.drawn_clock_T is not None:
        return future.drawn_clock_T
    return future.start_seconds + np.cumsum(token_seconds(vocabulary)[future.tokens_T], dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Start:
    """What a window begins with.

    Attributes:
        tokens_T: int32, the static prefix and what the model sees of history and future.
        clock: seconds from the prediction time; of a prompt 0 or less.
        first_interval: the least interval index that the first token may have; -1: any token may come.
        state: the grammar's.
        excess: seconds that the longest interval, where it is the last token, has taken beyond its repeat_seconds.
        gap: how many of the tokens stand for the gap between the last event and the prediction time.
    """

    tokens_T: np.ndarray
    clock: int
    first_interval: int
    state: int = grammar_states.BETWEEN
    gap: int = 0
    excess: int = 0


def start_of(prompt: Prompt, vocabulary: Vocabulary, max_prompt_tokens: int) -> Start:
    """Condition a prompt on survival, without events, from its last event to its prediction time (module docstring)."""
    elapsed = max(0, prompt.prediction_time_us - prompt.last_time_us) / 1e6
    index, repeats = (int(array[0]) for array in vocabulary.interval_preset.classify(np.array([elapsed])))
    if index < 0:
        return Start(prompt.tokens(max_prompt_tokens), 0, -1)
    repeats = min(repeats - 1, max_prompt_tokens - PREFIX_LENGTH)
    of_one = (
        vocabulary.interval_preset.repeat_seconds if vocabulary.interval_quantiles else vocabulary.interval_seconds[-1]
    )
    elapsed -= repeats * of_one
    if not repeats:
        return Start(prompt.tokens(max_prompt_tokens), -round(elapsed), index)
    gap_T = np.full(repeats, vocabulary.interval_ids[-1], np.int32)
    tokens_T = np.concatenate([prompt.tokens(max_prompt_tokens - repeats), gap_T]).astype(np.int32)
    return Start(tokens_T, -max(0, round(elapsed)), index, grammar_states.AFTER_LONGEST, gap=repeats)
