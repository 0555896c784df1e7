"""Show what is in a corpus, whether it is whole, or one subject's timeline.

    python -m data_pipeline.show --corpus CORPUS
    python -m data_pipeline.show --corpus CORPUS --verify
    python -m data_pipeline.show --corpus CORPUS --html FILE
    python -m data_pipeline.show --corpus CORPUS --subject 10000032
    python -m data_pipeline.show --corpus CORPUS --meds DIR --unknown 20
    python -m data_pipeline.show --corpus CORPUS --run WORKDIR --step 1234

The first prints tables: subjects, tokens and lengths of each split, tokens and vocabulary by kind, which rule of the
code map took which share of the training events, and which codes were lost. The second reads every byte and names each
file that is damaged, missing or strange; it exits with code 2 if there is one. The third writes one page with figures
and five timelines without subject ids and dates, which works offline. The fourth prints a timeline as a clinician would
read it, the fifth the most frequent codes of a MEDS data set that this corpus's vocabulary does not know, however few
subjects have them. These three hold clinical content: use them where that may be seen. The last says which pieces of
which records a run's step was trained on, after a spike for instance: with --subject_ids whose they are. A mixture is
named as in training, --corpus=A=0.7,B=0.3.
"""

import os
import pathlib
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from absl import flags

from data_pipeline import command_line, meds, show_batch, show_html, show_tables, show_timeline
from data_pipeline.corpus import Corpus, SubjectRecord
from data_pipeline.errors import UserError
from data_pipeline.mixture import open_corpus
from data_pipeline.unknown_codes import unknown_codes
from data_pipeline.verify import checksums, verify

# Flags that each say what to show; none: the tables.
_MODES = ("verify", "html", "subject", "unknown", "step")


def find_subject(corpus: Corpus, splits: Sequence[str], subject_id: int) -> SubjectRecord:
    """A subject's record; raises UserError if none of these splits has it."""
    for name in splits:
        split = corpus.split(name)
        found = np.flatnonzero(split.subject_ids_R == subject_id)
        if len(found):
            return split.record(int(found[0]))
    raise UserError(
        f"no subject {subject_id} in {', '.join(splits)}",
        where=str(corpus.root),
        fix="subject ids are in <split>/subject_ids.npy",
    )


def _verified(corpus: Corpus) -> list[str]:
    """One line if every file is whole; prints each that is not, and raises UserError."""
    faults = verify(corpus)
    for fault in faults:
        print(f"{corpus.root / fault.file}: {fault.what}")
    if faults:
        raise UserError(
            f"{len(faults)} files are not what corpus.json says (named above)",
            where=str(corpus.root),
            fix="remove strange files, and copy the others anew or rebuild the corpus",
        )
    return [f"{corpus.root}: {len(checksums(corpus)) + 1} files, all as written"]


def _unknown(corpus: Corpus, root: str, most: int) -> list[str]:
    """The most frequent codes of a MEDS data set that the corpus's vocabulary lacks."""
    lost, total = unknown_codes(meds.open_dataset(root), corpus.vocabulary)
    events = int(lost["events"].sum())
    title = (
        f"{len(lost):,} codes of {root} are unknown, in {events:,} of {total:,} events ({events / max(1, total):.2%})"
    )
    rows = [[code, kind, f"{subjects:,}", f"{count:,}"] for code, kind, subjects, count in lost.head(most).iter_rows()]
    return show_tables.table(["the most frequent", "kind", "subjects", "events"], rows, left=2, title=title)


def _written(corpus: Corpus, splits: Sequence[str], path: pathlib.Path, timelines: int) -> list[str]:
    """Write the HTML page; one line that says so."""
    if path.is_dir():
        raise UserError("a folder", where=str(path), fix="give the name of a file")
    page = show_html.render(corpus, splits, timelines)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot be written ({error.strerror})", where=str(path)) from error
    return [f"{path}: written, {len(page) / 1e6:.1f} MB"]


def _define_flags() -> None:
    flags.DEFINE_string("corpus", None, "folder of the corpus", required=True)
    flags.DEFINE_boolean("verify", False, "hash every file and name those that are damaged, missing or strange")
    flags.DEFINE_string("html", None, "write one page that works offline to this file")
    flags.DEFINE_integer("timelines", 5, "timelines on that page, without subject ids and dates", lower_bound=0)
    flags.DEFINE_integer("subject", None, "print this subject's timeline: clinical content, readable")
    flags.DEFINE_integer("unknown", None, "print so many of --meds' codes that are unknown: clinical content", 1)
    flags.DEFINE_string("meds", None, "folder of the MEDS data set that --unknown reads")
    flags.DEFINE_string("run", None, "folder of a training run on this corpus, whose --step is shown")
    flags.DEFINE_integer("step", None, "print what lies in the batch of this step of --run, from 1", lower_bound=1)
    flags.DEFINE_boolean("subject_ids", False, "name the subjects in that batch, too")
    flags.DEFINE_string("split", None, "only this split (default: all)")


def _lines() -> Iterable[str]:
    """What the flags ask for."""
    values = flags.FLAGS
    if (values.run is None) != (values.step is None):
        raise UserError("--run and --step go together")
    if values.subject_ids and values.step is None:
        raise UserError("--subject_ids is of a step", fix="give --run and --step")
    modes = [name for name in _MODES if getattr(values, name) not in (None, False)]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} are two things to do", fix="give one of them")
    if values.step is not None:
        run = pathlib.Path(values.run)
        return show_batch.table(open_corpus(values.corpus), run, values.step, subject_ids=values.subject_ids)
    corpus = Corpus.open(pathlib.Path(values.corpus))
    splits: Sequence[str] = list(corpus.manifest["splits"])
    if values.split is not None:
        corpus.split(values.split)
        splits = [values.split]
    if (values.unknown is None) != (values.meds is None):
        raise UserError("--unknown and --meds go together")
    if values.verify:
        return _verified(corpus)
    if values.html is not None:
        return _written(corpus, splits, pathlib.Path(values.html), values.timelines)
    if values.unknown is not None:
        return _unknown(corpus, values.meds, values.unknown)
    if values.subject is not None:
        return show_timeline.timeline(find_subject(corpus, splits, values.subject), corpus.vocabulary)
    return show_tables.overview(corpus, splits)


def main() -> None:
    """Run the command line."""
    try:
        for line in _lines():
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    command_line.run(main, _define_flags)
