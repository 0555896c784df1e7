"""The passes of a build: count all shards, add the counts up, make the vocabulary, tokenize all shards, finish."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np

from data_pipeline import (
    build_config,
    build_job,
    build_manifest,
    build_shards,
    code_maps,
    corpus,
    engines,
    meds,
    pieces,
    statistics,
    vocabulary_builder,
)
from data_pipeline.build_folder import BuildFolder
from data_pipeline.build_shards import Reading, TokenizedSplit
from data_pipeline.errors import UserError
from data_pipeline.frozen_vocabulary import FrozenVocabulary
from data_pipeline.split_table import SplitTable, save_array
from data_pipeline.vocabulary import Vocabulary

_MERGED_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class _Counted:
    """A shard whose piece of counts is there: its path below the data set, the piece, and how it was read."""

    file: str
    piece: pathlib.Path
    reading: Reading

    def subject_ids(self) -> np.ndarray:
        """Ids of all subjects in the file."""
        return pieces.read(self.piece, ["subject_ids"])["subject_ids"]


@dataclasses.dataclass(frozen=True)
class BuildRun:
    """One run of a build: what is asked for, where it is kept, and who does it."""

    dataset: meds.MedsDataset
    config: ml_collections.ConfigDict
    code_map: code_maps.CodeMap
    job: build_job.BuildJob
    folder: BuildFolder
    engine: engines.Engine
    lenient: bool = False
    frozen: FrozenVocabulary | None = None

    def write(self, splits: SplitTable) -> None:
        """Write the corpus into the build's folder."""
        splits.save(self.folder)
        counted = self._count()
        silent = splits.count_without([shard.subject_ids() for shard in counted])
        if silent:
            print(
                f"{self.dataset.root}: {silent:,} subject{' has' if silent == 1 else 's have'} a split and no event",
                file=sys.stderr,
            )
        totals = self._merge([shard.piece for shard in counted])
        vocabulary = self.frozen.vocabulary if self.frozen else self._make_vocabulary(totals)
        written = build_manifest.read_splits(self._tokenize(counted, vocabulary))
        if not written:
            raise UserError("no subject is left", where=str(self.dataset.root), fix="see why with --on_error=refuse")
        if not self.frozen:
            vocabulary = _with_measured_intervals(vocabulary, [split for _, split in written])
        self._save(vocabulary, self.folder.corpus / corpus.VOCABULARY)
        facts = build_manifest.BuildFacts(self.dataset, self.config, totals, vocabulary, self.frozen, silent)
        manifest = build_manifest.write_manifest(
            self.folder, facts, written, [(shard.file, shard.piece) for shard in counted]
        )
        if open_ended := sum(split.open_ended for _, split in written):
            print(
                f"{self.dataset.root}: nothing tells how long {open_ended:,} living"
                f" subject{'s were' if open_ended > 1 else ' was'} observed after the last event:"
                " these records end with it",
                file=sys.stderr,
            )
        build_manifest.remove_strays(self.folder, manifest)

    def _make_vocabulary(self, totals: statistics.Statistics) -> Vocabulary:
        if not totals.subjects:
            raise UserError(
                "no subject of the cohort in the train split",
                where=str(self.dataset.root),
                fix="the vocabulary is made from these: check metadata/subject_splits.parquet and config.cohort",
            )
        return vocabulary_builder.build_vocabulary(
            totals, self.code_map, self.dataset.descriptions, build_config.vocabulary_policy(self.config)
        )

    def _count(self) -> list[_Counted]:
        counted = self._count_shards([Reading(self.lenient)] * len(self.job.shards))
        twice = subjects_in_two_files([shard.subject_ids() for shard in counted])
        if not len(twice):
            return counted
        if not self.lenient:
            meds.check_subjects_once({self.dataset.root / shard.file: shard.subject_ids() for shard in counted})
        # Their rows are in the counts of several shards: those are counted again, without them.
        excluded = build_job.array_key(twice)
        save_array(self.folder, self.folder.subjects("excluded", excluded), twice)
        return self._count_shards(
            [Reading(True, excluded if np.isin(shard.subject_ids(), twice).any() else "") for shard in counted]
        )

    def _count_shards(self, readings: Sequence[Reading]) -> list[_Counted]:
        shards = [
            _Counted(shard.file, self.folder.counted(self.job.counted_key(index, reading.excluded)), reading)
            for index, (shard, reading) in enumerate(zip(self.job.shards, readings, strict=True))
        ]
        left = self._unfinished("counted", [shard.piece for shard in shards], self._is_counted)
        self.engine.run("counting", [self._job(build_shards.count_shard, index, readings[index]) for index in left])
        return shards

    def _is_counted(self, piece: pathlib.Path) -> bool:
        # What an earlier run has set aside is refused where that is asked for, by reading it again.
        return _is_whole(piece) and (self.lenient or not len(pieces.read(piece, ["aside"])["aside"]))

    def _merge(self, parts: list[pathlib.Path]) -> statistics.Statistics:
        """The sum of all counts, added up in groups of groups, so that no process holds more than one group's."""
        while len(parts) > _MERGED_AT_ONCE:
            groups = [parts[start : start + _MERGED_AT_ONCE] for start in range(0, len(parts), _MERGED_AT_ONCE)]
            keys = [build_job.key("merged", [part.name for part in group]) for group in groups]
            jobs = [
                engines.Job(
                    "adding counts up",
                    build_shards.merge_counts,
                    (
                        str(self.folder.root),
                        self.job.key,
                        tuple(part.relative_to(self.folder.root).as_posix() for part in group),
                        key,
                    ),
                )
                for group, key in zip(groups, keys, strict=True)
                if not _is_whole(self.folder.merged(key))
            ]
            self.engine.run("adding up", jobs)
            parts = [self.folder.merged(key) for key in keys]
        return build_shards.read_counts(parts)

    def _tokenize(self, counted: Sequence[_Counted], vocabulary: Vocabulary) -> list[pathlib.Path]:
        """Paths of the pieces of all tokenized shards."""
        self._save(vocabulary, self.folder.vocabulary)
        fingerprint, readings = vocabulary.fingerprint, [shard.reading for shard in counted]
        keys = [self.job.tokenized_key(index, reading.excluded, fingerprint) for index, reading in enumerate(readings)]
        tokenized = [self.folder.tokenized(key) for key in keys]
        jobs = [
            self._job(build_shards.tokenize_shard, index, readings[index], fingerprint)
            for index in self._unfinished("tokenized", tokenized, self._has_its_files)
        ]
        self.engine.run("tokenizing", jobs)
        return tokenized

    def _unfinished(
        self, done: str, paths: Sequence[pathlib.Path], is_finished: Callable[[pathlib.Path], bool]
    ) -> list[int]:
        """Numbers of the shards that are yet to be done; says how many are not."""
        left = [index for index, path in enumerate(paths) if not is_finished(path)]
        if len(left) < len(paths):
            print(
                f"{self.folder.root}: {len(paths) - len(left)} of {len(paths)} shards are {done} already",
                file=sys.stderr,
            )
        return left

    def _has_its_files(self, path: pathlib.Path) -> bool:
        if not _is_whole(path):
            return False
        files = {self.folder.corpus / split.file: split.bytes for _, split in build_manifest.read_splits([path])}
        return all(file.is_file() and file.stat().st_size == size for file, size in files.items())

    def _job(self, function: Callable[..., None], index: int, *arguments: Any) -> engines.Job:
        return engines.Job(
            str(self.job.path(index)), function, (str(self.folder.root), self.job.key, index, *arguments)
        )

    def _save(self, vocabulary: Vocabulary, path: pathlib.Path) -> None:
        temporary = self.folder.temporary()
        vocabulary.save(temporary)
        pieces.install(temporary, path)


def subjects_in_two_files(ids_of_files: Iterable[np.ndarray]) -> np.ndarray:
    """The ids, rising, that more than one of the arrays of distinct ids holds."""
    ids = np.sort(np.concatenate([np.zeros(0, np.int64), *ids_of_files]))
    return np.unique(ids[1:][ids[1:] == ids[:-1]])


def _with_measured_intervals(vocabulary: Vocabulary, splits: Sequence[TokenizedSplit]) -> Vocabulary:
    training = [split for split in splits if split.split == "train"]
    seconds = vocabulary_builder.measured_intervals(
        vocabulary.interval_preset,
        [sum(of_files) for of_files in zip(*(split.interval_us for split in training), strict=True)],
        [sum(of_files) for of_files in zip(*(split.interval_tokens for split in training), strict=True)],
    )
    histogram = sum(np.array(split.interval_histogram, np.int64) for split in training)
    quantiles = vocabulary_builder.measured_quantiles(vocabulary.interval_preset, seconds, np.asarray(histogram))
    return dataclasses.replace(vocabulary, interval_seconds=seconds, interval_quantiles=quantiles)


def _is_whole(path: pathlib.Path) -> bool:
    return path.exists() and pieces.is_whole(path)
