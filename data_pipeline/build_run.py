"""The passes of a build: count all shards, add the counts up, make the vocabulary, tokenize all shards, finish."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence

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
from data_pipeline.errors import UserError
from data_pipeline.split_table import SplitTable
from data_pipeline.vocabulary import Vocabulary

_MERGED_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class BuildRun:
    """One run of a build: what is asked for, where it is kept, and who does it."""

    dataset: meds.MedsDataset
    config: ml_collections.ConfigDict
    code_map: code_maps.CodeMap
    job: build_job.BuildJob
    folder: BuildFolder
    engine: engines.Engine

    def write(self, splits: SplitTable) -> None:
        """Write the corpus into the build's folder."""
        splits.save(self.folder)
        counted = self._count()
        totals = self._merge(counted)
        if not totals.subjects:
            raise UserError(
                "no subject of the cohort in the train split",
                where=str(self.dataset.root),
                fix="the vocabulary is made from these: check metadata/subject_splits.parquet and config.cohort",
            )
        vocabulary = vocabulary_builder.build_vocabulary(
            totals,
            self.code_map,
            self.dataset.descriptions,
            build_config.vocabulary_policy(self.config),
        )
        written = build_manifest.read_splits(self._tokenize(vocabulary))
        training = [split for _, split in written if split.split == "train"]
        seconds = vocabulary_builder.measured_intervals(
            vocabulary.interval_preset,
            np.sum([split.interval_us for split in training], axis=0),
            np.sum([split.interval_tokens for split in training], axis=0),
        )
        vocabulary = dataclasses.replace(vocabulary, interval_seconds=seconds)
        self._save(vocabulary, self.folder.corpus / corpus.VOCABULARY)
        build_manifest.write_manifest(self.folder, self.dataset, self.config, vocabulary, totals, written)

    def _count(self) -> list[pathlib.Path]:
        keys = [self.job.counted_key(index, "") for index in range(len(self.job.shards))]
        counted = [self.folder.counted(key) for key in keys]
        jobs = [
            self._job(build_shards.count_shard, index, "") for index in self._unfinished("counted", counted, _is_whole)
        ]
        self.engine.run("counting", jobs)
        ids = {
            path: pieces.read(piece, ["subject_ids"])["subject_ids"]
            for path, piece in zip(self.dataset.shards, counted, strict=True)
        }
        meds.check_subjects_once(ids)
        return counted

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

    def _tokenize(self, vocabulary: Vocabulary) -> list[pathlib.Path]:
        """Paths of the pieces of all tokenized shards."""
        self._save(vocabulary, self.folder.vocabulary)
        fingerprint = vocabulary.fingerprint
        keys = [self.job.tokenized_key(index, "", fingerprint) for index in range(len(self.job.shards))]
        tokenized = [self.folder.tokenized(key) for key in keys]
        jobs = [
            self._job(build_shards.tokenize_shard, index, "", fingerprint)
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

    def _job(self, function: Callable[..., None], index: int, *arguments: str) -> engines.Job:
        return engines.Job(
            str(self.job.path(index)), function, (str(self.folder.root), self.job.key, index, *arguments)
        )

    def _save(self, vocabulary: Vocabulary, path: pathlib.Path) -> None:
        temporary = self.folder.temporary()
        vocabulary.save(temporary)
        pieces.install(temporary, path)


def _is_whole(path: pathlib.Path) -> bool:
    return path.exists() and pieces.is_whole(path)
