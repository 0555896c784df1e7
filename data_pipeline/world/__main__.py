"""A synthetic health system whose rules are known: write its records, or say what is true of them.

    python -m data_pipeline.world --out world --patients 6000 --seed 0
    python -m data_pipeline.world --describe
    python -m data_pipeline.world --score --corpus corpus --split tuning \\
        --out floor.json
    python -m data_pipeline.world --risks --corpus corpus --meds world \\
        --labels labels.parquet \\
        --outcome 'ENCOUNTER//ENCOUNTER_START//INPATIENT.*' --horizon_days 30 \\
        --out risks.parquet

The first writes a MEDS 0.4 data set. Adults enter in 2012-2019 and are observed to death or to the end of 2024:
encounters, diagnoses, tests, drugs, procedures. Expect about 480 tokens a subject and some 10 seconds for 6,000
subjects on two cores. The same arguments give the same bytes. --describe prints the rules that subjects live by.

--score gives the exact log-probability of each token of a corpus built from the world: prints the split's entropy floor
(nats per target token, in total and by kind of token) as JSON, and writes it to --out; --tokens names a file (.npy) for
the log-probability of every token, records end to end. --risks gives each row of a label file P(outcome within the
horizon | history), by --draws simulated futures of what the history leaves open. docs/world.md says why it is exact.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable

import numpy as np
import polars as pl
from absl import flags

from data_pipeline import command_line, meds, prompts
from data_pipeline.corpus import Corpus
from data_pipeline.errors import UserError
from data_pipeline.world import describe, risks, scoring, writer

_OUT = flags.DEFINE_string("out", "", "folder to write, missing or empty; with --score or --risks a file")
_PATIENTS = flags.DEFINE_integer("patients", 6000, "number of subjects, at least 10")
_SEED = flags.DEFINE_integer("seed", 0, "seed of all that is drawn", lower_bound=0, upper_bound=2**63 - 1)
_SHARDS = flags.DEFINE_integer(
    "shards",
    None,
    "train files, the other splits having an eighth of that, at least one "
    f"(default: one for each {writer.SUBJECTS_PER_SHARD:,} patients, at least two)",
)
_DESCRIBE = flags.DEFINE_boolean("describe", False, "print the rules and write nothing")
_SCORE = flags.DEFINE_boolean("score", False, "the true probability of each token of --corpus")
_RISKS = flags.DEFINE_boolean("risks", False, "the true risk at each row of --labels")
_CORPUS = flags.DEFINE_string("corpus", "", "folder of a corpus built from a world")
_SPLIT = flags.DEFINE_string("split", "tuning", "split of the corpus to score")
_TOKENS = flags.DEFINE_string("tokens", "", "with --score: file (.npy) for the log-probability of every token")
_MEDS = flags.DEFINE_string("meds", "", "with --risks: folder of the world's MEDS data set")
_LABELS = flags.DEFINE_string("labels", "", "with --risks: MEDS label file (subject_id, prediction_time)")
_OUTCOME = flags.DEFINE_string("outcome", "DEATH", "with --risks: regex that the outcome's concept matches in full")
_HORIZON = flags.DEFINE_float("horizon_days", 365.0, "with --risks: days after the prediction time", lower_bound=0.0)
_DRAWS = flags.DEFINE_integer("draws", risks.DRAWS, "with --risks: futures of each row", lower_bound=1)


def main() -> None:
    """Write the world, describe it, or say what is true of a corpus or of labelled rows."""
    if len(modes := [f"--{flag.name}" for flag in (_DESCRIBE, _SCORE, _RISKS) if flag.value]) > 1:
        raise UserError("asked for at once", where=" ".join(modes), fix="give one of them")
    if _DESCRIBE.value:
        print(describe.rules_text())
    elif _SCORE.value:
        _score()
    elif _RISKS.value:
        _write_risks()
    else:
        _write()


def _write() -> None:
    start = time.perf_counter()
    out = pathlib.Path(_named(_OUT, "name a folder to write, as in --out world"))
    summary = writer.write_world(out, _PATIENTS.value, _SEED.value, _SHARDS.value, progress=True)
    seconds = time.perf_counter() - start
    print(f"{out}: {summary.subjects:,} subjects, {summary.events:,} events, {summary.shards:,} files, {seconds:.1f} s")


def _score() -> None:
    corpus = Corpus.open(_named(_CORPUS, "name a corpus, as in --corpus runs/corpus"))
    log_T, offsets_R1 = scoring.score_tokens(corpus, _SPLIT.value, progress=True)
    floor = dataclasses.asdict(scoring.floor_of(corpus, _SPLIT.value, log_T, offsets_R1))
    if _TOKENS.value:
        _write_whole(pathlib.Path(_TOKENS.value), lambda path: np.save(path, log_T, allow_pickle=False))
    if _OUT.value:
        _write_whole(pathlib.Path(_OUT.value), lambda path: path.write_text(json.dumps(floor, indent=1) + "\n"))
    print(json.dumps(floor))


def _write_risks() -> None:
    out = pathlib.Path(_named(_OUT, "name a file to write, as in --out risks.parquet"))
    corpus = Corpus.open(_named(_CORPUS, "name the corpus whose vocabulary the histories are read with"))
    scoring.require_scorable(corpus)
    dataset = meds.open_dataset(pathlib.Path(_named(_MEDS, "name the world's MEDS folder")))
    if reason := scoring.data_refusal(dataset.name, dataset.version):
        raise UserError(f"true risks are not known: {reason}", where=str(dataset.root), fix="name a world's data set")
    labels = meds.read_labels(pathlib.Path(_named(_LABELS, "name a MEDS label file")), dataset.splits["subject_id"])
    question = risks.Question(_OUTCOME.value, _HORIZON.value)
    if not risks.can_happen(question, corpus.vocabulary):
        fix = "concepts are named as in ENCOUNTER//ENCOUNTER_START//INPATIENT or DIAGNOSIS//ICD10CM//E119"
        raise UserError("matches nothing that the world writes", where=f"--outcome {question.outcome}", fix=fix)
    histories = prompts.build_prompts(dataset, labels, corpus.vocabulary)
    risks_NxQ = risks.true_risks(
        histories, corpus.vocabulary, [question], draws=_DRAWS.value, seed=_SEED.value, progress=True
    )
    table = labels.select("subject_id", "prediction_time").with_columns(pl.Series("risk", risks_NxQ[:, 0]))
    _write_whole(out, table.write_parquet)
    known_N = risks_NxQ[np.isfinite(risks_NxQ)]
    mean = f"mean risk {known_N.mean():.4f}" if len(known_N) else "no risk is known"
    unread = len(table) - len(known_N)
    print(f"{out}: {len(table):,} rows, {mean}" + (f"; {unread:,} hold what the world cannot write" if unread else ""))


def _named(flag: flags.FlagHolder, fix: str) -> str:
    if not flag.value:
        raise UserError("is missing", where=f"--{flag.name}", fix=fix)
    return str(flag.value)


def _write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(path)) from error


if __name__ == "__main__":
    command_line.run(main)
