"""List the suite's 78 tasks, and say which of them a data set can answer.

    python -m experiments.tasks --list
    python -m experiments.tasks --list --meds runs/demo/meds --code_map world
    python -m experiments.tasks --list --meds MIMIC --code_map mimic \\
        --censoring assume_complete
    python -m experiments.tasks --list --markdown   # the table of docs/tasks.md

With --meds: rows, subjects and positives (rows with the outcome in their window) of each task in --split, or why it
cannot run. Nothing is trained or simulated; a model's vocabulary may lack codes besides (cometjax.evaluate says which).
"""

import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

from absl import flags, logging

from cometjax import data_end, labels, task_rows, tasks
from cometjax.tasks import CENSORING_VALUES, Task, check_censoring, in_words
from data_pipeline import code_maps, command_line, meds
from data_pipeline.errors import UserError
from data_pipeline.plurals import counted
from experiments.tasks import suite


def survey(dataset: meds.MedsDataset, code_map: code_maps.CodeMap, asked: Sequence[Task], split: str) -> dict[str, str]:
    """By task: "300 rows, 120 subjects, 25 positive" in the split, or "cannot run: ..." with the reason.

    Of a count or duration "25 with an event": rows with at least one in their window. "300 rows (7 observed in part)":
    of 7 observation ended before the window did (`labels.observed_in_part`).
    """
    subjects = task_rows.subjects_of(dataset, split.split(",")).to_list()
    events = tasks.read_events(dataset, subjects, code_map)
    for line in data_end.warnings(events, asked):
        logging.warning("%s", line)
    found = {}
    for task in asked:
        where = f"the {split} subjects (code map {code_map.name!r})"
        reason = task_rows.obstacle(task, (concept.name for concept in events.concepts), where=where)
        if not reason:
            labelled = labels.label(events, subjects, task)
            frame = labelled.frame
            reason = "" if len(frame) else task_rows.no_rows(labelled)
        if reason:
            found[task.name] = f"cannot run: {reason}"
            continue
        people, positives = frame["subject_id"].n_unique(), frame["boolean_value"].sum()
        what = "positive" if task.kind == "binary" else "with an event"
        in_part = labels.observed_in_part(frame, events, task)
        rows = counted(len(frame), "row") + (f" ({in_part} observed in part)" if in_part else "")
        found[task.name] = f"{rows}, {counted(people, 'subject')}, {positives} {what}"
    return found


def text_table(asked: Sequence[Task], found: Mapping[str, str]) -> str:
    """Name, family, kind, horizon, metric, and what `survey` found."""
    rows = [("task", "family", "kind", "horizon", "metric", "data" if found else "")]
    rows += [(t.name, t.family, t.kind, in_words(t.horizon_days), t.metric, found.get(t.name, "")) for t in asked]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    cannot = sum(text.startswith("cannot run") for text in found.values())
    return "\n".join([*lines, f"{len(asked)} tasks" + (f", {len(found) - cannot} of them can run" if found else "")])


def markdown(asked: Sequence[Task]) -> str:
    """The tasks by family, each with its sentence."""
    parts = []
    for family in dict.fromkeys(task.family for task in asked):
        own = [task for task in asked if task.family == family]
        rows = [f"| `{t.name}` | {t.description} | {in_words(t.horizon_days)} | {t.metric} |" for t in own]
        parts.append(
            "\n".join(
                [f"**{family}** ({len(own)})\n", "| task | asks | horizon | metric |", "|---|---|---|---|", *rows]
            )
        )
    return "\n\n".join(parts)


def _define_flags() -> None:
    flags.DEFINE_bool("list", False, "print the tasks")
    flags.DEFINE_bool("markdown", False, "as Markdown, with what each asks in words")
    flags.DEFINE_string("meds", None, "folder of a MEDS data set to look for the tasks in")
    flags.DEFINE_string("code_map", None, "how its codes are read: a name or a JSON file, as for data_pipeline.build")
    flags.DEFINE_string("split", "held_out", "its subjects; several splits with commas between")
    flags.DEFINE_string("censoring", Task.censoring, f"of all tasks: {CENSORING_VALUES} (docs/tasks.md)")


def main() -> None:
    """Print the table that the flags ask for."""
    values = flags.FLAGS
    if not values.list:
        raise UserError("nothing to do", where="command line", fix="give --list; see --help")
    check_censoring(values.censoring, where="--censoring")
    asked = suite.make_tasks(values.censoring)
    if values.markdown:
        _print(markdown(asked))
        return
    if values.meds and not values.code_map:
        raise UserError("--meds without --code_map", where="command line", fix="say how codes are read, e.g. generic")
    found: dict[str, str] = {}
    if values.meds:
        dataset = meds.open_dataset(pathlib.Path(values.meds))
        found = survey(dataset, code_maps.named(values.code_map), asked, values.split)
    _print(text_table(asked, found))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    command_line.run(main, _define_flags)
