"""A sample of a corpus that is read in bounded time and memory, however many subjects there are."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from data_pipeline import grammar
from data_pipeline.corpus import Corpus, SplitReader, SubjectRecord
from data_pipeline.vocabulary import DECILES, Vocabulary

MAX_SHARDS = 64
MAX_SUBJECTS = 2_000
MAX_TOKENS = 4_000_000
# Reading tokens back as events is Python, token by token.
MAX_PARSED_TOKENS = 400_000
MAX_LENGTHS = 2_000_000


@dataclasses.dataclass(frozen=True)
class CorpusSample:
    """Some subjects of one split, at random from some of its shards.

    Attributes:
        split, of_subjects: the split, and how many subjects it has.
        records: those read, at most MAX_SUBJECTS of MAX_SHARDS shards and about MAX_TOKENS tokens.
        counts_V: how often they have each token.
        parsed_tokens: how many of these tokens were read back as events, for the next.
        deciles: index into the vocabulary's events → how many of them had each decile, int64 [DECILES].
    """

    split: str
    of_subjects: int
    records: tuple[SubjectRecord, ...]
    counts_V: np.ndarray
    parsed_tokens: int
    deciles: Mapping[int, np.ndarray]

    @property
    def tokens(self) -> int:
        """Tokens of all records."""
        return int(self.counts_V.sum())

    @property
    def is_whole(self) -> bool:
        """Is every subject of the split in it?"""
        return len(self.records) == self.of_subjects


def draw(corpus: Corpus, split: str, seed: int = 0) -> CorpusSample:
    """Read a sample of a split; the same one for the same corpus and seed."""
    reader = corpus.split(split)
    chosen = _choose(corpus, reader, np.random.default_rng(seed))
    records = tuple(reader.records(chosen)) if chosen else ()
    vocabulary = corpus.vocabulary
    counts_V = np.zeros(len(vocabulary), np.int64)
    for record in records:
        counts_V += np.bincount(record.tokens_T, minlength=len(vocabulary))
    parsed_tokens, deciles = _count_deciles(records, vocabulary)
    return CorpusSample(split, len(reader), records, counts_V, parsed_tokens, deciles)


def lengths(reader: SplitReader, seed: int = 0) -> np.ndarray:
    """Tokens of each subject of a split, or of MAX_LENGTHS of them at random."""
    if len(reader) <= MAX_LENGTHS:
        return np.asarray(reader.lengths_R)
    return reader.lengths_R[np.sort(np.random.default_rng(seed).integers(0, len(reader), MAX_LENGTHS))]


def _choose(corpus: Corpus, reader: SplitReader, rng: np.random.Generator) -> list[int]:
    """Numbers of the records to read."""
    sizes = [shard["records"] for shard in corpus.manifest["splits"][reader.name]["shards"]]
    starts = np.concatenate(([0], np.cumsum(sizes)))
    filled = np.flatnonzero(sizes)
    shards = rng.choice(filled, min(len(filled), MAX_SHARDS), replace=False)
    # As many of each shard, so that no more numbers are drawn than are looked at.
    most = -(-MAX_SUBJECTS // max(1, len(shards)))
    few = [starts[shard] + rng.choice(sizes[shard], min(sizes[shard], most), replace=False) for shard in shards]
    numbers = rng.permutation(np.concatenate(few))[:MAX_SUBJECTS] if few else np.zeros(0, np.int64)
    if not len(numbers):
        return []
    # One record may be longer than all that is wanted: it is read, and is the last.
    within = np.concatenate(([0], np.cumsum(reader.lengths_R[numbers], dtype=np.int64)[:-1])) < MAX_TOKENS
    return numbers[within].tolist()


def _count_deciles(records: tuple[SubjectRecord, ...], vocabulary: Vocabulary) -> tuple[int, dict[int, np.ndarray]]:
    parsed_tokens = 0
    deciles: dict[int, np.ndarray] = {}
    for record in records:
        tokens = record.tokens_T[: MAX_PARSED_TOKENS - parsed_tokens].tolist()
        for event in grammar.parse(tokens, vocabulary):
            if event.event != grammar.INVALID and event.decile:
                deciles.setdefault(event.event, np.zeros(DECILES, np.int64))[event.decile - 1] += 1
        parsed_tokens += len(tokens)
        if parsed_tokens >= MAX_PARSED_TOKENS:
            break
    return parsed_tokens, deciles
