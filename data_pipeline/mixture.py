"""Mixtures of corpora by weight: `runs/a=0.7,runs/b=0.3` wherever a training configuration names a corpus.

Weights are shares of the rows of training (rows are at least 98% full, so of the tokens too). Row p of the endless
training stream belongs to a corpus by a schedule that repeats: with weights 7 and 3, every ten rows hold seven of the
one and three of the other, spread as evenly as whole rows allow, and after any number of rows each corpus's count is
within one of its share. So the row is a function of (seed, p, weights), found in O(1), whatever the hosts and workers.
Each corpus goes through epochs of its own, of its own packing.

Evaluation pools: the tuning split of a mixture is all the subjects of the corpora's tuning splits, each once, whatever
the weights; so the loss of a mixture is measured on the same tokens for all weights.
"""

import dataclasses
import fractions
import functools
import hashlib
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline import remote
from data_pipeline.corpus import MANIFEST, Corpus, SplitReader, SubjectRecord
from data_pipeline.errors import UserError
from data_pipeline.locations import is_remote
from data_pipeline.packing import PackingPlan, RowPlan
from data_pipeline.vocabulary import Vocabulary

# Rows after which a schedule repeats, at most: weights of up to five digits.
MAX_PERIOD = 100_000


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which part each row of a stream is taken from.

    Attributes:
        weights: rows of each part in a period, positive.
    """

    weights: tuple[int, ...]

    @classmethod
    def of(cls, weights: Sequence[fractions.Fraction]) -> "Schedule":
        """The shortest schedule with exactly these proportions; raises UserError when it is longer than MAX_PERIOD."""
        if not all(weight > 0 for weight in weights):
            raise UserError("a weight is not positive", where="mixture", fix="leave that corpus out")
        common = math.lcm(*(weight.denominator for weight in weights))
        whole = [int(weight * common) for weight in weights]
        shortest = tuple(weight // math.gcd(*whole) for weight in whole)
        if sum(shortest) > MAX_PERIOD:
            raise UserError(
                f"weights repeat only after {sum(shortest)} rows, the most is {MAX_PERIOD}",
                where="mixture",
                fix="round them to four digits",
            )
        return cls(shortest)

    def at(self, place: int) -> tuple[int, int]:
        """Part of the row at `place`, and the number of that part's rows before it."""
        period, offset = divmod(place, len(self._parts_Q))
        part = int(self._parts_Q[offset])
        return part, period * self.weights[part] + int(self._before_Q[offset])

    @functools.cached_property
    def _parts_Q(self) -> np.ndarray:
        """Part of each row of a period, after Tijdeman, "The chairman assignment problem", Discrete Math. 32 (1980).

        Of the parts whose share of the rows so far is ahead of their count, the one that would be late soonest. Every
        count stays within 1 - 1 / (2K - 2) of its share, the best bound there is for K parts.
        """
        period, slack = sum(self.weights), max(2 * len(self.weights) - 2, 1)
        # In units of 1 / (slack * period) rows, so that all is whole: how far each part is behind its share.
        behind = [0] * len(self.weights)
        order = np.empty(period, np.int64)
        for place in range(period):
            soonest, latest, scale = -1, 0, 1
            for part, weight in enumerate(self.weights):
                behind[part] += slack * weight
                late = (slack - 1) * period - behind[part]  # over the weight: places until this part is late
                if behind[part] >= period and (soonest < 0 or late * scale < latest * weight):
                    soonest, latest, scale = part, late, weight
            order[place] = soonest
            behind[soonest] -= slack * period
        return order

    @functools.cached_property
    def _before_Q(self) -> np.ndarray:
        before = np.empty(len(self._parts_Q), np.int64)
        for part, weight in enumerate(self.weights):
            before[self._parts_Q == part] = np.arange(weight)
        return before


class MixedSplit:
    """One split of every corpus of a mixture: their records, numbered through in order."""

    def __init__(self, name: str, parts: Sequence[SplitReader], schedule: Schedule) -> None:
        self.name, self.parts, self.schedule = name, tuple(parts), schedule
        self.first_records = tuple(itertools.accumulate((len(part) for part in parts), initial=0))

    @functools.cached_property
    def lengths_R(self) -> np.ndarray:
        """uint32 tokens of each record."""
        return np.concatenate([part.lengths_R for part in self.parts])

    def __str__(self) -> str:
        return " and ".join(map(str, self.parts))

    def __len__(self) -> int:
        return self.first_records[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "lengths_R"}

    def records(self, indices: Sequence[int]) -> list[SubjectRecord]:
        """The records of these numbers, in their order; raises UserError when a file is damaged."""
        part_of = np.searchsorted(self.first_records, np.asarray(indices, np.int64), side="right") - 1
        found: dict[int, SubjectRecord] = {}
        for part in np.unique(part_of).tolist():
            numbers = [indices[place] for place in np.flatnonzero(part_of == part).tolist()]
            first = self.first_records[part]
            contents = self.parts[part].records([number - first for number in numbers])
            found.update(zip(numbers, contents, strict=True))
        return [found[index] for index in indices]


@dataclasses.dataclass(frozen=True)
class MixedPlan:
    """The training stream of a mixture; as `PackingPlan` to the loader.

    Attributes:
        plans: of each part.
        first_records: number of each part's first record in the `MixedSplit`.
        schedule: which part a row is taken from.
    """

    plans: tuple[PackingPlan, ...]
    first_records: tuple[int, ...]
    schedule: Schedule

    @property
    def row_length(self) -> int:
        """Positions in a row."""
        return self.plans[0].row_length

    @property
    def prefix_length(self) -> int:
        """Tokens of static prefix with which a later segment of a record begins."""
        return self.plans[0].prefix_length

    def stream(self, place: int) -> RowPlan:
        """The row at `place` of the endless stream."""
        part, number = self.schedule.at(place)
        row = self.plans[part].stream(number)
        return row._replace(record_S=row.record_S + np.int64(self.first_records[part]))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Corpora with weights; as `Corpus` to whoever trains. `open_corpus` makes it.

    Attributes:
        corpora: sorted by fingerprint.
        schedule: their weights, in that order.
        names: of each, all different: the end of the path that it was opened by.
    """

    corpora: tuple[Corpus, ...]
    schedule: Schedule
    names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the corpora's fingerprints and weights, whatever the order in which they were named."""
        digest = hashlib.sha256()
        for corpus, weight in zip(self.corpora, self.schedule.weights, strict=True):
            digest.update(f"{corpus.fingerprint} {weight}\n".encode())
        return digest.hexdigest()

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that all corpora share."""
        return self.corpora[0].vocabulary

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What a run keeps of its corpus: the source."""
        parts = zip(self.corpora, self.schedule.weights, strict=True)
        return {"source": [{"source": corpus.manifest.get("source"), "weight": weight} for corpus, weight in parts]}

    def split(self, name: str) -> MixedSplit:
        """Reader of split `name` of all corpora; raises UserError naming the splits of one that has no such."""
        return MixedSplit(name, [corpus.split(name) for corpus in self.corpora], self.schedule)


def sources_of(corpus: Corpus | Mixture) -> tuple[str, ...]:
    """Names of a mixture's corpora; none of a corpus that is no mixture."""
    return corpus.names if isinstance(corpus, Mixture) else ()


def is_there(names: str) -> bool:
    """Whether every folder that `open_corpus(names)` would open still holds a corpus; URLs are taken to."""
    return all(is_remote(name) or (pathlib.Path(name) / MANIFEST).is_file() for name, _ in parse(names))


def open_corpus(names: str) -> Corpus | Mixture:
    """Open a corpus folder, or a mixture `FOLDER=WEIGHT,FOLDER=WEIGHT,...`.

    A URL of an object store does for a folder: it is fetched first (`data_pipeline.remote`). A folder whose own name
    has a comma is opened as one corpus.

    Raises:
        UserError: as `Corpus.open` does; a part without a weight, a corpus named twice, vocabularies that differ.
    """
    parts = parse(names)
    if len(parts) == 1:
        return _open(parts[0][0])
    # Sorted by what they are, so that a mixture does not depend on the order in which it was written.
    shown = _ends([name for name, _ in parts])
    opened = sorted(
        ((_open(name), weight, end) for (name, weight), end in zip(parts, shown, strict=True)),
        key=lambda part: part[0].fingerprint,
    )
    for (one, *_), (other, *_) in itertools.pairwise(opened):
        where = f"{one.root} and {other.root}"
        if one.fingerprint == other.fingerprint:
            raise UserError("the same corpus twice", where=where, fix="add up the weights")
        ours, theirs = (corpus.vocabulary.fingerprint for corpus in (one, other))
        if ours != theirs:
            raise UserError(
                f"vocabularies {ours[:12]} and {theirs[:12]} differ",
                where=where,
                fix="build one with the other's vocabulary to mix them",
            )
    corpora, weights, names_of = zip(*opened, strict=True)
    return Mixture(corpora, Schedule.of(weights), names_of)


def _ends(paths: Sequence[str]) -> list[str]:
    """The last components of paths, as many as make them different; the same path twice stays the same."""
    split = [[part for part in path.split("/") if part] for path in paths]
    for count in range(1, max(map(len, split))):
        ends = ["/".join(parts[-count:]) for parts in split]
        if len(set(ends)) == len(set(paths)):
            return ends
    return list(paths)


def _open(name: str) -> Corpus:
    return Corpus.open(remote.local_copy(name) if is_remote(name) else name)


def parse(names: str) -> list[tuple[str, fractions.Fraction]]:
    """Folder or URL of each part, and its weight; raises UserError for a part of several that has none."""
    if "," not in names or pathlib.Path(names).is_dir():
        return [(names, fractions.Fraction(1))]
    parts = []
    for part in names.split(","):
        name, _, weight = part.rpartition("=")
        try:
            # Fraction reads "0.7" exactly, and ratios like "1/3".
            parts.append((name.strip(), fractions.Fraction(weight.strip())))
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"{part!r} is no FOLDER=WEIGHT", where="corpus", fix="write a mixture as runs/a=0.7,runs/b=0.3"
            ) from error
    return parts
