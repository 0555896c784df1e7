"""What a build is about: its input files and everything else that decides the corpus, and the keys of its pieces.

A piece of work bears a key made from all that decides what it holds. So a build that is started again finds by name
what an earlier run has finished, and never takes up what was made from another file, configuration or program.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline import meds
from data_pipeline.errors import UserError

# Their versions may change the bytes of a corpus.
_LIBRARIES = ("numpy", "polars", "pyarrow", "array-record")


@dataclasses.dataclass(frozen=True)
class Shard:
    """An input file as it was when the build began: its path below the data set, bytes, and time of change."""

    file: str
    size: int
    modified_ns: int

    @classmethod
    def of(cls, root: pathlib.Path, path: pathlib.Path) -> "Shard":
        """The file as it is now; raises UserError when it cannot be looked at."""
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", where=str(path)) from error
        return cls(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class BuildJob:
    """A build.

    Attributes:
        meds_root: the data set's folder.
        shards: its event files, in order.
        split_names: names of the splits, by the number that stands for each in the table of splits.
        settings: name → JSON value: all but the event files that decides the corpus (configuration, code map, splits,
            program).
    """

    meds_root: str
    shards: tuple[Shard, ...]
    split_names: tuple[str, ...]
    settings: Mapping[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """Digest of the whole job."""
        return key("job", [dataclasses.astuple(shard) for shard in self.shards], self.settings_key)

    @functools.cached_property
    def settings_key(self) -> str:
        """Digest of the settings."""
        return key("settings", self.split_names, dict(self.settings))

    def path(self, index: int) -> pathlib.Path:
        """The index-th input file."""
        return pathlib.Path(self.meds_root) / self.shards[index].file

    def counted_key(self, index: int, excluded: str) -> str:
        """Key of the counts of a shard, without the subjects of the list `excluded` (its key, or "")."""
        return key("counted", self.settings_key, dataclasses.astuple(self.shards[index]), excluded)

    def tokenized_key(self, index: int, excluded: str, vocabulary_fingerprint: str) -> str:
        """Key of the tokens of a shard; its number is part of the names of the files that hold them."""
        return key("tokenized", self.counted_key(index, excluded), index, vocabulary_fingerprint)

    def to_json(self) -> str:
        """The text of job.json."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "BuildJob":
        """Inverse of `to_json`; raises ValueError for any other text."""
        try:
            content = json.loads(text)
            shards = tuple(Shard(**shard) for shard in content["shards"])
            return cls(content["meds_root"], shards, tuple(content["split_names"]), content["settings"])
        except (KeyError, TypeError) as error:
            raise ValueError("no build job") from error

    def check_unchanged(self, index: int) -> None:
        """Raise a UserError if an input file is not what it was when the build began."""
        path = self.path(index)
        if Shard.of(pathlib.Path(self.meds_root), path) != self.shards[index]:
            raise UserError("changed while it was being read", where=str(path), fix="start the build again")


def describe(
    dataset: meds.MedsDataset, settings: Mapping[str, Any], split_names: Sequence[str], splits_key: str
) -> BuildJob:
    """The job of building `dataset` under `settings`."""
    shards = tuple(Shard.of(dataset.root, path) for path in dataset.shards)
    whole = {**settings, "the subjects' splits": splits_key, "the program": program_key()}
    # As JSON has them: tuples are lists there.
    return BuildJob(str(dataset.root), shards, tuple(split_names), json.loads(json.dumps(whole)))


def key(*parts: Any) -> str:
    """A digest of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def array_key(*arrays: np.ndarray) -> str:
    """A digest of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


@functools.cache
def program_key() -> str:
    """Digest of this package's code and of the versions of what it computes with."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    return digest.hexdigest()[:32]
