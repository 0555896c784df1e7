"""Corpora in object stores: fetched once, checked, taken up where a fetch stopped; refused where only a folder does.

fsspec's own in-memory store stands for a bucket; one test reads from a real S3 server on loopback, where moto is
installed.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import fsspec
import pytest

from data_pipeline import locations, mixture, remote
from data_pipeline.corpus import Corpus, encode_manifest
from data_pipeline.errors import UserError

URL = "memory://bucket/corpus"


@pytest.fixture
def bucket(world_corpus, tmp_path, monkeypatch):
    """A store that holds the corpus at URL; a cache of its own."""
    monkeypatch.setenv("COMETJAX_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.put(str(world_corpus), "/bucket/corpus", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_remote_corpus_is_copied_whole(bucket, world_corpus, tmp_path):
    corpus = mixture.open_corpus(URL)
    assert corpus.root.is_relative_to(tmp_path / "cache")
    assert contents(corpus.root) == contents(world_corpus)
    assert corpus.fingerprint == Corpus.open(world_corpus).fingerprint


def test_the_next_start_reads_only_the_manifest(bucket, monkeypatch):
    first = remote.local_copy(URL)
    opened = []
    opens = bucket.open
    monkeypatch.setattr(type(bucket), "open", lambda self, path, *a, **k: opened.append(path) or opens(path, *a, **k))
    assert remote.local_copy(URL + "/") == first
    assert [pathlib.PurePosixPath(path).name for path in opened] == ["corpus.json"]


def test_an_interrupted_fetch_goes_on(bucket, monkeypatch, world_corpus):
    blocks = remote._blocks
    fetched = []

    def failing(files, root, name, url):
        if len(fetched) == 4:
            raise KeyboardInterrupt
        fetched.append(name)
        yield from blocks(files, root, name, url)

    monkeypatch.setattr(remote, "_blocks", failing)
    with pytest.raises(KeyboardInterrupt):
        remote.local_copy(URL)
    before, fetched = fetched, []
    monkeypatch.setattr(remote, "_blocks", lambda *a: fetched.append(a[2]) or blocks(*a))
    assert contents(remote.local_copy(URL)) == contents(world_corpus)
    assert set(before) & set(fetched) == {"corpus.json"}


def test_a_shard_that_is_not_what_the_manifest_says_is_refused_by_name(bucket, world_corpus):
    shard = Corpus.open(world_corpus).manifest["splits"]["train"]["shards"][0]["file"]
    content = bytearray(bucket.cat(f"/bucket/corpus/{shard}"))
    content[len(content) // 2] ^= 1
    bucket.pipe(f"/bucket/corpus/{shard}", bytes(content))
    with pytest.raises(UserError, match=rf"{URL}/{shard}: is not what corpus.json says"):
        remote.local_copy(URL)


def test_no_corpus_an_unfinished_one_and_an_unknown_store_are_told(bucket):
    with pytest.raises(UserError, match=r"memory://bucket/none/corpus.json: not found; give the URL of a finished"):
        mixture.open_corpus("memory://bucket/none")
    bucket.pipe("/bucket/corpus/corpus.json", b"{")
    with pytest.raises(UserError, match="not a readable manifest"):
        mixture.open_corpus(URL)
    with pytest.raises(UserError, match=r"nostore://x: .*; gs:// and s3:// want pip install"):
        mixture.open_corpus("nostore://x")


def test_a_manifest_cannot_write_outside_the_cache(bucket, world_corpus):
    manifest = json.loads((world_corpus / "corpus.json").read_text())
    manifest["splits"]["train"]["shards"][0]["file"] = "../../evil"
    del manifest["sha256"]
    bucket.pipe("/bucket/corpus/corpus.json", encode_manifest(manifest))
    with pytest.raises(UserError, match="outside the corpus"):
        remote.local_copy(URL)


def test_a_mixture_may_name_stores(bucket, world_corpus):
    with pytest.raises(UserError, match="the same corpus twice"):
        mixture.open_corpus(f"{URL}=0.5,{world_corpus}=0.5")
    assert mixture.is_there(f"{URL}=0.5,{world_corpus}=0.5")


@pytest.mark.parametrize("path", ["s3://bucket/x", "gs://bucket/x", pathlib.Path("s3://bucket/x"), "memory://x"])
def test_where_only_a_folder_will_do_a_url_is_refused(path):
    with pytest.raises(UserError, match=r"--out .*: object stores are not .*; mount the bucket"):
        locations.require_local(path, "--out")


@pytest.mark.parametrize("path", ["runs/a", "/data/s3/x", "C:\\x", pathlib.Path("gs/b"), "a:b"])
def test_folders_are_folders(path):
    locations.require_local(path, "--out")


@pytest.mark.parametrize(
    "command",
    [
        ["data_pipeline.build", "--meds=s3://b/meds", "--out=x"],
        ["data_pipeline.build", "--meds=.", "--out=gs://b/corpus"],
        ["data_pipeline.show", "--corpus=s3://b/corpus"],
    ],
)
def test_commands_refuse_urls_in_one_line_and_make_no_folder(command, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "mount the bucket" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def s3_server():
    reason = "SKIPPED FOR LACK OF A LIBRARY: pip install s3fs 'moto[server]' to read from an S3 server on loopback"
    pytest.importorskip("s3fs", reason=reason)
    pytest.importorskip("moto", reason=reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_a_corpus_is_fetched_from_an_s3_server(s3_server, world_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("COMETJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "none")
    files = fsspec.filesystem("s3")
    files.mkdir("bucket")
    files.put(str(world_corpus), "bucket/corpus", recursive=True)
    assert contents(mixture.open_corpus("s3://bucket/corpus").root) == contents(world_corpus)
    with pytest.raises(UserError, match=r"s3://bucket/none/corpus.json: not found"):
        mixture.open_corpus("s3://bucket/none")
    with pytest.raises(UserError, match=r"s3://nobucket/c/corpus.json: "):
        mixture.open_corpus("s3://nobucket/c")
