"""The whole path in one command: medical events to a trained, simulated, scored model and a report.

    python -m experiments.demo --workdir runs/demo
    python -m experiments.demo --workdir runs/demo --meds DIR

Without --meds a synthetic health system is the data. The stages are those that one runs by hand (data_pipeline.world,
data_pipeline.build, cometjax.train, cometjax.evaluate), each in its own folder of --workdir. An interrupted demo goes
on where it was when it is started again in the same way; a finished one starts anew. Ends with a table; the same
figures stand in WORKDIR/summary.json, the report in WORKDIR/report.html. Expect seven to eight minutes on two cores.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import flags

from cometjax import cpu_devices, evaluate, tasks, train
from cometjax.futures import MAX_WINDOWS
from data_pipeline import build, build_config, command_line, meds, world
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from experiments.configs import demo as demo_config
from experiments.configs import tasks_mimic, tasks_world

_STATE = "demo.json"
WORLD_PATIENTS = 6000
WORLD_SEED = 0


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the demo chooses for a data set: how its codes are read, what is rare, what is asked and how thoroughly.

    Prompt and future together have the row length that the model is trained with.
    """

    code_map: str
    min_subjects_per_code: int
    tasks: Callable[[], ml_collections.ConfigDict]
    max_rows_per_task: int
    samples: int
    max_prompt_tokens: int
    max_new_tokens: int
    max_windows: int = MAX_WINDOWS
    true_risk_draws: int = 0


PRESETS = {
    "world": Preset(
        "world",
        11,
        tasks_world.get_config,
        200,
        samples=16,
        max_prompt_tokens=512,
        max_new_tokens=256,
        max_windows=2,  # few futures need more, and they cost more than the rest: the demo is to take ten minutes
        true_risk_draws=100,
    ),
    # A hundred patients: the usual threshold of 11 subjects would leave little. They are public and de-identified.
    # Intensive care writes hundreds of tokens a day: futures get more room than histories.
    "mimic": Preset("mimic", 5, tasks_mimic.get_config, 250, samples=32, max_prompt_tokens=256, max_new_tokens=512),
}
# Any other data set is asked the world's questions, whose regexes name concepts and not codes.
PRESETS["generic"] = dataclasses.replace(PRESETS["world"], code_map="generic", max_windows=MAX_WINDOWS)


def run_demo(workdir: pathlib.Path, meds_root: pathlib.Path | None) -> dict[str, Any]:
    """Run every stage that is not done yet; returns the summary, which is also written to `workdir`.

    Raises UserError for data that cannot be used, and for a `workdir` that holds something else.
    """
    if meds_root is not None:
        meds.open_dataset(meds_root)  # a wrong one is refused before an earlier demo gives way to it
    earlier_s = _open_workdir(workdir, meds_root)
    start = time.perf_counter()

    def keep_time() -> None:
        _write_json(workdir / _STATE, _settings(meds_root) | {"wall_s": earlier_s + time.perf_counter() - start})

    data, preset = _get_data(workdir, meds_root)
    corpus = _stage("corpus", workdir / "corpus", lambda out: _build(data, out, preset))
    keep_time()
    trained = _train(workdir, corpus)
    keep_time()
    shutil.rmtree(workdir / "evaluation", ignore_errors=True)
    results = evaluate.evaluate(
        work=workdir / "model",
        meds_root=data,
        tasks=tasks.tasks_from_config(preset.tasks()),
        out=workdir / "evaluation",
        options=evaluate.Options(
            estimator="scope",  # the finest that asks no futures of their own for every task
            samples=preset.samples,
            max_rows_per_task=preset.max_rows_per_task,
            max_prompt_tokens=preset.max_prompt_tokens,
            max_new_tokens=preset.max_new_tokens,
            max_windows=preset.max_windows,
            true_risk_draws=preset.true_risk_draws,
            corpus=str(corpus),  # the folder may have been moved since training named it
        ),
    )
    shutil.copyfile(workdir / "evaluation" / "report.html", workdir / "report.html")
    summary = _summarize(trained, results, wall_s=earlier_s + time.perf_counter() - start)
    _write_json(workdir / "summary.json", summary)
    return summary


def _settings(meds_root: pathlib.Path | None) -> dict[str, Any]:
    return {"meds": None if meds_root is None else str(meds_root.resolve())}


def _open_workdir(workdir: pathlib.Path, meds_root: pathlib.Path | None) -> float:
    """Make the folder ready; returns the seconds that an interrupted demo in it has used already."""
    state = workdir / _STATE
    if workdir.exists() and not state.is_file() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError("holds something that is no demo", where=str(workdir), fix="choose another --workdir")
    if state.is_file():
        try:
            known = json.loads(state.read_text())
        except ValueError:
            known = {}
        same = {key: known.get(key) for key in _settings(meds_root)} == _settings(meds_root)
        if same and not (workdir / "summary.json").exists():
            print(f"{workdir}: going on with an interrupted demo", flush=True)
            return float(known.get("wall_s", 0.0))
        print(f"{workdir}: starting anew, over an earlier demo", flush=True)
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    _write_json(state, _settings(meds_root))
    return 0.0


def _get_data(workdir: pathlib.Path, meds_root: pathlib.Path | None) -> tuple[pathlib.Path, Preset]:
    if meds_root is None:
        out = workdir / "meds"
        _stage("world", out, lambda out: world.write_world(out, WORLD_PATIENTS, WORLD_SEED))
        return out, PRESETS["world"]
    name = meds.open_dataset(meds_root).name
    choice = "mimic" if "mimic" in name.lower() else "generic"
    print(f"data: {name}, read by the code map {choice!r}", flush=True)
    return meds_root, PRESETS[choice]


def _stage(name: str, out: pathlib.Path, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Make a folder that appears only when it is whole, unless it is there."""
    if not out.exists():
        start = time.perf_counter()
        make(out)
        print(f"{name}: {out}, {time.perf_counter() - start:.1f} s", flush=True)
    return out


def _build(data: pathlib.Path, out: pathlib.Path, preset: Preset) -> None:
    config = build_config.get_config()
    config.code_map = preset.code_map
    config.min_subjects_per_code = preset.min_subjects_per_code
    build.build_corpus(data, out, config)


def _train(workdir: pathlib.Path, corpus: pathlib.Path) -> train.TrainResult:
    config = demo_config.get_config()
    config.corpus = str(corpus)
    manifest = Corpus.open(corpus).manifest
    tokens = manifest["splits"]["train"]["tokens"]
    print(f"training on {tokens:,} tokens, vocabulary {manifest['vocabulary_size']:,}", flush=True)
    return train.train(config, workdir / "model")


def _summarize(trained: train.TrainResult, results: dict[str, Any], wall_s: float) -> dict[str, Any]:
    keys = ("auroc", "low", "high", "n", "positives")
    return {
        "tuning_loss": trained.tuning_loss,
        "unigram_loss": results["losses"]["unigram_loss"],
        "bigram_loss": results["losses"]["bigram_loss"],
        **{key: results["losses"][key] for key in ("floor", "excess", "excess_by_kind") if key in results["losses"]},
        "train_tokens_per_s": trained.tokens_per_second,
        "wall_s": wall_s,
        "tasks": {
            name: {key: task[key] for key in keys} | ({"best_auroc": task["best"]["auroc"]} if "best" in task else {})
            for name, task in results["tasks"].items()
        },
    }


def summary_table(summary: dict[str, Any], report: pathlib.Path) -> str:
    """The lines that the demo ends with."""
    gain = summary["bigram_loss"] - summary["tuning_loss"]
    lines = [
        "",
        "tuning loss, nats/token",
        f"  model    {summary['tuning_loss']:.3f}",
        f"  bigram   {summary['bigram_loss']:.3f}   (the model is {abs(gain):.3f} {'better' if gain > 0 else 'worse'})",
        f"  unigram  {summary['unigram_loss']:.3f}",
        *_floor_lines(summary),
        f"training   {summary['train_tokens_per_s']:,.0f} tokens/s",
        "",
        f"{'held-out task':<28}{'AUROC':>7}  {'95% interval':<14}{'best':>7}{'rows':>6}{'positives':>11}",
    ]
    for name, task in summary["tasks"].items():
        auroc = "-" if task["auroc"] is None else f"{task['auroc']:.3f}"
        # The best possible is known of the synthetic world alone.
        best = "-" if task.get("best_auroc") is None else f"{task['best_auroc']:.3f}"
        # Null where one class is missing, or has rows of a single subject: then no resample tells anything.
        interval = "too few" if task["low"] is None else f"{task['low']:.3f} - {task['high']:.3f}"
        lines.append(f"{name:<28}{auroc:>7}  {interval:<14}{best:>7}{task['n']:>6}{task['positives']:>11}")
    return "\n".join([*lines, "", f"{summary['wall_s']:.0f} s in all; report: {report}"])


def _floor_lines(summary: dict[str, Any]) -> list[str]:
    if "floor" not in summary:
        return []
    kinds = sorted(summary["excess_by_kind"].items(), key=lambda item: -item[1])[:4]
    return [
        f"  floor    {summary['floor']:.3f}   (the model is {summary['excess']:.3f} above it)",
        "  above it by kind: " + ", ".join(f"{kind.lower()} {excess:.3f}" for kind, excess in kinds) + ", ...",
    ]


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.rename(path)


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of the demo", required=True)
    flags.DEFINE_string("meds", None, "folder of a MEDS data set; default: a synthetic one is made")


def main() -> None:
    """Run the demo as the flags say, and print its table."""
    values = flags.FLAGS
    cpu_devices.show_cores()
    workdir = pathlib.Path(values.workdir)
    summary = run_demo(workdir, pathlib.Path(values.meds) if values.meds else None)
    print(summary_table(summary, workdir / "report.html"))


if __name__ == "__main__":
    command_line.run(main, _define_flags)
