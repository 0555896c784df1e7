"""Corpora in object stores (`gs://bucket/corpus`, `s3://bucket/corpus`): fetched once to the host's cache.

ArrayRecord reads files of the file system only. fsspec, with s3fs or gcsfs (`pip install -e '.[remote]'`), fetches:

<cache>/corpora/<fingerprint>/   a copy of the corpus

Every file is checked against corpus.json's checksums as it arrives; corpus.json itself is written last, under the
corpus's fingerprint. A fetch that was interrupted goes on where it stopped; processes of one host wait for each other.
Where a host's disk cannot hold the corpus, mount the bucket (gcsfuse, mountpoint-s3) and give the folder.
"""

import fcntl
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

from data_pipeline import cache
from data_pipeline import corpus as corpora
from data_pipeline.corpus import MANIFEST
from data_pipeline.errors import UserError

FOLDER = "corpora"
_BLOCK_BYTES = 1 << 24


def local_copy(url: str) -> pathlib.Path:
    """The folder that holds a copy of the corpus at `url`, fetched unless it is there already.

    Raises:
        UserError: no corpus there, no access, a library missing, a file that is not what corpus.json says, a full disk.
    """
    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise UserError(str(error), where=url, fix="gs:// and s3:// want pip install -e '.[remote]'") from error
    content = b"".join(_blocks(files, root, MANIFEST, url))
    manifest = corpora.decode_manifest(content, f"{url}/{MANIFEST}")
    target = cache.folder(FOLDER) / corpora.fingerprint(manifest["vocabulary_fingerprint"], manifest["splits"])
    with cache.refusing_unusable(target):
        target.mkdir(exist_ok=True)
        with target.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (target / MANIFEST).is_file() and (target / MANIFEST).read_bytes() == content:
                return target
            for name, sha256 in corpora.manifest_checksums(manifest).items():
                _fetch(files, url, root, target, name, sha256)
            (target / f"{MANIFEST}.tmp").write_bytes(content)
            (target / f"{MANIFEST}.tmp").rename(target / MANIFEST)
    return target


def _fetch(files: Any, url: str, root: str, target: pathlib.Path, name: str, sha256: str) -> None:
    if pathlib.PurePosixPath(name).is_absolute() or ".." in pathlib.PurePosixPath(name).parts:
        raise UserError(f"names {name!r}, outside the corpus", where=f"{url}/{MANIFEST}", fix="rebuild the corpus")
    path = target / name
    if path.is_file():  # whole, for it was renamed; of this corpus, for the folder is named by the fingerprint
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    digest = hashlib.sha256()
    with temporary.open("wb") as out:
        for block in _blocks(files, root, name, url):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != sha256:
        temporary.unlink()
        raise UserError("is not what corpus.json says (SHA-256)", where=f"{url}/{name}", fix="upload the corpus anew")
    temporary.rename(path)


def _blocks(files: Any, root: str, name: str, url: str) -> Iterator[bytes]:
    """A remote file's content."""
    try:
        with files.open(f"{root}/{name}", "rb") as source:
            while block := source.read(_BLOCK_BYTES):
                yield block
    # Each store's library has errors of its own, with no common base.
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)
        raise UserError(
            "not found" if missing else f"cannot be read ({type(error).__name__}: {error})",
            where=f"{url}/{name}",
            fix="give the URL of a finished corpus" if missing else "check the address, the network and credentials",
        ) from error
