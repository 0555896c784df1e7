"""Is every file of a corpus what was written? Each is hashed anew and compared with the manifest's checksum."""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib

from tqdm import tqdm

from data_pipeline.corpus import MANIFEST, Corpus, manifest_checksums
from data_pipeline.locations import files_below
from data_pipeline.progress_bar import progress_bar

_CHUNK_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True)
class Fault:
    """A file that is not as it should be: its path within the corpus, and what is wrong with it."""

    file: str
    what: str


def verify(corpus: Corpus, *, threads: int | None = None) -> list[Fault]:
    """The files that are damaged, missing or not of the corpus, by path; empty if all is well.

    The manifest itself was checked when the corpus was opened. Reads every byte, in `threads` (default: one per core;
    hashing leaves the interpreter free), with a progress bar.
    """
    expected = checksums(corpus)
    # Links are looked at as what they stand for; one to nowhere is no file of a corpus, and is named as a stranger.
    there = {path.relative_to(corpus.root).as_posix() for path in files_below(corpus.root)}
    faults = [Fault(file, "not a file of this corpus") for file in there - expected.keys() - {MANIFEST}]
    # A link to nowhere is not there.
    present = sorted(file for file in expected.keys() & there if (corpus.root / file).exists())
    faults += [Fault(file, "missing") for file in expected.keys() - set(present)]
    total = sum((corpus.root / file).stat().st_size for file in present)
    with (
        progress_bar(total=total, desc="verifying", unit="B", unit_scale=True) as bar,
        concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool,
    ):
        checks = {pool.submit(_check, corpus.root / file, expected[file], bar): file for file in present}
        for check in concurrent.futures.as_completed(checks):
            if check.result():
                faults.append(Fault(checks[check], check.result()))
    return sorted(faults, key=lambda fault: fault.file)


def checksums(corpus: Corpus) -> dict[str, str]:
    """Path within the corpus → SHA-256, of every file but the manifest."""
    return manifest_checksums(corpus.manifest)


def _check(path: pathlib.Path, sha256: str, bar: tqdm) -> str:
    """What is wrong with a file; empty if nothing is."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                bar.update(len(chunk))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if digest.hexdigest() == sha256 else "damaged: not what its checksum says"
