"""A corpus on disk: one ArrayRecord record per subject, a vocabulary, and a manifest that is written last.

corpus/
  corpus.json                     its own checksum, format version, fingerprint, source, config, counts per split and
                                  kind, code-map coverage, every other file with its checksum
  vocabulary.json                 see data_pipeline.vocabulary
  quarantine.parquet              subjects and files that were set aside, if any: see data_pipeline.event_faults
  <split>/NNNNN.array_record      group size 1, so that a record is one random read
  <split>/lengths.npy             uint32, tokens of each record, records numbered through the shards in order
  <split>/subject_ids.npy         int64, likewise
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import struct
import tokenize
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from data_pipeline.errors import UserError
from data_pipeline.locations import require_local
from data_pipeline.vocabulary import PREFIX_LENGTH, Vocabulary

FORMAT_VERSION = 2
MANIFEST = "corpus.json"
VOCABULARY = "vocabulary.json"
# How a manifest begins: the SHA-256 of all that follows.
_CHECKSUM = re.compile(rb'\{\n "sha256": "([0-9a-f]{64})",\n')
QUARANTINE = "quarantine.parquet"
# subject id, tokens, static prefixes
_HEADER = struct.Struct("<qII")


@dataclasses.dataclass(frozen=True)
class SubjectRecord:
    """One subject's tokens.

    Attributes:
        subject_id: the MEDS subject id.
        tokens_T: uint16 token ids; the first PREFIX_LENGTH are the static prefix.
        prefix_starts: uint32 token indices, rising from 0: where the static prefix changes.
        prefixes: uint16 [len(prefix_starts), PREFIX_LENGTH]: a window that starts at token s begins with the last row
            whose prefix_starts is at most s.
    """

    subject_id: int
    tokens_T: np.ndarray
    prefix_starts: np.ndarray
    prefixes: np.ndarray

    def prefix_at(self, start: int) -> np.ndarray:
        """The static prefix (uint16 [PREFIX_LENGTH]) of a window that starts at token `start`."""
        return self.prefixes[np.searchsorted(self.prefix_starts, start, side="right") - 1]


def encode_record(record: SubjectRecord) -> bytes:
    """The record's bytes, little endian: header, prefix starts, prefixes, tokens."""
    return b"".join(
        (
            _HEADER.pack(record.subject_id, len(record.tokens_T), len(record.prefix_starts)),
            record.prefix_starts.astype("<u4").tobytes(),
            record.prefixes.astype("<u2").tobytes(),
            record.tokens_T.astype("<u2").tobytes(),
        )
    )


def decode_record(content: bytes) -> SubjectRecord:
    """Inverse of `encode_record`; arrays are views of `content`."""
    subject_id, num_tokens, num_prefixes = _HEADER.unpack_from(content)
    starts = np.frombuffer(content, "<u4", num_prefixes, _HEADER.size)
    offset = _HEADER.size + starts.nbytes
    prefixes = np.frombuffer(content, "<u2", num_prefixes * PREFIX_LENGTH, offset).reshape(-1, PREFIX_LENGTH)
    tokens_T = np.frombuffer(content, "<u2", num_tokens, offset + prefixes.nbytes)
    return SubjectRecord(subject_id, tokens_T, starts, prefixes)


def write_shard(path: pathlib.Path, records: Iterable[SubjectRecord]) -> int:
    """Write records to one ArrayRecord file under a temporary name, renamed when whole; returns their number."""
    temporary = path.with_name(path.name + ".tmp")
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    count = 0
    for record in records:
        writer.write(encode_record(record))
        count += 1
    writer.close()
    temporary.rename(path)
    return count


class SplitReader:
    """Random access to one split's records; opens its files on first use, so that it travels to worker processes."""

    def __init__(
        self, root: pathlib.Path, name: str, shards: Sequence[Mapping[str, Any]], tokens: int | None = None
    ) -> None:
        """`shards` is the manifest's; `tokens` its number of tokens of the split, to compare the lengths with."""
        self.name = name
        self._tokens = tokens
        self._folder = root / name
        self._paths = [root / shard["file"] for shard in shards]
        self._starts = np.cumsum([0] + [shard["records"] for shard in shards])
        self._readers: dict[int, Any] = {}

    @functools.cached_property
    def lengths_R(self) -> np.ndarray:
        """uint32 tokens of each record, memory-mapped; raises UserError when they are not those that were written."""
        path = self._folder / "lengths.npy"
        lengths_R = _load_array(path, np.uint32, len(self))
        # Else a damaged length would show only at its record, hours into a run, or never, in a table of lengths.
        if self._tokens is not None and int(lengths_R.sum(dtype=np.int64)) != self._tokens:
            raise UserError(
                f"the lengths add up to {int(lengths_R.sum(dtype=np.int64))} tokens, corpus.json says {self._tokens}",
                where=str(path),
                fix="rebuild the corpus",
            )
        return lengths_R

    @functools.cached_property
    def subject_ids_R(self) -> np.ndarray:
        """int64 subject of each record, memory-mapped."""
        return _load_array(self._folder / "subject_ids.npy", np.int64, len(self))

    def __str__(self) -> str:
        return f"{self.name} of {self._folder.parent}"

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps would travel whole, and open files not at all: the other process opens its own.
        state = {key: value for key, value in self.__dict__.items() if key not in ("lengths_R", "subject_ids_R")}
        # The lengths have been added up here.
        return state | {"_readers": {}, "_tokens": None}

    def record(self, index: int) -> SubjectRecord:
        """The record numbered `index`; raises UserError when the file is damaged."""
        return self.records([index])[0]

    def records(self, indices: Sequence[int]) -> list[SubjectRecord]:
        """The records of these numbers, in their order; raises UserError when a file is damaged.

        ArrayRecord reads the records of one call in parallel: many at once are faster than one by one.
        """
        shard_of = np.searchsorted(self._starts, np.asarray(indices, np.int64), side="right") - 1
        found: dict[int, SubjectRecord] = {}
        for shard in np.unique(shard_of).tolist():
            numbers = [indices[place] for place in np.flatnonzero(shard_of == shard).tolist()]
            found.update(zip(numbers, self._read(shard, numbers), strict=True))
        return [found[index] for index in indices]

    def _read(self, shard: int, indices: Sequence[int]) -> list[SubjectRecord]:
        first = int(self._starts[shard])
        try:
            if shard not in self._readers:
                # Rows are read at random: reading ahead would only read in vain.
                self._readers[shard] = array_record_module.ArrayRecordReader(
                    str(self._paths[shard]), "readahead_buffer_size:0,max_parallelism:1"
                )
            contents = self._readers[shard].read([index - first for index in indices])
            records = [decode_record(content) for content in contents]
        except (RuntimeError, ValueError, IndexError, struct.error) as error:
            raise UserError("damaged or incomplete", where=str(self._paths[shard]), fix="rebuild the corpus") from error
        for index, record in zip(indices, records, strict=True):
            if len(record.tokens_T) != self.lengths_R[index]:
                raise UserError(
                    f"record {index - first} has {len(record.tokens_T)} tokens, lengths.npy says "
                    f"{self.lengths_R[index]}",
                    where=str(self._paths[shard]),
                    fix="rebuild the corpus",
                )
        return records


@dataclasses.dataclass(frozen=True)
class Corpus:
    """An opened corpus: its manifest, vocabulary, and a reader per split."""

    root: pathlib.Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, root: str | pathlib.Path) -> "Corpus":
        """Open a corpus folder; raises UserError when it is none, is unfinished, or has another format version."""
        require_local(root, "corpus")
        root = pathlib.Path(root)
        path = root / MANIFEST
        if not path.is_file():
            raise UserError(
                "no corpus.json, so no finished corpus",
                where=str(root),
                fix="build one with python -m data_pipeline.build",
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError("cannot be read", where=str(path), fix="rebuild the corpus") from error
        return cls(root, decode_manifest(content, str(path)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and every shard: equal for equal corpora, wherever they lie."""
        return str(self.manifest["fingerprint"])

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The corpus's vocabulary; raises UserError when it is not the one that the corpus was written with."""
        path = self.root / VOCABULARY
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError("cannot be read", where=str(path), fix="rebuild the corpus") from error
        # A vocabulary's fingerprint is that of its file: nothing of a damaged one is parsed.
        found, expected = hashlib.sha256(content).hexdigest(), self.manifest["vocabulary_fingerprint"]
        if found != expected:
            raise UserError(
                f"fingerprint {found[:12]}, but corpus.json says {expected[:12]}",
                where=str(path),
                fix="rebuild the corpus",
            )
        return Vocabulary.from_json(content.decode(), where=str(path))

    def split(self, name: str) -> SplitReader:
        """Reader of split `name`; raises UserError naming the splits there are."""
        splits = self.manifest["splits"]
        if name not in splits:
            raise UserError(f"no split {name!r}", where=str(self.root / MANIFEST), fix=f"it has {', '.join(splits)}")
        return SplitReader(self.root, name, splits[name]["shards"], splits[name]["tokens"])


def encode_manifest(content: Mapping[str, Any]) -> bytes:
    """corpus.json's bytes; the checksum before all the rest covers every one of them."""
    rest = json.dumps(content, indent=1).removeprefix("{\n").encode() + b"\n"
    return b'{\n "sha256": "%s",\n%s' % (hashlib.sha256(rest).hexdigest().encode(), rest)


def decode_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Inverse of `encode_manifest`; raises UserError when the bytes are damaged, or of another format version."""
    try:
        manifest = json.loads(content)
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError("not a readable manifest", where=where, fix="rebuild the corpus") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"format version {version}, this program reads {FORMAT_VERSION}", where=where, fix="rebuild the corpus"
        )
    head = _CHECKSUM.match(content)
    if head is None or hashlib.sha256(content[head.end() :]).hexdigest() != head[1].decode():
        raise UserError("damaged: not what its checksum says", where=where, fix="rebuild the corpus")
    return dict(manifest)


def manifest_checksums(manifest: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every file of a corpus but corpus.json, by its path below the corpus."""
    entries = [*manifest["files"], *(shard for split in manifest["splits"].values() for shard in split["shards"])]
    return {entry["file"]: entry["sha256"] for entry in entries}


def fingerprint(vocabulary_fingerprint: str, splits: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 over the vocabulary's fingerprint and every shard's checksum, in order of split and shard."""
    digest = hashlib.sha256(vocabulary_fingerprint.encode())
    for name in sorted(splits):
        for shard in splits[name]["shards"]:
            digest.update(f"{shard['file']} {shard['sha256']}\n".encode())
    return digest.hexdigest()


def file_sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_array(path: pathlib.Path, dtype: type, length: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    # numpy parses a header as Python, and lets what its tokenizer says of a damaged one through.
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile) as error:
        raise UserError("cannot be read", where=str(path), fix="rebuild the corpus") from error
    if not isinstance(array, np.ndarray):
        raise UserError("holds something else than an array", where=str(path), fix="rebuild the corpus")
    if array.dtype != dtype or array.shape != (length,):
        raise UserError(
            f"holds {array.dtype}{list(array.shape)}, corpus.json wants {np.dtype(dtype)}[{length}]",
            where=str(path),
            fix="rebuild the corpus",
        )
    # A memmap's elements cost several times a plain array's: keep the mapping, drop the subclass.
    return array.view(np.ndarray)
