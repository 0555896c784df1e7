"""The rows of a training step's global batch: which piece of which record lies where, rebuilt as the loader made them.

A batch is a function of (corpus, configuration, step) alone, so nothing of it need be recorded while a run trains. From
a run's folder two files are read (`cometjax.workdir` writes them): config.json and corpus.json.
"""

import dataclasses
import json
import pathlib
from typing import Any

from data_pipeline import show_tables
from data_pipeline.corpus import Corpus, SplitReader
from data_pipeline.errors import UserError
from data_pipeline.mixture import MixedSplit, Mixture
from data_pipeline.packing import RowPlan

_SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class BatchRow:
    """A row of a batch: its place in the stream of rows, and its segments."""

    place: int
    segments: RowPlan


def rows_of_step(corpus: Corpus | Mixture, run: pathlib.Path, step: int) -> tuple[list[BatchRow], int]:
    """(rows of the batch of `step` in their order, their length) of the run in folder `run`, trained on `corpus`.

    Steps count from 1, as in metrics.jsonl.

    Raises UserError: the folder is no run's; the run was trained on another corpus; it has no such step.
    """
    config, about = (_read(run / name) for name in ("config.json", "corpus.json"))
    if corpus.fingerprint != about["fingerprint"]:
        raise UserError(
            f"was trained on a corpus with fingerprint {about['fingerprint'][:12]}, not on {corpus.fingerprint[:12]}",
            where=str(run),
            fix="give the corpus that the run was trained on, a mixture with its weights",
        )
    train = config["train"]
    if not 1 <= step <= train["steps"]:
        raise UserError(f"step {step} is none of the run's", where=str(run), fix=f"give one from 1 to {train['steps']}")
    # Brings JAX, three seconds, which the other tables need not wait for.
    from data_pipeline import length_groups, loader

    # Runs of older versions have no such key: they took rows as they come.
    settings = loader.LoaderConfig(
        train["batch_rows"], train["row_length"], config["seed"], group_by_length=train.get("group_by_length", 0)
    )
    plan = loader.training_plan(corpus.split(_SPLIT), settings)
    places_of = length_groups.places_of_steps(plan, settings.batch_rows, settings.group_by_length, settings.seed)
    return [BatchRow(place, plan.stream(place)) for place in places_of(step - 1)], settings.row_length


def table(corpus: Corpus | Mixture, run: pathlib.Path, step: int, *, subject_ids: bool) -> list[str]:
    """Lines with each segment of the batch of `step`: row, place of the row in the stream, tokens in it; then record,
    first token and length. With `subject_ids` whose record it is; for a mixture of which corpus."""
    rows, row_length = rows_of_step(corpus, run, step)
    split = corpus.split(_SPLIT)
    tokens = [int(row.segments.length_S.sum()) for row in rows]
    is_mixture = isinstance(split, MixedSplit)
    lines = []
    for number, (row, filled) in enumerate(zip(rows, tokens, strict=True)):
        pieces = zip(*(array_S.tolist() for array_S in row.segments), strict=True)
        for segment, (record, start, length) in enumerate(pieces):
            part, own_record = _origin(split, record)
            of_row = [f"{number}", f"{row.place:,}", f"{filled:,}"] if segment == 0 else ["", "", ""]
            of_corpus = [str(part)] if is_mixture else []
            subject = [str(int(part.subject_ids_R[own_record]))] if subject_ids else []
            lines.append([*of_row, *of_corpus, f"{own_record:,}", *subject, f"{start:,}", f"{length:,}"])
    header = ["row", "place", "tokens", *(["split"] if is_mixture else []), "record"]
    header += [*(["subject"] if subject_ids else []), "start", "length"]
    title = (
        f"step {step} of {run}: {len(rows)} rows of {row_length:,}, {len(lines):,} segments, {sum(tokens):,} tokens, "
        f"{sum(tokens) / (len(rows) * row_length):.1%} full"
    )
    return show_tables.table(header, lines, left=0, title=title)


def _origin(split: SplitReader | MixedSplit, record: int) -> tuple[SplitReader, int]:
    """The corpus's split that holds a record, and the record's number in it."""
    if isinstance(split, SplitReader):
        return split, record
    part = max(index for index in range(len(split.parts)) if split.first_records[index] <= record)
    return split.parts[part], record - split.first_records[part]


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(
            "is not there, or cannot be read", where=str(path), fix="give the --workdir of a run of cometjax.train"
        ) from error
