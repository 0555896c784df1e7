"""The true probability of every token of a corpus that was built from the world: its entropy floor.

No model can expect a lower loss on a split than its floor; what a model's tuning loss has over it is the model's own
fault. Both are means over the same tokens: all but the first of each record, each once.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
from typing import Any

import numpy as np

from data_pipeline import cache
from data_pipeline.corpus import Corpus, SplitReader
from data_pipeline.errors import UserError
from data_pipeline.follow_up import AUTO, LAST_EVENT
from data_pipeline.progress_bar import progress_bar
from data_pipeline.vocabulary import KINDS
from data_pipeline.world import tables
from data_pipeline.world.reading import Reader
from data_pipeline.world.writer import DATASET_NAME

# Sequences read together: wide columns, few enough for the cache.
BLOCK = 128
# Below this a new process costs more than it saves.
_TOKENS_PER_PROCESS = 1_000_000
_CACHE = "world"


@dataclasses.dataclass(frozen=True)
class SplitFloor:
    """The entropy floor of a split, nats per target token (all tokens but the first of each record).

    `standard_error` says how far the mean over so many subjects may be from that over all the world's subjects. A
    model's loss on this split is to be compared with `floor` itself, whose tokens are the same.
    """

    split: str
    subjects: int
    targets: int
    floor: float
    standard_error: float
    floor_by_kind: dict[str, float]
    targets_by_kind: dict[str, int]
    rules: str


def refusal(manifest: dict[str, Any]) -> str:
    """Why the corpus with this manifest can't be scored; "" if it can."""
    source, config = manifest["source"], manifest["config"]
    if reason := data_refusal(source["name"], source["version"]):
        return reason
    cohort = config["cohort"]
    if config.get("observed_until", AUTO) not in (AUTO, LAST_EVENT):
        return "its records end at a date, and the world's observation by its clock"
    bounds = (cohort[key] for key in ("min_age", "max_age", "first_date", "last_date"))
    if any(bound is not None for bound in bounds) or cohort["min_encounters"]:
        return "its cohort leaves out events or subjects"
    return ""


def data_refusal(name: str, version: str) -> str:
    """Why nothing is known of the data set of this name and version; "" if it is this world's."""
    if not is_world(name):
        return "it was not built from data_pipeline.world"
    if f"rules={tables.fingerprint()}" not in str(version).split(","):
        return "its data come from the world under other rules than this program's"
    return ""


def is_world(name: str) -> bool:
    """Is the data set of this name a world's, under these or other rules?"""
    return name == DATASET_NAME


def require_scorable(corpus: Corpus) -> None:
    """Raise a UserError unless the corpus's true probabilities are known."""
    if reason := refusal(dict(corpus.manifest)):
        raise UserError(
            f"true probabilities are not known: {reason}",
            where=str(corpus.root),
            fix="build it from a world of this version with --config.code_map=world and no cohort",
        )


def score_tokens(
    corpus: Corpus, split: str, *, workers: int | None = None, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(float64 log-probability of each token of the split, records end to end; int64 offsets of the records [R + 1]).

    Raises UserError when the corpus is not one of this world, built so that nothing is lost, or a record in it holds
    what the world cannot write.
    """
    require_scorable(corpus)
    reader = corpus.split(split)
    offsets_R1 = np.concatenate(([0], np.cumsum(reader.lengths_R, dtype=np.int64)))
    log_T = np.empty(offsets_R1[-1])
    # Of like length, so that few wait for the longest.
    blocks = np.split(np.argsort(reader.lengths_R, kind="stable"), range(BLOCK, len(reader), BLOCK))[::-1]
    if workers is None:
        workers = min(os.cpu_count() or 1, 1 + len(log_T) // _TOKENS_PER_PROCESS)
    with progress_bar(total=len(log_T), unit=" tokens", desc="score", enabled=progress) as bar:
        for records, parts in _score_blocks(corpus.root, split, blocks, workers):
            for record, part in zip(records, parts, strict=True):
                if not np.isfinite(part).all():
                    place = int(np.flatnonzero(~np.isfinite(part))[0])
                    raise UserError(
                        f"record {record} holds what the world cannot write, at token {place}",
                        where=f"split {reader}",
                        fix="score only corpora built from data_pipeline.world's own files",
                    )
                log_T[offsets_R1[record] : offsets_R1[record + 1]] = part
                bar.update(len(part))
    return log_T, offsets_R1


def floor_of(corpus: Corpus, split: str, log_T: np.ndarray, offsets_R1: np.ndarray) -> SplitFloor:
    """The floor of a split whose tokens `score_tokens` has scored."""
    reader, kind_V = corpus.split(split), corpus.vocabulary.kind_V
    nats_K, tokens_K = np.zeros(len(KINDS)), np.zeros(len(KINDS), np.int64)
    nats_R = np.zeros(len(reader))
    for begin in range(0, len(reader), BLOCK):
        for index, record in enumerate(reader.records(range(begin, min(begin + BLOCK, len(reader)))), begin):
            nats = -log_T[offsets_R1[index] + 1 : offsets_R1[index + 1]]
            kinds = kind_V[record.tokens_T[1:]]
            nats_K += np.bincount(kinds, nats, minlength=len(KINDS))
            tokens_K += np.bincount(kinds, minlength=len(KINDS))
            nats_R[index] = nats.sum()
    targets_R = np.diff(offsets_R1) - 1
    floor = float(nats_R.sum() / targets_R.sum())
    # Of a ratio of sums over subjects.
    residual_R = nats_R - floor * targets_R
    error = float(np.sqrt((residual_R**2).sum()) / targets_R.sum())
    seen = [k for k in range(len(KINDS)) if tokens_K[k]]
    return SplitFloor(
        split,
        len(reader),
        int(targets_R.sum()),
        floor,
        error,
        {KINDS[k]: float(nats_K[k] / tokens_K[k]) for k in seen},
        {KINDS[k]: int(tokens_K[k]) for k in seen},
        tables.fingerprint(),
    )


def split_floor(corpus: Corpus, split: str = "tuning", *, progress: bool = False) -> SplitFloor:
    """The floor of a split, from the user's cache where it is known. Raises UserError as `score_tokens` does."""
    require_scorable(corpus)
    path = cache.folder(_CACHE) / f"floor-{corpus.fingerprint[:32]}-{split}-{tables.fingerprint()}.json"
    if path.is_file():
        return SplitFloor(**json.loads(path.read_text()))
    floor = floor_of(corpus, split, *score_tokens(corpus, split, progress=progress))
    with cache.refusing_unusable(path.parent):
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(floor)))
        temporary.replace(path)
    return floor


def _score_blocks(root: pathlib.Path, split: str, blocks: list[np.ndarray], workers: int) -> Any:
    """(record numbers, their log-probabilities) block by block, in any order."""
    if workers <= 1:
        _open(root, split)
        yield from map(_score_block, blocks)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_open, initargs=(root, split)) as pool:
        for future in concurrent.futures.as_completed([pool.submit(_score_block, block) for block in blocks]):
            yield future.result()


# What a process reads with; set once by `_open`.
_opened: list[tuple[SplitReader, Reader]] = []


def _open(root: pathlib.Path, split: str) -> None:
    corpus = Corpus.open(root)
    _opened[:] = [(corpus.split(split), Reader(corpus.vocabulary))]


def _score_block(records: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    split, reader = _opened[0]
    numbers = records.tolist()
    reading = reader.read([record.tokens_T for record in split.records(numbers)])
    return numbers, [reading.log_probabilities(index) for index in range(len(numbers))]
