"""Compare models that were evaluated on the same tasks, or sum one model up: one page for the whole suite.

    python -m cometjax.compare_models --evaluations runs/s-eval,runs/l-eval \\
        --names S,L --out runs/sl

Reads folders that `python -m cometjax.evaluate` wrote. Writes OUT/report.html (works offline) and OUT/comparison.json
(docs/tasks.md): every task's score of each model, beside the baselines and, on the synthetic world, the best possible;
on how many tasks a model is better than, worse than, or not told apart from each baseline and each other model, by
Holm's procedure, tasks with fewer than --min_events events left out; scores by size and by samples; ROC and calibration
of each task. Evaluations of different corpora, data, tasks or rows are refused. A minute for 78 tasks of three models.
"""

import pathlib

from absl import flags

from cometjax import comparison_page, comparisons, evaluations, model_comparison, output_folder, workdir
from data_pipeline import command_line


def write(out: pathlib.Path, found: list[evaluations.Evaluation], *, min_events: int, progress: bool = True) -> str:
    """Compare, and write `out`; returns the summary for a terminal. Raises UserError where `out` holds something."""
    output_folder.refuse_taken(out)
    comparison = model_comparison.compare(found, min_events=min_events, progress=progress)
    page = comparison_page.render(comparison, found)
    with output_folder.whole(out) as partial:
        workdir.write_json(partial / "comparison.json", comparison)
        workdir.write_text(partial / "report.html", page)
    return comparison_page.text_table(comparison)


def _define_flags() -> None:
    flags.DEFINE_list("evaluations", None, "folders that cometjax.evaluate wrote, with commas between", required=True)
    flags.DEFINE_list(
        "names",
        [],
        "of the models, in the same order; default: their workdirs' names, else their folders'",
    )
    flags.DEFINE_string("out", None, "folder to write; must be new or empty", required=True)
    flags.DEFINE_integer(
        "min_events",
        comparisons.MIN_EVENTS,
        "tasks with fewer rows that have the outcome are shown, but not counted",
        lower_bound=1,
    )


def main() -> None:
    """Compare as the flags say."""
    values = flags.FLAGS
    out = pathlib.Path(values.out)
    found = evaluations.read([pathlib.Path(folder) for folder in values.evaluations], values.names)
    print(write(out, found, min_events=values.min_events))
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    command_line.run(main, _define_flags)
