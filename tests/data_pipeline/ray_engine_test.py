"""--engine=ray: on a real cluster of two nodes, on loopback, the corpus is that of the local engine, byte for byte."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import time

import pytest

from data_pipeline import build_config
from data_pipeline.build import build_corpus
from data_pipeline.world import write_world

WANTS_RAY = "SKIPPED FOR LACK OF A LIBRARY: pip install -e '.[ray]' to build on a Ray cluster"
# Ray takes a loopback address for the machine's own, except where it is told that there are no other machines.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cluster():
    if not importlib.util.find_spec("ray"):
        pytest.skip(WANTS_RAY)
    before = {name: os.environ.get(name) for name in LOOPBACK}
    os.environ.update(LOOPBACK)  # before it is imported
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=node)
    yield running
    running.shutdown()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def meds_root(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("ray") / "meds"
    write_world(root, patients=400, seed=3, shards=24)
    return root


@pytest.fixture(scope="module")
def expected(meds_root) -> dict[str, bytes]:
    config = build_config.get_config()
    config.update(code_map="world", min_subjects_per_code=3, min_values_per_code=20)
    return content_of(build_corpus(meds_root, meds_root.parent / "local", config, workers=1).root)


def content_of(root: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def start(meds_root: pathlib.Path, out: pathlib.Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    flags = [f"--meds={meds_root}", f"--out={out}", "--config.code_map=world", "--config.min_subjects_per_code=3"]
    flags += ["--config.min_values_per_code=20", "--engine=ray", *args]
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipeline.build", *flags],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | LOOPBACK | environment,
    )


@pytest.mark.slow
def test_a_node_is_killed_half_way_and_the_corpus_is_that_of_the_local_engine(
    cluster, meds_root, expected, tmp_path
) -> None:
    out = tmp_path / "corpus"
    second = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    run = start(meds_root, out, f"--ray_address={cluster.address}")
    end = time.monotonic() + 200
    while len(list((tmp_path / "corpus.partial" / "counted").glob("*.zip"))) < 12:
        assert time.monotonic() < end and run.poll() is None, run.stderr.read()
        time.sleep(0.01)
    cluster.remove_node(second, allow_graceful=False)
    _, errors = run.communicate(timeout=250)
    assert run.returncode == 0, errors
    assert content_of(out) == expected
    assert sorted(os.listdir(tmp_path)) == ["corpus"]


@pytest.mark.slow
def test_a_mistake_that_a_node_finds_is_one_line_here(cluster, meds_root, tmp_path) -> None:
    bad = sorted(meds_root.glob("data/*/*.parquet"))[3]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-20])
    try:
        _, errors = start(meds_root, tmp_path / "corpus", RAY_ADDRESS=cluster.address).communicate(timeout=250)
    finally:
        bad.write_bytes(whole)
    assert errors.startswith(f"error: {bad}: not a readable parquet file") and errors.count("\n") == 1


def test_without_ray_the_extra_is_named(meds_root, tmp_path, monkeypatch) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError")
    # Of an interrupted build of something else, which one that can start would clear.
    (tmp_path / "corpus.partial").mkdir()
    (tmp_path / "corpus.partial" / "job.json").write_text("{}")
    run = start(meds_root, tmp_path / "corpus", PYTHONPATH=str(tmp_path))
    _, errors = run.communicate()
    assert run.returncode == 2
    assert errors == ("error: --engine=ray: Ray is not installed; pip install -e '.[ray]', or use --engine=local\n")
    assert [path.name for path in tmp_path.glob("corpus*/*")] == ["job.json"]
