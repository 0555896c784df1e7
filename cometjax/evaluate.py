"""Score a trained model on prediction tasks, without training it for them: simulate futures, count outcomes.

    python -m cometjax.evaluate --workdir runs/demo/model \\
        --meds runs/demo/meds --tasks experiments/configs/tasks_world.py \\
        --out runs/evaluation

For each task: labels from the MEDS data, risks from simulated futures, AUROC, AUPRC, Brier and calibration with 95%
intervals by subject, beside those of baselines on the same rows (--baselines; docs/simulation.md). Writes
OUT/results.json, OUT/report.html, OUT/labels/TASK.parquet, OUT/predictions/TASK.parquet (meds-evaluation's schema), and
OUT/risks/TASK.parquet with each risk's standard error (docs/tasks.md).
OUT must be new or empty. Futures are kept beside it as they finish, in .OUT.job: after a kill the same command goes on
from there; several processes draw them together, each with its --part (docs/simulation.md). Expect minutes on two cores
for the demo's model, most of them in simulation; a bar shows how far it is.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from absl import flags
from ml_collections import config_flags

from cometjax import (
    checkpoint_choice,
    checkpoints,
    comparisons,
    compile_cache,
    engine,
    estimators,
    evaluation_files,
    evaluation_futures,
    fine_tuned,
    futures,
    job_folder,
    metrics,
    report,
    report_story,
    rivals,
    run_description,
    shrinkage,
    task_rows,
    test_time_scaling,
    world_truth,
)
from cometjax import risks as risks_module
from cometjax import tasks as task_module
from cometjax.amount_results import score_amounts
from cometjax.task_results import score_task
from cometjax.tasks import Task
from data_pipeline import command_line, meds
from data_pipeline.errors import UserError
from data_pipeline.progress_bar import progress_bar

SECONDS_PER_DAY = 86_400.0
_ROW = list(estimators.KEYS)
# Options that may differ between the processes of one evaluation: how fast it is, and where its files are.
_OF_ONE_PROCESS = ("batch_rows", "corpus", "labels")


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate.

    Attributes:
        samples: futures for each prompt.
        max_rows_per_task: rows beyond are left out by a hash of (seed, subject, time).
        max_training_subjects: training subjects that the baselines learn from, drawn likewise.
        baselines: of rivals.NAMES; prevalence is always there.
        max_fine_tuning_rows: training rows that a linear head on the backbone learns from (probe, fine_tuned).
        split: the split whose subjects are scored; several with commas between.
        labels: folder of label files, one a task (cometjax.labels.label_files), in place of the tasks' index, cohort,
            exclusions and censoring; "": the tasks' own rows.
        corpus: the training run's corpus, where it is no longer where its configuration says; "": there.
        seed: of drawing rows, futures and resamples.
        max_new_tokens: bound on a future's tokens in one context window; 0 = half the row length of training.
        max_windows: how many context windows a future may go through (`cometjax.context_windows`).
        max_prompt_tokens: bound on a prompt's tokens; 0 = what max_new_tokens leaves of the row length (at least half).
        estimator: of risks, one of risks.ESTIMATORS; all but Monte-Carlo keep the grammar.
        grammar: may only tokens be drawn that spell events?
        target_se: a prompt is sampled no longer once its risks' standard errors are likely to be this small; 0: every
            prompt has `samples`.
        resamples: bootstrap resamples of the subjects.
        true_risk_draws: on data of data_pipeline.world, futures of each row by its own rules, for the best possible
            AUROC; even, 0 for none (docs/world.md).
        show_patient: draw one subject's timeline in the report (no id, no date); not with REACH, whose futures are
            without the outcomes.
        batch_rows: futures decoded at a time; how fast they are drawn, and not which (but for rounding, elsewhere than
            on CPU).
        step: which checkpoint: a step's number, "best", or None for the newest (`cometjax.checkpoint_choice`).
    """

    samples: int = 16
    max_rows_per_task: int = 300
    max_training_subjects: int = 20_000
    baselines: Sequence[str] = rivals.DEFAULT
    max_fine_tuning_rows: int = fine_tuned.FineTuning.max_rows
    split: str = "held_out"
    labels: str = ""
    corpus: str = ""
    seed: int = 0
    max_new_tokens: int = 0
    max_windows: int = futures.MAX_WINDOWS
    max_prompt_tokens: int = 0
    estimator: str = "monte_carlo"
    grammar: bool = False
    target_se: float = 0.0
    resamples: int = 1000
    true_risk_draws: int = 200
    show_patient: bool = True
    batch_rows: int = engine.SimulationConfig.batch_rows
    step: checkpoint_choice.Step = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:  # scikit-learn's bounds, which baselines would meet after the simulation
            raise UserError(f"seed is {self.seed}", where="seed", fix=f"give one from 0 to {2**32 - 1:,}")
        if self.true_risk_draws % 2:
            what, fix = f"{self.true_risk_draws} is odd", "give an even number: halves are compared"
            raise UserError(what, where="true_risk_draws", fix=fix)


def evaluate(
    *,
    work: pathlib.Path,
    meds_root: pathlib.Path,
    tasks: Sequence[Task],
    out: pathlib.Path,
    options: Options = Options(),
    part: job_folder.Part = job_folder.EVERYTHING,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate the model of workdir `work` on the MEDS data set and write everything to `out`; returns results.json.

    `part`: of the futures, beside other processes; {} is returned where another writes `out` or has written it.

    Raises UserError: `out` is not empty or cannot be written, no checkpoint, no MEDS data set, a split without subjects
    or rows, parts of an evaluation of other settings, another process at the same.
    """
    with contextlib.ExitStack() as held:
        return _evaluate(work, meds_root, tasks, out, options, part, held, progress=progress)


def _evaluate(
    work: pathlib.Path,
    meds_root: pathlib.Path,
    tasks: Sequence[Task],
    out: pathlib.Path,
    options: Options,
    part: job_folder.Part,
    held: contextlib.ExitStack,
    *,
    progress: bool,
) -> dict[str, Any]:
    job_folder.refuse_taken(out, part)
    rivals.check_names(options.baselines)
    if options.corpus:
        run_description.refuse_other_corpus(work, options.corpus)
    model, vocabulary, config, step = checkpoints.load_for_inference(work, step=options.step)
    dataset = meds.open_dataset(meds_root)
    asked = task_rows.ask(
        dataset,
        vocabulary.code_map,
        tasks,
        split=options.split,
        max_rows_per_task=options.max_rows_per_task,
        max_training_subjects=options.max_training_subjects,
        seed=options.seed,
        label_folder=options.labels,
        producible=[event.concept for event in vocabulary.events],
    )
    events, rows = asked.events, asked.rows
    tasks = [task for task in tasks if task.name in rows]
    drawing = _drawing(config, options)
    baselines = rivals.Rivals(
        options.baselines,
        dataset,
        events,
        vocabulary,
        options.seed,
        _backbone(model, config, options),
        drawing.max_prompt_tokens,
    )
    start = time.perf_counter()
    sampler = risks_module.Sampler(
        model, vocabulary, drawing, options.estimator, options.target_se, job_folder.folder_of(out)
    )
    groups = evaluation_futures.groups(sampler, dataset, tasks, rows)
    shared = {name: value for name, value in dataclasses.asdict(options).items() if name not in _OF_ONE_PROCESS}
    identity = evaluation_futures.identity(groups, tasks, shared)
    folder = held.enter_context(job_folder.opened(out, part, identity, keep_identity=not part.is_all))
    if folder is None:
        return {}
    if not part.is_all:
        for group in groups.values():
            group.draw(part, progress=progress)
        if not folder.finish_part():
            return {}
    simulations = {timeline_end: group.simulate(progress=progress) for timeline_end, group in groups.items()}
    wall_s = time.perf_counter() - start
    scored = {name: of_task.scored for name, of_task in rows.items()}
    truths = world_truth.true_risks(
        dataset, vocabulary, tasks, scored, draws=options.true_risk_draws, seed=options.seed, progress=progress
    )
    records = metrics.read(work)
    results: dict[str, Any] = {
        "run": run_description.describe_run(work, config, step, dataset, dataclasses.asdict(options))
        | {"parameters": run_description.count_parameters(model), "job": job_folder.digest(identity)},
        "losses": run_description.losses(work, config, records, step, options.corpus, progress),
        "training": run_description.training_speed(records, step),
        "simulation": run_description.describe_simulation(simulations, wall_s),
        "tasks": {},
        "amounts": {},
        "cannot_run": dict(asked.cannot_run),
        "warnings": list(asked.warnings),
    }
    risks, amounts = {}, {}
    common = {"resamples": options.resamples, "seed": options.seed}
    for task in progress_bar(tasks, desc="score", unit="task", enabled=progress):
        of_task, simulation = rows[task.name], simulations[task.timeline_end]
        estimates = _estimates(task, of_task.scored, simulation)
        if task.kind != "binary":
            amounts[task.name] = estimates
            said = score_amounts(task, of_task, estimates, events, vocabulary, **common)
            if task.name in truths:
                constant = said["constant"]["value"]
                said["best"] = world_truth.score_amounts_beside(truths[task.name], estimates, task, constant, **common)
            said["baselines"] = {name: {"reason": rivals.NOT_FOR_AMOUNTS} for name in options.baselines}
            results["amounts"][task.name] = said
            continue
        risks[task.name] = estimates
        predicted = baselines.predict(of_task.training, of_task.scored)
        said = score_task(task, of_task, estimates, events, vocabulary, predicted, **common)
        if task.name in truths:
            said["best"] = world_truth.score_beside(truths[task.name], estimates, **common)
        if not options.target_se:  # else samples are not equally many
            said["by_samples"] = _by_samples(task, estimates, simulation, options.samples)
        results["tasks"][task.name] = said
    results["comparisons"] = _compare_with_baselines(results, options.baselines)
    story = (
        report_story.choose(events, tasks, risks, simulations, vocabulary)
        if risks and options.show_patient and options.estimator != "reach"
        else None
    )
    evaluation_files.write(out, results, risks, amounts, report.render(results, records, story))
    folder.remove()
    return results


def _compare_with_baselines(results: Mapping[str, Any], baselines: Sequence[str]) -> dict[str, Any]:
    """By baseline on how many tasks the model is better; {} of a single task."""
    tasks = results["tasks"] | results["amounts"]
    if len(tasks) < 2:
        return {}
    events = {name: task["positives"] for name, task in tasks.items()}
    answering = {name: tasks if name == "prevalence" else results["tasks"] for name in ("prevalence", *baselines)}
    return {name: comparisons.summarize(comparisons.gains_over(own, name), events) for name, own in answering.items()}


def _drawing(config: Any, options: Options) -> futures.SimulationConfig:
    """How futures are drawn; each group of tasks has a horizon of its own."""
    max_prompt_tokens, max_new_tokens = futures.token_bounds(
        config.train.row_length, options.max_prompt_tokens, options.max_new_tokens
    )
    return futures.SimulationConfig(
        samples=options.samples,
        horizon_seconds=SECONDS_PER_DAY,
        max_new_tokens=max_new_tokens,
        max_windows=options.max_windows,
        max_prompt_tokens=max_prompt_tokens,
        seed=options.seed,
        grammar=options.grammar,
        batch_rows=options.batch_rows,
    )


def _backbone(model: Any, config: Any, options: Options) -> fine_tuned.Backbone | None:
    if not set(rivals.OF_BACKBONE) & set(options.baselines):
        return None
    return fine_tuned.Backbone(model, config, fine_tuned.FineTuning(max_rows=options.max_fine_tuning_rows))


def _by_samples(
    task: Task, scored: pl.DataFrame, simulation: risks_module.Simulation, samples: int
) -> list[dict[str, Any]]:
    labels = scored.select(*_ROW, "boolean_value")
    return test_time_scaling.scores_by_samples(
        labels.get_column("boolean_value").to_numpy().astype(np.float64),
        samples,
        lambda chosen: _estimates(task, labels, simulation, chosen).get_column("risk"),
    )


def _estimates(
    task: Task, scored: pl.DataFrame, simulation: risks_module.Simulation, samples: Sequence[int] | None = None
) -> pl.DataFrame:
    """The rows with what all samples, or those given, tell of them: predictions, or amounts."""
    joined = scored.join(simulation.estimate(task, samples), on=_ROW, how="left", maintain_order="left")
    if joined.get_column("samples").null_count():
        raise ValueError("a row without simulated futures")
    if task.kind != "binary":
        return joined
    return shrinkage.predictions(joined, counted=task.name not in simulation.shares)


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of a training run (python -m cometjax.train)", required=True)
    checkpoint_choice.define_flag()
    flags.DEFINE_string("meds", None, "folder of the MEDS data set to score on", required=True)
    config_flags.DEFINE_config_file("tasks", None, "task file, such as experiments/configs/tasks_world.py")
    flags.DEFINE_list("only", [], "names of the task file's tasks, with commas between; none: all")
    flags.DEFINE_string("out", None, "folder to write; must be new or empty", required=True)
    flags.DEFINE_string("part", "", job_folder.PART_HELP)
    default = Options()
    flags.DEFINE_integer("samples", default.samples, "futures for each prompt", lower_bound=1)
    flags.DEFINE_integer("max_rows_per_task", default.max_rows_per_task, "rows scored for each task", lower_bound=1)
    flags.DEFINE_integer("max_training_subjects", default.max_training_subjects, "bound for baselines", lower_bound=1)
    flags.DEFINE_list("baselines", list(default.baselines), f"of {', '.join(rivals.NAMES)}; with commas between")
    flags.DEFINE_integer(
        "max_fine_tuning_rows", default.max_fine_tuning_rows, "rows that probe and fine_tuned learn from", lower_bound=1
    )
    flags.DEFINE_string("split", default.split, "split to score; several with commas between")
    flags.DEFINE_string(
        "labels",
        default.labels,
        "folder of MEDS label files, TASK.parquet or TASK/*.parquet (as of ACES); none: own rows",
    )
    flags.DEFINE_string("corpus", default.corpus, "the training run's corpus; none: where its configuration says")
    flags.DEFINE_integer(
        "seed", default.seed, "of rows drawn, futures and resamples", lower_bound=0, upper_bound=2**32 - 1
    )
    flags.DEFINE_integer("max_new_tokens", 0, "bound on a window's new tokens; 0 = half the model's row length")
    flags.DEFINE_integer("max_windows", default.max_windows, "context windows that a future may go through")
    flags.DEFINE_integer("max_prompt_tokens", 0, "bound on a prompt's tokens; 0 = what remains of the row length")
    flags.DEFINE_enum("estimator", default.estimator, list(risks_module.ESTIMATORS), "of risks; docs/simulation.md")
    flags.DEFINE_bool("grammar", default.grammar, "draw only tokens that spell events")
    flags.DEFINE_float(
        "target_se", default.target_se, "standard error of a risk that is good enough; 0 = draw all samples"
    )
    flags.DEFINE_integer("resamples", default.resamples, "bootstrap resamples of the subjects", lower_bound=1)
    flags.DEFINE_integer(
        "true_risk_draws", default.true_risk_draws, "on the synthetic world, futures for each true risk", lower_bound=0
    )
    flags.DEFINE_bool(
        "show_patient", default.show_patient, "draw one subject's timeline in the report (no id, no date)"
    )
    flags.DEFINE_integer("batch_rows", default.batch_rows, "futures decoded at a time", lower_bound=1)
    flags.mark_flag_as_required("tasks")


def main() -> None:
    """Evaluate as the flags say."""
    values = flags.FLAGS
    compile_cache.turn_on()
    chosen: dict[str, Any] = {field.name: values[field.name].value for field in dataclasses.fields(Options)}
    results = evaluate(
        work=pathlib.Path(values.workdir),
        meds_root=pathlib.Path(values.meds),
        tasks=task_module.tasks_from_config(
            values.tasks, values.only, where=config_flags.get_config_filename(values["tasks"])
        ),
        out=pathlib.Path(values.out),
        options=Options(**chosen),
        part=job_folder.Part.parse(values.part),
    )
    if not results:  # another process writes them
        return
    print(report.text_table(results))
    print(f"report: {pathlib.Path(values.out) / 'report.html'}")


if __name__ == "__main__":
    command_line.run(main, _define_flags)
