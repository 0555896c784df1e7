r"""Simulate patients' futures with a trained model, from given prediction times on.

    python -m cometjax.simulate --workdir runs/demo/model \
        --meds runs/demo/meds --labels labels.parquet --out runs/demo/futures \
        --samples 16 --horizon_days 365

--labels is a MEDS label file, or a folder of them: columns subject_id and prediction_time are used. The model sees each
subject's events up to and including the prediction time, and nothing later. The new folder --out then holds

    trajectories/trajectory_<sample>.parquet
                    in each file one simulated future for each label row: MEDS
                    columns and prediction_time, the input of
                    MEDS-trajectory-evaluation; a trajectory's last row is
                    TRAJECTORY_END//<why it stopped>
    summary.json    futures by stop reason, tokens, tokens/s, share of invalid
                    events

A run that was stopped, by whatever, goes on where it was when the same command is given again: prompts that had
finished are not simulated again (`cometjax.simulation_job`). Several processes draw one simulation together, each with
--part=0/4 to --part=3/4 beside the same flags, on any machines that share the file system of --out: what comes of it
is the same to the bit (docs/simulation.md).

The same seed gives the same futures, whatever else is simulated beside them. Expect, on two CPU cores and a model of 1M
parameters, some 8,000 tokens per second once compiled (some 20 seconds).
"""

import collections
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from cometjax import (
    checkpoint_choice,
    checkpoints,
    compile_cache,
    job_folder,
    output_folder,
    simulation_job,
    trajectories,
)
from cometjax.futures import CACHE_DTYPES, MAX_WINDOWS, TIMELINE_ENDS, Future, SimulationConfig, token_bounds
from data_pipeline import command_line, meds
from data_pipeline.errors import UserError
from data_pipeline.prompts import build_prompts
from data_pipeline.vocabulary import Vocabulary

SECONDS_PER_DAY = 86_400


def simulate(
    *,
    workdir: pathlib.Path,
    meds_root: pathlib.Path,
    labels: pathlib.Path,
    out: pathlib.Path,
    settings: Callable[[int], SimulationConfig],
    step: checkpoint_choice.Step = None,
    part: job_folder.Part = job_folder.EVERYTHING,
    progress: bool = True,
) -> dict[str, Any]:
    """Simulate futures of each label row and write them to `out`; returns what summary.json says.

    `settings`: how to simulate, by the length of the rows that the model was trained with. `step`: which checkpoint.
    `part`: of the label rows, beside other processes; {} is returned where another writes `out` or has written it.

    Raises UserError: `out` is not empty or cannot be written, no checkpoint, unusable data or labels, an unfinished job
    of other settings, another process at the same. Nothing is left at `out` then.
    """
    job_folder.refuse_taken(out, part)
    dataset = meds.open_dataset(meds_root)
    rows = meds.read_labels(labels, dataset.splits["subject_id"], meds.first_events(dataset))
    rows = rows.select("subject_id", "prediction_time").unique(maintain_order=True)
    model, vocabulary, run, used = checkpoints.load_for_inference(workdir, step=step)
    config = settings(run.train.row_length)
    prompts = build_prompts(dataset, rows, vocabulary)
    began = time.perf_counter()
    job = simulation_job.Job(model, vocabulary, prompts, config)
    identity = job.identity()
    with job_folder.opened(out, part, identity) as folder:
        if folder is None:
            return {}
        drawn = 0
        if not part.is_all:
            drawn = job.draw(folder.path, part, progress=progress)
            if not folder.finish_part():
                return {}
        futures, drawn_last = job.finish(folder.path, progress=progress)
        resumed = len(futures) - drawn - drawn_last
        seconds = time.perf_counter() - began
        summary = _summary(futures, vocabulary, prompts=len(prompts), resumed=resumed, seconds=seconds)
        summary |= {
            "checkpoint_step": used,
            "samples": config.samples,
            "max_prompt_tokens": config.max_prompt_tokens,
            "max_new_tokens": config.max_new_tokens,
            "max_windows": config.max_windows,
            "horizon_seconds": config.horizon_seconds,
            "seed": config.seed,
            "grammar": config.grammar,
            "job": job_folder.digest(identity),
        }
        _write(out, futures, vocabulary, config.samples, summary)
        folder.remove()
    return summary


def _summary(
    futures: Sequence[Future], vocabulary: Vocabulary, *, prompts: int, resumed: int, seconds: float
) -> dict[str, Any]:
    # Of a job that was started again, the speed is unknown: only a part was drawn in this time.
    tokens = sum(len(future.tokens_T) for future in futures)
    counts = [trajectories.count_invalid(future, vocabulary) for future in futures]
    invalid, events = (sum(column) for column in zip(*counts, strict=True))
    return {
        "prompts": prompts,
        "futures": len(futures),
        "stops": dict(sorted(collections.Counter(future.stop for future in futures).items())),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": None if resumed else round(tokens / seconds, 1),
        "resumed_futures": resumed,
        "events": events,
        "invalid_events": invalid,
        "invalid_rate": invalid / events if events else 0.0,
    }


def _write(
    out: pathlib.Path, futures: Sequence[Future], vocabulary: Vocabulary, samples: int, summary: dict[str, Any]
) -> None:
    with output_folder.whole(out) as partial:
        (partial / "trajectories").mkdir()
        for sample in range(samples):
            of_sample = [future for future in futures if future.sample == sample]
            name = f"trajectory_{sample:0{len(str(samples - 1))}d}.parquet"
            trajectories.write_parquet(trajectories.to_meds(of_sample, vocabulary), partial / "trajectories" / name)
        (partial / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of a training run, with its checkpoints", required=True)
    checkpoint_choice.define_flag()
    flags.DEFINE_string("meds", None, "folder of the MEDS data set", required=True)
    flags.DEFINE_string("labels", None, "MEDS label file, or folder of label files", required=True)
    flags.DEFINE_string("out", None, "folder to write; must be new or empty", required=True)
    flags.DEFINE_string("part", "", job_folder.PART_HELP)
    flags.DEFINE_integer("samples", 16, "futures for each label row", lower_bound=1)
    flags.DEFINE_float("horizon_days", 365.0, "how far to simulate, in days after the prediction time")
    flags.DEFINE_integer("max_new_tokens", 0, "bound on a window's new tokens; 0 = half the model's row length")
    flags.DEFINE_integer("max_windows", MAX_WINDOWS, "context windows that a future may go through")
    flags.DEFINE_integer(
        "max_prompt_tokens",
        0,
        "bound on a history's tokens, of which the latest count; 0 = what remains of the row length",
    )
    flags.DEFINE_float("temperature", 1.0, "of sampling; 1 is the model's own distribution")
    flags.DEFINE_integer("seed", 0, "of sampling", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_integer("batch_rows", 128, "futures decoded at a time", lower_bound=1)
    flags.DEFINE_bool("grammar", False, "draw only tokens that spell events; else the share that does not is told")
    flags.DEFINE_enum("cache_dtype", "", list(CACHE_DTYPES), "of keys and values; empty: the model's compute dtype")
    flags.DEFINE_enum(
        "timeline_end",
        "",
        ["", *TIMELINE_ENDS],
        "what the end of a record is to a future: never drawn, a stop, or a censoring, where the corpus knows how long"
        " subjects were observed; empty: censor where that is known, else never",
    )


def main() -> None:
    """Simulate as the flags say."""
    values = flags.FLAGS
    if not values.horizon_days > 0:  # before anything is read
        raise UserError(
            f"{values.horizon_days:g} is no time ahead", where="--horizon_days", fix="give more than 0 days"
        )
    compile_cache.turn_on()

    def settings(row_length: int) -> SimulationConfig:
        max_prompt_tokens, max_new_tokens = token_bounds(row_length, values.max_prompt_tokens, values.max_new_tokens)
        return SimulationConfig(
            samples=values.samples,
            horizon_seconds=values.horizon_days * SECONDS_PER_DAY,
            max_new_tokens=max_new_tokens,
            max_windows=values.max_windows,
            max_prompt_tokens=max_prompt_tokens,
            temperature=values.temperature,
            seed=values.seed,
            timeline_end=values.timeline_end,
            batch_rows=values.batch_rows,
            grammar=values.grammar,
            cache_dtype=values.cache_dtype,
        )

    out = pathlib.Path(values.out)
    summary = simulate(
        workdir=pathlib.Path(values.workdir),
        meds_root=pathlib.Path(values.meds),
        labels=pathlib.Path(values.labels),
        out=out,
        settings=settings,
        step=values.step,
        part=job_folder.Part.parse(values.part),
    )
    if not summary:  # another process writes it
        return
    speed = summary["tokens_per_second"]
    print(
        f"{summary['futures']} futures, {summary['tokens']} tokens,"
        f"{'' if speed is None else f' {speed:.0f} tokens/s,'}"
        f" {summary['invalid_rate']:.2%} of events invalid: {out}"
    )


if __name__ == "__main__":
    command_line.run(main, _define_flags)
