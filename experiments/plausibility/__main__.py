r"""Do generated futures look like real ones, and are any copied from training? Against held-out truth, beside a floor.

    python -m experiments.plausibility --workdir runs/demo/model \
        --meds runs/demo/meds --out runs/plausibility

At one encounter end of each held-out subject the model draws futures; what was recorded after it is the truth, over the
same window. Writes OUT/plausibility.json and OUT/plausibility.html (offline): prevalence by code, pairs of codes,
encounters, times, events that sex or age contradicts, events that spell nothing, and how near generated windows lie to
training timelines, each beside half of held-out against the other half. docs/plausibility.md says what each number is.
OUT must be new or empty. Expect some minutes on two cores for the demo's model.
"""

import dataclasses
import json
import pathlib
from typing import Any

from absl import flags

from cometjax import checkpoint_choice, compile_cache, tasks
from data_pipeline import command_line
from experiments.plausibility import study


def _define_flags() -> None:
    flags.DEFINE_string("workdir", None, "folder of a training run (python -m cometjax.train)", required=True)
    checkpoint_choice.define_flag()
    flags.DEFINE_string("meds", None, "folder of the MEDS data set that it was trained on", required=True)
    flags.DEFINE_string("out", None, "folder to write; must be new or empty", required=True)
    default = study.Options()
    flags.DEFINE_string("corpus", default.corpus, "of the training run; none: where its configuration has it")
    flags.DEFINE_string("split", default.split, "split of the truth")
    flags.DEFINE_string("index", default.index, "regex of the concepts at which windows begin")
    flags.DEFINE_string("censoring", default.censoring, f"as of a task: {tasks.CENSORING_VALUES}")
    flags.DEFINE_float("horizon_days", default.horizon_days, "length of a window", lower_bound=0.01)
    flags.DEFINE_integer("max_prompts", default.max_prompts, "subjects, drawn by hash", lower_bound=2)
    flags.DEFINE_integer("samples", default.samples, "futures for each", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 0, "bound on a window's tokens; 0 = a third of the model's row length")
    flags.DEFINE_integer("max_prompt_tokens", 0, "bound on a history's tokens; 0 = what remains of the row length")
    flags.DEFINE_integer("max_training_subjects", default.max_training_subjects, "compared with", lower_bound=1)
    flags.DEFINE_bool("grammar", default.grammar, "draw only tokens that spell events")
    flags.DEFINE_integer("seed", default.seed, "of subjects, futures and halves", lower_bound=0, upper_bound=2**32 - 1)


def main() -> None:
    """Compare as the flags say."""
    values = flags.FLAGS
    compile_cache.turn_on()
    chosen: dict[str, Any] = {field.name: values[field.name].value for field in dataclasses.fields(study.Options)}
    out = pathlib.Path(values.out)
    results = study.run(pathlib.Path(values.workdir), pathlib.Path(values.meds), out, study.Options(**chosen))
    print(study.text_table(results))
    print(f"page: {out / 'plausibility.html'}")
    print(json.dumps({name: entry["half"] for name, entry in results["distances"].items()}))


if __name__ == "__main__":
    command_line.run(main, _define_flags)
