"""Checkpoints as folders: their names, their checksums, which are kept, and what becomes of the rest.

checkpoints/
  120/              a whole checkpoint; its checksums.json was written before it got this name
  130.partial*      being written, or what a kill left of that
  90.deleted        being deleted, or what a kill left of that
  110.damaged       set aside: a file was missing, truncated or altered

Orbax's formats read altered bytes without a word, so every file's SHA-256 is kept and checked.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

FOLDER = "checkpoints"
CHECKSUMS = "checksums.json"
_PARTIAL, _DELETED, _DAMAGED = ".partial", ".deleted", ".damaged"
# SHA-256 lets go of the interpreter's lock; more threads than this only take cores from the training loop.
_HASH_THREADS = 8


class TuningLoss(NamedTuple):
    """An evaluation's `loss`, nats per token, and the number of target `tokens` that it is the mean of."""

    loss: float
    tokens: int


@dataclasses.dataclass(frozen=True)
class KeepPolicy:
    """Which checkpoints stay: the `latest` newest, those of steps divisible by `every`, the `best` by tuning loss.

    0 turns `every` and `best` off. Losses are compared only where they are of as many tokens, and so of the same: the
    best of the evaluations on some batches stay beside the best of those on the whole split. A step without a finite
    tuning loss is never among the best.
    """

    latest: int
    every: int = 0
    best: int = 0

    def kept(self, steps: Iterable[int], tuning_losses: Mapping[int, TuningLoss]) -> set[int]:
        """The steps that stay."""
        ordered = sorted(steps)
        best = {step for group in ranked(ordered, tuning_losses).values() for step in group[: self.best]}
        permanent = {step for step in ordered if self.every and step % self.every == 0}
        return {*ordered[-self.latest :]} | best | permanent


def ranked(steps: Iterable[int], tuning_losses: Mapping[int, TuningLoss]) -> dict[int, list[int]]:
    """By the number of tokens that a tuning loss is of: the steps that have such a one, finite, the lowest first."""
    groups: dict[int, list[tuple[float, int]]] = {}
    for step in steps:
        if step in tuning_losses and math.isfinite(tuning_losses[step].loss):
            groups.setdefault(tuning_losses[step].tokens, []).append((tuning_losses[step].loss, step))
    return {tokens: [step for _, step in sorted(group)] for tokens, group in groups.items()}


def whole_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the whole checkpoints, ascending; empty where there is no folder."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())


def damaged(folder: pathlib.Path) -> list[str]:
    """Names of the checkpoints that were set aside."""
    return sorted(path.name for path in folder.glob(f"*{_DAMAGED}*"))


def partial_path(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Where the checkpoint of `step` is written until it is whole."""
    return folder / f"{step}{_PARTIAL}"


def commit(folder: pathlib.Path, step: int) -> None:
    """Give a written checkpoint its checksums, and then its name. Raises OSError."""
    partial = partial_path(folder, step)
    names = _files(partial)
    sums = _each(_sync_and_hash, [partial / name for name in names])
    files = {name: {"bytes": size, "sha256": sha256} for name, (size, sha256) in zip(names, sums, strict=True)}
    with (partial / CHECKSUMS).open("w") as file:
        json.dump({"sha256_of_files": _hash_json(files), "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / str(step))
    _sync_folder(folder)


def problem(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint, naming the file: missing, truncated, altered. None when it is as written."""
    try:
        content = json.loads((checkpoint / CHECKSUMS).read_text())
        if _hash_json(content["files"]) != content["sha256_of_files"]:
            return f"{CHECKSUMS} was altered: its SHA-256 is not the one that it was written with"
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read ({type(error).__name__})"
    for name, (size, _) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, and was written with {size}"
    for name, found in zip(expected, _each(_hash, [checkpoint / name for name in expected]), strict=True):
        if found != expected[name]:
            return f"{name} was altered: its SHA-256 is not the one that it was written with"
    return None


def set_aside(checkpoint: pathlib.Path) -> pathlib.Path:
    """Rename a damaged checkpoint so that it is no longer one, and return where it lies now."""
    place = checkpoint.with_name(checkpoint.name + _DAMAGED)
    number = 1
    while place.exists():
        number += 1
        place = checkpoint.with_name(f"{checkpoint.name}{_DAMAGED}-{number}")
    checkpoint.rename(place)
    return place


def delete(checkpoint: pathlib.Path) -> None:
    """Delete a checkpoint; killed half way, it is none of the whole ones."""
    doomed = checkpoint.with_name(checkpoint.name + _DELETED)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: pathlib.Path) -> list[str]:
    """Remove what kills and failed saves left half written or half deleted; returns the names of the former.

    Of a failed save some threads may still be writing, and then something stays until the next call.
    """
    partial = sorted(folder.glob(f"*{_PARTIAL}*"))
    for path in [*partial, *folder.glob(f"*{_DELETED}")]:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in partial]


def _files(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _each(function: Callable[[pathlib.Path], tuple[int, str]], paths: list[pathlib.Path]) -> list[tuple[int, str]]:
    with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as pool:
        return list(pool.map(function, paths))


def _hash_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(path: pathlib.Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _sync_and_hash(path: pathlib.Path) -> tuple[int, str]:
    # Not all writers wait for the disk: after a power cut, no whole checkpoint may hold an empty file.
    with path.open("rb") as file:
        os.fsync(file.fileno())
    _sync_folder(path.parent)
    return _hash(path)


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
