"""Risks of tasks from simulated futures: who is simulated, how long, by which estimator, with how many samples.

Estimators: "monte_carlo" (`cometjax.estimators`), "scope" and "reach" (`cometjax.anticipation`, under the grammar).
Counts and durations (`cometjax.amounts`) are told by ordinary futures under each.

With a target for the standard error, each prompt first has a pilot of PILOT samples. From its variance alone follows
how many samples the prompt needs, and these are drawn in rounds of PILOT; nothing is looked at again. Stopping as soon
as an estimate looks good would favour samples that agree by chance; here the pilot alone can, and it is a part of the
estimate only. Monte-Carlo's variance is taken a success and a failure nearer to 1/4 (Laplace), for 0 of 8 is no
certainty.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from cometjax import amounts, anticipation, engine, estimators, simulation_job
from cometjax.finished_prompts import Finished, FinishedPrompts
from cometjax.futures import Future, Prompt, SimulationConfig
from cometjax.job_folder import EVERYTHING, Part
from cometjax.model import Decoder
from cometjax.tasks import Task
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import Vocabulary

ESTIMATORS = ("monte_carlo", "scope", "reach")
PILOT = 8
SECONDS_PER_DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Simulation:
    """Futures of prompts and what they tell of some tasks' risks.

    Attributes:
        futures: in the order of prompts and samples. With REACH those of each task, one after the other, for each has
            its own, and then the ordinary ones where there are tasks that need them.
        times: their rows of estimators.outcome_times; with REACH only those of the last set.
        shares: by task, what samples add to its risk; empty with Monte-Carlo.
        new_tokens: tokens that an earlier start had not drawn.
    """

    futures: Sequence[Future]
    times: pl.DataFrame
    shares: Mapping[str, anticipation.Contributions] = dataclasses.field(default_factory=dict)
    new_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Drawn for all of it."""
        return sum(len(future.tokens_T) for future in self.futures)

    def estimate(self, task: Task, samples: Sequence[int] | None = None) -> pl.DataFrame:
        """estimators.monte_carlo's columns for each prompt, from all samples or those given; SCOPE's may exceed 1.

        Of a count or duration those of amounts.estimate.
        """
        if task.name in self.shares:
            return self.shares[task.name].estimate(task.name, samples)
        times = self.times if samples is None else self.times.filter(pl.col("sample").is_in(list(samples)))
        return estimators.monte_carlo(times, task) if task.kind == "binary" else amounts.estimate(times, task)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws futures of prompts for tasks.

    Attributes:
        model, vocabulary: the decoder and its vocabulary.
        config: `samples` is the most that a prompt gets.
        estimator: one of ESTIMATORS; all but Monte-Carlo keep the grammar.
        target_se: the standard error to reach for every risk; 0: always `config.samples`.
        kept_in: folder that keeps what is drawn, for a start after a kill; None: nothing is kept.
    """

    model: Decoder
    vocabulary: Vocabulary
    config: SimulationConfig
    estimator: str = "monte_carlo"
    target_se: float = 0.0
    kept_in: pathlib.Path | None = None

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise UserError(f"unknown estimator {self.estimator!r}", where="estimator", fix=f"use one of {ESTIMATORS}")
        if self.target_se < 0:
            raise UserError(f"{self.target_se} is below 0", where="target_se", fix="give 0 to draw all samples")

    def simulate(
        self,
        prompts: Sequence[Prompt],
        days: Sequence[float],
        tasks: Sequence[Task],
        asks_PxK: np.ndarray | None = None,
        *,
        progress: bool,
    ) -> Simulation:
        """Simulate each prompt for so many days, and estimate these tasks' risks.

        `asks_PxK` (bool): which of the tasks ask each prompt; None: all. Estimates of others mean nothing, or are not
        there.
        """
        every = [
            sampler._simulate(asked, progress=progress) for sampler, asked in self._sets(prompts, days, tasks, asks_PxK)
        ]
        return Simulation(
            [future for simulation in every for future in simulation.futures],
            every[-1].times,
            {name: shares for simulation in every for name, shares in simulation.shares.items()},
            sum(simulation.new_tokens for simulation in every),
        )

    def draw(
        self,
        prompts: Sequence[Prompt],
        days: Sequence[float],
        tasks: Sequence[Task],
        asks_PxK: np.ndarray | None = None,
        *,
        part: Part,
        progress: bool,
    ) -> int:
        """Draw a part's share of the prompts for `simulate`, which finds it in `kept_in`; returns the tokens drawn."""
        return sum(
            sum(sampler._drawn(asked, part, progress=progress).new_tokens)
            for sampler, asked in self._sets(prompts, days, tasks, asks_PxK)
        )

    def _sets(
        self, prompts: Sequence[Prompt], days: Sequence[float], tasks: Sequence[Task], asks_PxK: np.ndarray | None
    ) -> Iterator[tuple["Sampler", "_Asked"]]:
        """What is drawn for itself: all at once, but with REACH each task, and then those that need ordinary futures.

        Futures without an outcome can tell nothing of the other tasks.
        """
        horizons = [value * SECONDS_PER_DAY for value in days]
        asks_PxK = np.ones((len(prompts), len(tasks)), bool) if asks_PxK is None else asks_PxK
        if self.estimator != "reach":
            yield self, _Asked(prompts, horizons, tasks, asks_PxK)
            return
        grammatical = dataclasses.replace(self.config, grammar=True)
        ordinary = dataclasses.replace(self, estimator="monte_carlo", config=grammatical)
        sets = [(self, [k]) for k, task in enumerate(tasks) if _is_summed(task)]
        if counted := [k for k, task in enumerate(tasks) if not _is_summed(task)]:
            sets.append((ordinary, counted))
        for sampler, own_K in sets:
            limit = max(tasks[k].horizon_days for k in own_K) * SECONDS_PER_DAY
            own_P = np.flatnonzero(asks_PxK[:, own_K].any(1)).tolist()
            yield (
                sampler,
                _Asked(
                    [prompts[p] for p in own_P],
                    [min(horizons[p], limit) for p in own_P],
                    [tasks[k] for k in own_K],
                    asks_PxK[np.ix_(own_P, own_K)],
                ),
            )

    def _simulate(self, asked: "_Asked", *, progress: bool) -> Simulation:
        drawn, tasks = self._drawn(asked, EVERYTHING, progress=progress), asked.tasks
        futures = [future for rounds in drawn.rounds for part in rounds for future in part.futures]
        times = estimators.outcome_times(futures, self.vocabulary, tasks)
        summed = self._summed(tasks)
        if not summed or not futures:
            return Simulation(futures, times, new_tokens=sum(drawn.new_tokens))
        shares = anticipation.Contributions(
            times.select("subject_id", "prediction_time", "sample"),
            np.concatenate([_share_of(rounds) for rounds in drawn.rounds]),
            np.concatenate([part.cut_SxK for rounds in drawn.rounds for part in rounds]),
            tuple(task.name for task in summed),
        )
        return Simulation(futures, times, {task.name: shares for task in summed}, sum(drawn.new_tokens))

    def _drawn(self, asked: "_Asked", part: Part, *, progress: bool) -> "_Drawn":
        """The rounds of the prompts that are the part's; how many a prompt has depends on no other prompt."""
        size = min(PILOT, self.config.samples) if self.target_se else self.config.samples
        kept_as = None if self.kept_in is None else str(self.kept_in / self._name_of(asked))
        drawn = _Drawn(asked, kept_as, part.writer, [[] for _ in asked.prompts], [])
        indices = part.share(simulation_job.sizes(asked.prompts, self.config))
        self._draw(drawn, indices, size, progress=progress)
        if self.target_se:
            told = self._told(asked.tasks)
            asks_PxK = asked.asks_PxK[:, [task in told for task in asked.tasks]]
            needed = {index: self._needed(drawn.rounds[index][0].share_SxK[:, asks_PxK[index]]) for index in indices}
            for first in range(size, self.config.samples, size):
                going_on = [index for index in indices if needed[index] > first]
                self._draw(drawn, going_on, size, progress=progress)
        return drawn

    def _summed(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks whose risk is a sum of probabilities along the futures; of the others, outcomes are counted."""
        return [] if self.estimator == "monte_carlo" else [task for task in tasks if _is_summed(task)]

    def _told(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks of which it is kept what each sample adds to their risk."""
        return [task for task in tasks if task.kind == "binary"] if self.target_se else self._summed(tasks)

    def _draw(self, drawn: "_Drawn", indices: Sequence[int], size: int, *, progress: bool) -> None:
        """Add `size` samples, or what is left of config.samples, to what these prompts have."""
        if not indices:
            return
        asked = drawn.asked
        first = sum(len(finished.futures) for finished in drawn.rounds[indices[0]])
        size = min(size, self.config.samples - first)
        summed = self._summed(asked.tasks)
        config = dataclasses.replace(
            self.config,
            samples=size,
            first_sample=first,
            grammar=self.config.grammar or self.estimator != "monte_carlo",
        )
        outcomes = [estimators.outcome_concepts(self.vocabulary, task) for task in summed]
        folder = None if drawn.kept_as is None else pathlib.Path(f"{drawn.kept_as}_{first}_{size}")
        finished = FinishedPrompts(folder, asked.prompts, drawn.writer)
        remaining = [index for index in indices if index not in finished.by_index]
        for at, futures in engine.iter_futures(
            self.model,
            self.vocabulary,
            [asked.prompts[index] for index in remaining],
            config,
            horizons=[asked.horizons[index] for index in remaining],
            outcomes=outcomes,
            suppress=self.estimator == "reach",
            questions=estimators.questions(self.vocabulary, asked.tasks),
            asks_PxK=asked.asks_PxK[remaining],
            progress=progress,
        ):
            finished.add(remaining[at], self._finish(futures, asked.tasks))
            drawn.new_tokens.append(sum(len(future.tokens_T) for future in futures))
        finished.flush()
        for index in indices:
            drawn.rounds[index].append(finished.by_index[index])

    def _finish(self, futures: Sequence[Future], tasks: Sequence[Task]) -> Finished:
        terms_S: Sequence[anticipation.Terms] = ()
        if summed := self._summed(tasks):
            terms_S = anticipation.terms(
                futures,
                estimators.window_seconds(futures, self.vocabulary, summed),
                suppressed=self.estimator == "reach",
            )
            share_SxK, cut_SxK = anticipation.weigh(terms_S)
        else:
            share_SxK = _happened(futures, self.vocabulary, self._told(tasks))
            cut_SxK = np.zeros(share_SxK.shape, bool)
        bare = [dataclasses.replace(future, hazard_TxK=None, decided_TxK=None) for future in futures]
        return Finished(bare, share_SxK, cut_SxK, terms_S if self._has_rounds else ())

    def _name_of(self, asked: "_Asked") -> str:
        """A name made of all that decides what is drawn."""
        decides = (
            self.weights,
            self.vocabulary.fingerprint,
            simulation_job.hash_of_prompts(asked.prompts, self.vocabulary, self.config),
            simulation_job.settings(self.config),
            list(asked.horizons),
            self.estimator,
            self._has_rounds,
            [(t.kind, t.outcome, t.until, t.horizon_days, t in self._told(asked.tasks)) for t in asked.tasks],
            np.packbits(asked.asks_PxK).tobytes().hex(),
        )
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]

    @property
    def _has_rounds(self) -> bool:
        return self.target_se > 0 and self.config.samples > PILOT

    @functools.cached_property
    def weights(self) -> str:
        """SHA-256 of the model."""
        return simulation_job.hash_of_weights(self.model)

    def _needed(self, share_SxK: np.ndarray) -> int:
        """How many samples bring every risk's standard error to the target, as the pilot has it; all for no risk."""
        size = len(share_SxK)
        if not share_SxK.shape[1]:
            return self.config.samples
        if self.estimator == "monte_carlo":
            rate_K = (share_SxK.sum(0) + 1) / (size + 2)
            variance_K = rate_K * (1 - rate_K)
        else:
            variance_K = share_SxK.var(0, ddof=1) if size > 1 else np.ones(share_SxK.shape[1])
        return math.ceil(float(variance_K.max()) / self.target_se**2)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Prompts, how far each lives (seconds), tasks, and which of these ask each prompt (bool)."""

    prompts: Sequence[Prompt]
    horizons: Sequence[float]
    tasks: Sequence[Task]
    asks_PxK: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """What is drawn of what is asked.

    Attributes:
        asked: of whom, and for what.
        kept_as: how the folders begin that keep the rounds (their first sample and size follow); None: nothing is kept.
        writer: how their files begin (`FinishedPrompts`).
        rounds: of samples, of each prompt.
        new_tokens: that this start drew, of each prompt that it finished.
    """

    asked: _Asked
    kept_as: str | None
    writer: str
    rounds: list[list[Finished]]
    new_tokens: list[int]


def _share_of(rounds: Sequence[Finished]) -> np.ndarray:
    """What each of a prompt's samples adds to the risks, [S, K]; what some were cut is weighed by all of them."""
    if len(rounds) == 1:
        return rounds[0].share_SxK
    return anticipation.weigh([own for part in rounds for own in part.terms_S])[0]


def _is_summed(task: Task) -> bool:
    """May SCOPE and REACH estimate it? They foresee whether, and not how often or when."""
    return task.kind == "binary"


def _happened(futures: Sequence[Future], vocabulary: Vocabulary, tasks: Sequence[Task]) -> np.ndarray:
    times = estimators.outcome_times(futures, vocabulary, tasks)
    columns = [(times.get_column(task.name) <= task.horizon_us).fill_null(False).to_numpy() for task in tasks]
    return np.array(columns).reshape(len(tasks), len(futures)).T.astype(float)
