"""Are Monte-Carlo, SCOPE and REACH unbiased, with honest standard errors, and what do they cost? The world as model.

    python -m experiments.estimator_check --workdir runs/estimators

The synthetic world lives the futures: from histories of a fresh world it draws what the subject may be, and goes on
under its rules, which give the probability of each outcome before it is drawn. `cometjax.estimators` and
`cometjax.anticipation` make risks of them as they do of a model's futures, and the world's true risks, by many more
futures of their own, are what they must agree with. A trained model could not be the judge: its futures estimate its
own risks, and those are wrong by its error. That the engine reads hazards right off a decoder under the grammar is
tested against enumeration (tests/cometjax/anticipation_test.py); here histories, outcomes and their timing are those of
a whole health system.

Prints a table and writes WORKDIR/estimators.json: of each outcome and estimator, over the prompts, mean and standard
deviation of z = (estimate - true risk) / standard error, the p-value of a Kolmogorov-Smirnov test that z is standard
normal, and variance x cost against Monte-Carlo's (cost: instants lived through, tokens are in proportion).
Expect ten minutes on two busy cores; means of z within 0.2 of 0, spreads of 0.95 to 1.05 (docs/simulation.md).

P prompts   S samples   Q outcomes   R = P S futures of a block of prompts
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import polars as pl
from absl import flags
from scipy import stats

from cometjax import anticipation, estimators
from cometjax.futures import Future
from cometjax.tasks import Task
from data_pipeline import build, build_config, command_line, meds, prompts, world
from data_pipeline.corpus import Corpus
from data_pipeline.progress_bar import progress_bar
from data_pipeline.vocabulary import Vocabulary
from data_pipeline.world import risks
from data_pipeline.world.draws import Draws, mix
from data_pipeline.world.futures import Futures
from data_pipeline.world.reading import Reader
from data_pipeline.world.state import State

START = r"ENCOUNTER//ENCOUNTER_START//"
TASKS = (
    Task(name="admission_30d", index="X", horizon_days=30, outcome=START + "INPATIENT.*"),
    Task(name="emergency_90d", index="X", horizon_days=90, outcome=START + "EMERGENCY.*"),
    Task(name="death_1y", index="X", horizon_days=365, outcome="DEATH"),
)
ESTIMATORS = ("monte_carlo", "scope", "reach")
PATIENTS = 6_000
# Below, and above 1 - LEAST_RISK, samples without a single one (or other) are common, and z cannot be normal.
LEAST_RISK = 0.05
PARTS = 6
_BLOCK = 16


class Watched(Futures):
    """Futures that note each outcome's probability before it is drawn, and, with `suppress`, never draw it."""

    def __init__(self, *arguments: Any, suppress: bool) -> None:
        super().__init__(*arguments)
        self.suppress = suppress
        self.steps: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        # Rows alive at each instant, and when it is.
        self.instants: list[tuple[np.ndarray, np.ndarray]] = []

    def time(self, s: State, rows_n: np.ndarray, weights_nxG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As of Futures."""
        rows_n, gap_n = super().time(s, rows_n, weights_nxG)
        self.instants.append((rows_n.copy(), self._now_R[rows_n].copy()))
        return rows_n, gap_n

    def one(self, s: State, element: int, rows_n: np.ndarray, weights_nxW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As of Futures."""
        if not self._outcomes.asked(element):
            return super().one(s, element, rows_n, weights_nxW)
        is_outcome_WxQ = self._outcomes.of_element[element]
        hazard_nxQ = weights_nxW @ is_outcome_WxQ / weights_nxW.sum(axis=1, keepdims=True)
        if self.suppress:
            others_nxW = weights_nxW * ~is_outcome_WxQ.any(axis=1)
            # What is certain cannot be left out; nothing after it counts.
            weights_nxW = np.where(others_nxW.sum(axis=1, keepdims=True) > 0, others_nxW, weights_nxW)
        chosen_n = self.draws.choice(rows_n, weights_nxW)
        self._watch(rows_n, hazard_nxQ, is_outcome_WxQ[chosen_n])
        return rows_n, chosen_n

    def some(
        self, s: State, element: int, rows_n: np.ndarray, probabilities_nxW: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As of Futures."""
        if not self._outcomes.asked(element):
            return super().some(s, element, rows_n, probabilities_nxW)
        is_outcome_WxQ = self._outcomes.of_element[element]
        hazard_nxQ = np.stack([1 - (1 - probabilities_nxW[:, outcome_W]).prod(1) for outcome_W in is_outcome_WxQ.T], 1)
        if self.suppress:
            probabilities_nxW = probabilities_nxW * ~is_outcome_WxQ.any(axis=1)
        happens_nxW = self.draws.events(rows_n, probabilities_nxW)
        self._watch(rows_n, hazard_nxQ, happens_nxW @ is_outcome_WxQ)
        return rows_n, happens_nxW

    def _watch(self, rows_n: np.ndarray, hazard_nxQ: np.ndarray, happened_nxQ: np.ndarray) -> None:
        if not self.suppress:
            self._note(rows_n, happened_nxQ)
        kept = (hazard_nxQ > 0).any(axis=1)
        self.steps.append((rows_n[kept], self._now_R[rows_n[kept]], hazard_nxQ[kept], happened_nxQ[kept]))


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Of one estimator: risk and standard error [P, Q], and the mean instants of a sample [P, Q]."""

    risk_PxQ: np.ndarray
    error_PxQ: np.ndarray
    cost_PxQ: np.ndarray


def live(
    reader: Reader, asked: list[prompts.Prompt], tasks: tuple[Task, ...], samples: int, seed: int, *, suppress: bool
) -> Watched:
    """Futures of some prompts, `samples` each, a prompt's together; its subject drawn from what the history leaves."""
    reading = reader.read([prompt.record.tokens_T for prompt in asked])
    places = np.array([(p.subject_id, p.prediction_time_us) for p in asked], np.int64).astype(np.uint64)
    keys_P = mix(mix(places[:, 0] + np.uint64(1)) ^ places[:, 1])
    random = np.random.default_rng([seed, *keys_P.tolist()])
    chosen = []
    for index in range(len(asked)):
        rows = np.flatnonzero(reading.subject_P == index)
        weight = np.exp(reading.log_weight_P[rows] - reading.log_weight_P[rows].max())
        # Independent, not systematic: standard errors are of independent samples.
        chosen.append(random.choice(rows, samples, p=weight / weight.sum()))
    prompt_R = np.repeat(np.arange(len(asked)), samples)
    keys_R = mix(keys_P[prompt_R] + np.tile(np.arange(samples), len(asked)).astype(np.uint64))
    outcomes = risks.outcomes_of([risks.Question(task.outcome, task.horizon_days) for task in tasks], reader.vocabulary)
    longest = max(task.horizon_days for task in tasks) * 24 * 60
    state = reading.state.take(np.concatenate(chosen))
    futures = Watched(state, Draws(seed, keys_R), np.zeros(len(keys_R)), outcomes, longest, suppress=suppress)
    futures.drift_past(risks.gaps_of(asked, reader)[prompt_R])
    futures.run()
    return futures


def as_futures(lived: Watched, prompts_asked: int, samples: int) -> list[list[Future]]:
    """Each prompt's futures, with a token for each step at which an outcome could come."""
    row_T = np.concatenate([step[0] for step in lived.steps])
    order_T = np.argsort(row_T, kind="stable")
    row_T = row_T[order_T]
    now_T, hazard_TxQ, happened_TxQ = (
        np.concatenate([step[part] for step in lived.steps])[order_T] for part in (1, 2, 3)
    )
    second_T = np.round(60 * now_T).astype(np.int64)
    bounds = np.searchsorted(row_T, np.arange(prompts_asked * samples + 1))
    futures = [
        Future(
            row // samples,
            0,
            row % samples,
            np.arange(begin, end),
            "horizon",
            int(second_T[begin]) if end > begin else 0,
            hazard_TxQ[begin:end],
            happened_TxQ[begin:end].astype(bool),
            # A token's hazard counts at the time before it: so each lasts until the next.
            np.append(second_T[begin + 1 : end], second_T[begin:end][-1:]),
        )
        for row, (begin, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    ]
    return [futures[first : first + samples] for first in range(0, len(futures), samples)]


def summed(lived: Watched, tasks: tuple[Task, ...], count: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(risk, standard error) [P, Q] by `cometjax.anticipation`: SCOPE, of suppressed futures REACH."""
    limits_Q = np.array([task.horizon_us / 1e6 for task in tasks])
    of_prompt = as_futures(lived, count, samples)
    shares = [anticipation.contributions(futures, limits_Q, suppressed=lived.suppress)[0] for futures in of_prompt]
    share_PxSxQ = np.stack(shares)
    return share_PxSxQ.mean(1), share_PxSxQ.std(1, ddof=1) / np.sqrt(samples)


def counted(lived: Watched, tasks: tuple[Task, ...], count: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """(risk, standard error) [P, Q] by `cometjax.estimators`: Monte-Carlo."""
    first_RxQ = np.where(np.isfinite(lived.first_RxQ), np.round(lived.first_RxQ * 60e6), -1).astype(np.int64)
    keys = {"subject_id": np.repeat(np.arange(count), samples), "sample": np.tile(np.arange(samples), count)}
    times = pl.DataFrame(keys | {task.name: first_RxQ[:, q] for q, task in enumerate(tasks)}).with_columns(
        pl.when(pl.col(task.name) >= 0).then(task.name) for task in tasks
    )
    times = times.with_columns(prediction_time=pl.lit(0).cast(pl.Datetime("us")), stop=pl.lit("horizon"), elapsed_us=0)
    found = [estimators.monte_carlo(times, task).sort("subject_id") for task in tasks]
    risk_PxQ, error_PxQ = (
        np.stack([table[name].to_numpy() for table in found], 1) for name in ("risk", "standard_error")
    )
    return risk_PxQ, error_PxQ


def instants_of(lived: Watched, tasks: tuple[Task, ...], count: int, samples: int) -> np.ndarray:
    """Mean instants of a sample [P, Q], until its outcome where that is drawn, and at most to the horizon."""
    row_I = np.concatenate([rows for rows, _ in lived.instants])
    now_I = np.concatenate([now for _, now in lived.instants])
    cost_PxQ = np.zeros((count, len(tasks)))
    for q, task in enumerate(tasks):
        lived_I = (now_I <= task.horizon_days * 24 * 60) & (now_I <= lived.first_RxQ[row_I, q])
        cost_PxQ[:, q] = np.bincount(row_I[lived_I] // samples, minlength=count) / samples
    return cost_PxQ


def estimate(
    reader: Reader, asked: list[prompts.Prompt], samples: int, seed: int, *, progress: bool
) -> dict[str, Estimates]:
    """Every estimator's risks of every prompt. Monte-Carlo and SCOPE share their futures, as they do of a model."""
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in ESTIMATORS}
    with progress_bar(total=len(asked), unit=" prompts", desc="estimators", enabled=progress) as bar:
        for begin in range(0, len(asked), _BLOCK):
            block = asked[begin : begin + _BLOCK]
            size = len(block), samples
            ordinary = live(reader, block, TASKS, samples, seed, suppress=False)
            cost_PxQ = instants_of(ordinary, TASKS, *size)
            parts["monte_carlo"].append((*counted(ordinary, TASKS, *size), cost_PxQ))
            parts["scope"].append((*summed(ordinary, TASKS, *size), cost_PxQ))
            own = []
            for task in TASKS:
                lived = live(reader, block, (task,), samples, seed + 1, suppress=True)
                own.append((*summed(lived, (task,), *size), instants_of(lived, (task,), *size)))
            parts["reach"].append(tuple(np.concatenate(columns, axis=1) for columns in zip(*own, strict=True)))
            bar.update(len(block))
    return {
        name: Estimates(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))
        for name, found in parts.items()
    }


def compare(
    estimates: dict[str, Estimates], true_PxQ: np.ndarray, asked_PxQ: np.ndarray, *, draws: int, samples: int, seed: int
) -> list[dict[str, Any]]:
    """A line for each outcome and estimator, of the prompts that `asked_PxQ` chooses; `draws` are behind each truth."""
    lines = []
    jitter_P = np.random.default_rng(seed).uniform(-0.5, 0.5, len(true_PxQ)) / samples
    for q, task in enumerate(TASKS):
        true_P = true_PxQ[:, q]
        asked_P = asked_PxQ[:, q]
        plain = estimates["monte_carlo"]
        plain_cost = float(np.mean((plain.error_PxQ[asked_P, q] ** 2) * samples) * plain.cost_PxQ[asked_P, q].mean())
        for name, found in estimates.items():
            risk_P, error_P = found.risk_PxQ[:, q], found.error_PxQ[:, q]
            # A share of samples is a step function; moved within its step, it can be compared with a continuous law.
            moved_P = risk_P + jitter_P if name == "monte_carlo" else risk_P
            whole_P = np.sqrt(error_P**2 + true_P * (1 - true_P) / draws)
            z_P = (moved_P - true_P)[asked_P] / whole_P[asked_P]
            cost = float(found.cost_PxQ[asked_P, q].mean())
            variance = float(np.mean(error_P[asked_P] ** 2) * samples)
            lines.append(
                {
                    "outcome": task.name,
                    "estimator": name,
                    "prompts": int(asked_P.sum()),
                    "mean_risk": float(true_P[asked_P].mean()),
                    "bias": float((risk_P - true_P)[asked_P].mean()),
                    "z_mean": float(z_P.mean()),
                    "z_sd": float(z_P.std(ddof=1)),
                    "ks_p": float(stats.kstest(z_P, "norm").pvalue),
                    "sample_variance": variance,
                    "instants": cost,
                    "variance_at_equal_cost": variance * cost / plain_cost,
                }
            )
    return lines


def histories(workdir: pathlib.Path, count: int, seed: int) -> tuple[list[prompts.Prompt], Vocabulary]:
    """`count` discharges of subjects of a fresh world, one a subject, and the vocabulary that reads them."""
    data, corpus = workdir / "meds", workdir / "corpus"
    if not data.exists():
        world.write_world(data, PATIENTS, seed)
    if not corpus.exists():
        config = build_config.get_config()
        config.code_map = "world"
        build.build_corpus(data, corpus, config)
    vocabulary = Corpus.open(corpus).vocabulary
    dataset = meds.open_dataset(data)
    ends = meds.read_subjects(dataset, dataset.splits["subject_id"]).filter(
        pl.col("code").str.starts_with("ENCOUNTER_END//INPATIENT") & ~pl.col("code").str.ends_with("DIED")
    )
    rows = ends.group_by("subject_id", maintain_order=True).agg(prediction_time=pl.col("time").last())
    return prompts.build_prompts(dataset, rows.sample(min(count, len(rows)), seed=seed), vocabulary), vocabulary


def table(lines: list[dict[str, Any]]) -> str:
    """The lines for a terminal."""
    head = f"{'outcome':<15}{'estimator':<13}{'prompts':>8}{'risk':>7}{'bias':>9}{'z mean':>8}{'z sd':>7}{'KS p':>7}"
    rows = [head + f"{'variance':>10}{'instants':>10}{'variance x cost':>17}"]
    for line in lines:
        rows.append(
            f"{line['outcome']:<15}{line['estimator']:<13}{line['prompts']:>8}{line['mean_risk']:>7.3f}"
            f"{line['bias']:>9.4f}{line['z_mean']:>8.3f}{line['z_sd']:>7.3f}{line['ks_p']:>7.3f}"
            f"{line['sample_variance']:>10.4f}{line['instants']:>10.1f}{line['variance_at_equal_cost']:>17.3f}"
        )
    return "\n".join(rows)


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder for the world, its corpus and estimators.json", required=True)
    flags.DEFINE_integer("prompts", 500, "histories, one a subject", lower_bound=10)
    flags.DEFINE_integer("samples", 256, "futures of each history and estimator", lower_bound=2)
    flags.DEFINE_integer("true_draws", 1_000, "futures of each history for its true risk", lower_bound=100)
    flags.DEFINE_integer("seed", 1, "of the world and of all futures", lower_bound=0, upper_bound=2**32 - 1)


def main() -> None:
    """Run the check as the flags say."""
    values = flags.FLAGS
    workdir = pathlib.Path(values.workdir)
    asked, vocabulary = histories(workdir, values.prompts, values.seed)
    questions = [risks.Question(task.outcome, task.horizon_days) for task in TASKS]
    parts_6xPxQ = risks.true_risks_by_part(
        asked,
        vocabulary,
        questions,
        parts=PARTS,
        draws=PARTS * (values.true_draws // (PARTS - 1)),
        seed=values.seed + 1_000,
        progress=True,
    )
    # Chosen by one part and judged by the others: chosen by the judge, rare outcomes would be judged too high.
    asked_PxQ = (parts_6xPxQ[0] >= LEAST_RISK) & (parts_6xPxQ[0] <= 1 - LEAST_RISK)
    estimates = estimate(Reader(vocabulary), asked, values.samples, values.seed, progress=True)
    lines = compare(
        estimates,
        parts_6xPxQ[1:].mean(axis=0),
        asked_PxQ,
        draws=(PARTS - 1) * (values.true_draws // (PARTS - 1)),
        samples=values.samples,
        seed=values.seed,
    )
    (workdir / "estimators.json").write_text(json.dumps(lines, indent=1) + "\n")
    print(table(lines))


if __name__ == "__main__":
    command_line.run(main, _define_flags)
