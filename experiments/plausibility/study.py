"""The whole comparison: draw futures, read what was recorded, compare, write."""

import dataclasses
import datetime
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from absl import logging

from cometjax import (
    checkpoint_choice,
    checkpoints,
    data_end,
    engine,
    futures,
    grammar_states,
    labels,
    output_folder,
    task_rows,
    tasks,
    trajectories,
    workdir,
)
from cometjax.model import Decoder
from data_pipeline import meds, mixture, prompts
from data_pipeline.errors import UserError
from data_pipeline.vocabulary import PREFIX_LENGTH, Vocabulary
from experiments.plausibility import comparison, privacy, profile, report, statistics, tables, windows
from experiments.plausibility.windows import People, Window

_SECONDS_PER_DAY = 86_400.0
# Prompts whose futures are drawn once more, with the grammar or without, to count events that spell nothing.
_PROMPTS_FOR_GRAMMAR = 100


@dataclasses.dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        corpus: of the training run; "": as its configuration names it, from the current folder.
        split: whose subjects are the truth.
        index: regex of concepts; a window begins at one such event of each subject, drawn by hash.
        censoring: as of a task. "dataset_end", a date: windows end before the data do; "observation_end": before the
            subject's observation does; "assume_complete": what is not recorded was not. Where the corpus knows
            follow-up windows end with observation: the first has no say then, and a date or "observation_end" is
            refused.
        horizon_days: a window's length.
        max_prompts: subjects, drawn by hash.
        samples: futures for each.
        max_new_tokens: bound on a window's tokens, generated or recorded; 0 = a third of the model's row length.
        max_prompt_tokens: bound on a history's tokens; 0 = what remains of the row length.
        max_training_subjects: those that privacy and profiles look at, drawn by hash.
        grammar: are only tokens drawn that spell events?
        seed: of all that is drawn.
        step: which checkpoint: a step's number, "best", or None for the newest (`cometjax.checkpoint_choice`).
    """

    corpus: str = ""
    split: str = "held_out"
    index: str = r"ENCOUNTER//ENCOUNTER_END//.*"
    censoring: str = "dataset_end"
    horizon_days: float = 365.0
    max_prompts: int = 600
    samples: int = 4
    max_new_tokens: int = 0
    max_prompt_tokens: int = 0
    max_training_subjects: int = 20_000
    grammar: bool = False
    seed: int = 0
    step: checkpoint_choice.Step = None

    def __post_init__(self) -> None:
        tasks.check_censoring(self.censoring, where="--censoring")


def run(work: pathlib.Path, meds_root: pathlib.Path, out: pathlib.Path, options: Options) -> dict[str, Any]:
    """Compare and write `out`; returns what plausibility.json says.

    Raises UserError: `out` is not empty, no checkpoint, corpus or data, no subject with a window, a censoring that the
    corpus or the data do not allow.
    """
    output_folder.refuse_taken(out)
    model, vocabulary, config, step = checkpoints.load_for_inference(work, step=options.step)
    if vocabulary.knows_follow_up:  # windows end with observation, generated and recorded alike
        if options.censoring not in (Options.censoring, "assume_complete"):
            raise UserError(
                "windows end with observation, which this corpus knows",
                where=f"--censoring={options.censoring}",
                fix="leave it out",
            )
        options = dataclasses.replace(options, censoring="assume_complete")
    corpus = options.corpus or config.corpus
    if not mixture.is_there(corpus):
        raise UserError("is not there", where=f"corpus {corpus}", fix="say by --corpus where the training run's is")
    training, training_ids = _training_timelines(corpus, vocabulary, options)
    dataset = meds.open_dataset(meds_root)
    scored = task_rows.subjects_of(dataset, options.split.split(","))
    known = pl.Series("subject_id", training_ids, dtype=pl.Int64)
    events = tasks.read_events(dataset, pl.concat([scored, known]).unique().to_list(), vocabulary.code_map)
    window = _window(options)
    rows = _rows(events, scored, window, options)
    bounds = options.max_new_tokens or config.train.row_length // 3
    simulation = engine.SimulationConfig(
        samples=options.samples,
        horizon_seconds=options.horizon_days * _SECONDS_PER_DAY,
        max_new_tokens=bounds,
        max_prompt_tokens=options.max_prompt_tokens or config.train.row_length - bounds,
        seed=options.seed,
        timeline_end=window.timeline_end,
        mean_durations=True,  # as the truth's windows have them
        grammar=options.grammar,
    )
    histories = prompts.build_prompts(dataset, rows, vocabulary)
    drawn = engine.simulate_futures(model, vocabulary, histories, simulation, progress=True)
    people = People.of(events)
    horizon = simulation.horizon_seconds
    generated = windows.generated(drawn, people, vocabulary, horizon_seconds=horizon)
    held_out = windows.recorded(
        dataset, histories, people, vocabulary, horizon_seconds=horizon, max_tokens=simulation.max_new_tokens
    )
    shown = profile.of_training(events, known, people, vocabulary)
    results: dict[str, Any] = {
        "run": {
            "workdir": work.resolve().name,
            "step": step,
            "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
            "dataset": {"name": dataset.name, "version": dataset.version},
            "options": dataclasses.asdict(options),
            "max_new_tokens": simulation.max_new_tokens,
            "max_prompt_tokens": simulation.max_prompt_tokens,
        },
        "invalid": _invalid(drawn, model, vocabulary, histories, simulation),
    }
    compared, figures = compare(generated, held_out, training, shown, vocabulary, options.samples, options.seed)
    results |= compared
    _write(out, results, report.render(results, figures))
    return results


def compare(
    generated: Sequence[Window],
    held_out: Sequence[Window],
    training: privacy.Timelines,
    shown: profile.Profile,
    vocabulary: Vocabulary,
    samples: int,
    seed: int,
) -> tuple[dict[str, Any], report.Series]:
    """(what the results say, what the figures draw) of windows: `samples` generated ones for each held-out one."""
    ours, theirs = (tables.tabulate(which, shown, vocabulary) for which in (generated, held_out))
    parts = comparison.halves(len(held_out), samples, seed)
    pairs = statistics.frequent_pairs(theirs, vocabulary)
    near, far = (
        {
            "distance": privacy.nearest_distances([window.tokens_T for window in which], training),
            "copy": privacy.longest_copies([window.tokens_T for window in which], training),
        }
        for which in (generated, held_out)
    )
    rows = [np.arange(len(table.events_N)) for table in (ours, theirs)]
    prevalences = [statistics.prevalence(table, every) for table, every in zip((ours, theirs), rows, strict=True)]
    odds = [statistics.log_odds_ratios(table, every, pairs) for table, every in zip((ours, theirs), rows, strict=True)]
    seen = np.flatnonzero((prevalences[0] > 0) | (prevalences[1] > 0)).tolist()
    results = {
        "windows": {
            "generated": {"windows": len(generated), "cut": sum(window.is_cut for window in generated)},
            "held_out": {"windows": len(held_out), "cut": sum(window.is_cut for window in held_out)},
            "training_timelines": len(training.offsets) - 1,
            "codes_of_one_sex": len(shown.only_sex),
            "codes_with_ages": int(np.isfinite(shown.oldest_E).sum()),
            "pairs": len(pairs.first),
        },
        "distances": comparison.distances(ours, theirs, pairs, parts),
        "rates": comparison.rates(ours, theirs, parts),
        "quantiles": {"generated": statistics.quantiles(ours), "held_out": statistics.quantiles(theirs)},
        "privacy": comparison.privacy(near, far, parts),
        # Windows with the code, per 1,000.
        "codes": [
            {
                "concept": vocabulary.events[event].concept,
                "kind": vocabulary.events[event].kind,
                "generated": float(prevalences[0][event]),
                "held_out": float(prevalences[1][event]),
            }
            for event in seen
        ],
    }
    figures = report.Series(
        prevalences=(prevalences[0][seen], prevalences[1][seen]),
        odds=(odds[0], odds[1]),
        gaps=(ours.gaps.values, theirs.gaps.values),
        encounters=(ours.encounters_NxK.sum(1), theirs.encounters_NxK.sum(1)),
        distance=(near["distance"], far["distance"]),
        copy=(near["copy"], far["copy"]),
    )
    return results, figures


def text_table(results: dict[str, Any]) -> str:
    """The short table for a terminal."""
    lines = [f"{'distance, half against half':<34}{'generated':>10}{'floor':>10}{'97.5%':>10}"]
    entries = dict(results["distances"])
    if "closer" in results["privacy"]:
        entries |= {f"privacy_{name}": results["privacy"][name] for name in ("closer", "longer")}
    for name, entry in entries.items():
        figures = "".join(
            f"{'-' if entry[key] is None else format(entry[key], '.4f'):>10}" for key in ("half", "floor", "high")
        )
        lines.append(f"{name:<34}{figures}{'  above the floor' if entry['above_floor'] else ''}")
    lines.append(f"{'of one set':<34}{'generated':>10}{'held out':>10}{'97.5%':>10}")
    for name, entry in results["rates"].items():
        known = (entry["generated"], entry["held_out"], entry["high"])
        lines.append(
            f"{name:<34}" + "".join(f"{'-' if value is None else format(value, '.2f'):>10}" for value in known)
        )
    for mode, entry in results["invalid"].items():
        lines.append(f"events that spell nothing, {mode}: {entry['invalid']} of {entry['events']}")
    if results["privacy"]["reason"]:
        lines.append(f"privacy: {results['privacy']['reason']}")
    return "\n".join(lines)


def _training_timelines(names: str, vocabulary: Vocabulary, options: Options) -> tuple[privacy.Timelines, list[int]]:
    """Tokens, without the static prefix, of training subjects drawn by hash; and who they are."""
    corpus = mixture.open_corpus(names)
    if corpus.vocabulary.fingerprint != vocabulary.fingerprint:
        raise UserError("has another vocabulary than the model", where=f"corpus {names}", fix="give the run's own")
    split = corpus.split("train")
    places = pl.Series(np.arange(len(split)))
    keys = labels.row_hash(places, pl.zeros(len(split), pl.Int64, eager=True), options.seed)
    chosen = np.sort(np.argsort(keys, kind="stable")[: options.max_training_subjects]).tolist()
    records = split.records(chosen)
    timelines = privacy.Timelines.of([record.tokens_T[PREFIX_LENGTH:] for record in records])
    return timelines, [record.subject_id for record in records]


def _window(options: Options) -> tasks.Task:
    return tasks.Task(
        name="window",
        index=options.index,
        horizon_days=windows.READ_HORIZONS * options.horizon_days,
        outcome="DEATH",
        index_choice="one",
        censoring=options.censoring,
    )


def _rows(events: tasks.Events, scored: pl.Series, window: tasks.Task, options: Options) -> pl.DataFrame:
    for line in data_end.warnings(events, [window]):
        logging.warning("%s", line)
    labelled = labels.label(events, scored.to_list(), window, seed=options.seed)
    rows = labels.draw_rows(labelled.frame, options.max_prompts, seed=options.seed)
    if len(rows) < 2:
        raise UserError(
            f"{len(rows)} subjects have data for {window.horizon_days:g} days after an index event",
            where=f"split {options.split}",
            fix="check --index, --horizon_days and --censoring against this data set",
        )
    return rows.select("subject_id", "prediction_time")


def _invalid(
    drawn: Sequence[futures.Future],
    model: Decoder,
    vocabulary: Vocabulary,
    histories: Sequence[prompts.Prompt],
    simulation: futures.SimulationConfig,
) -> dict[str, dict[str, Any]]:
    """Events that spell nothing, with the grammar and without; the mode that was not simulated is, for some prompts."""
    other = dataclasses.replace(simulation, samples=1, grammar=not simulation.grammar)
    again = engine.simulate_futures(model, vocabulary, histories[:_PROMPTS_FOR_GRAMMAR], other)
    counts = {}
    for grammar, which in ((simulation.grammar, drawn), (other.grammar, again)):
        invalid, events = np.sum([_count_invalid(future, vocabulary) for future in which], axis=0).tolist()
        name = "with grammar" if grammar else "without grammar"
        counts[name] = {"invalid": invalid, "events": events, "rate": invalid / events if events else None}
    return counts


def _count_invalid(future: futures.Future, vocabulary: Vocabulary) -> tuple[int, int]:
    if future.stop == "length":  # the bound, not the model, broke its last event off
        whole_T = grammar_states.whole_events(future.tokens_T, vocabulary)
        future = dataclasses.replace(future, tokens_T=whole_T)
    return trajectories.count_invalid(future, vocabulary)


def _write(out: pathlib.Path, results: dict[str, Any], page: str) -> None:
    with output_folder.whole(out) as partial:
        workdir.write_json(partial / "plausibility.json", results)
        workdir.write_text(partial / "plausibility.html", page)
