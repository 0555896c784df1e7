"""Compiled programs are kept from start to start; nothing in the cache can break a run or change a bit of it."""

import os
import subprocess
import sys
import time
import zlib

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cometjax import compile_cache
from cometjax.train import train
from data_pipeline.cache import VARIABLE
from tests.cometjax.tiny_run import CONFIG, ONE_DEVICE, command, config_of, losses, write_corpus

STEPS = 6
OVERRIDES = [f"--config.train.{key}" for key in (f"steps={STEPS}", "eval_every=3", "checkpoint_every=3")]
CACHE_VARIABLES = ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR")


@pytest.fixture(scope="module", autouse=True)
def nothing_kept():
    """This process compiles for itself here: it neither reads nor keeps what the tests share."""
    shared = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", shared)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_corpus(folder / "corpus")
    (folder / "config.py").write_text(CONFIG)
    return folder


def run(folder, name):
    """A run of six steps in a process of its own, with what it said."""
    kept = {key: value for key, value in os.environ.items() if key not in CACHE_VARIABLES}
    kept |= ONE_DEVICE | {VARIABLE: str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        command(folder, folder / name, *OVERRIDES), env=kept, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def entries(folder):
    return {path.name: path for path in (folder / "cache" / "compiled").glob("*/*-cache")}


@pytest.fixture(scope="module")
def cold(folder):
    """The run that filled the cache."""
    run(folder, "cold")
    return folder


def test_a_second_start_compiles_nothing_and_its_losses_are_the_same_bits(cold):
    before = {name: path.stat().st_mtime_ns for name, path in entries(cold).items()}
    assert any("train_step" in name for name in before)
    run(cold, "warm")
    assert {name: path.stat().st_mtime_ns for name, path in entries(cold).items()} == before
    assert jax.config.jax_compilation_cache_dir is None
    train(config_of(cold, steps=STEPS, eval_every=3, checkpoint_every=3), cold / "without", progress=False)
    assert losses(cold / "warm") == losses(cold / "cold") == losses(cold / "without")


def test_a_damaged_entry_is_told_and_compiled_anew(cold):
    (step,) = [path for name, path in entries(cold).items() if "train_step" in name]
    whole = step.read_bytes()
    step.write_bytes(whole[: len(whole) // 2])
    assert "Error reading persistent compilation cache entry" in run(cold, "damaged")
    assert losses(cold / "damaged") == losses(cold / "cold")
    # At a later start it is found, and makes room for a whole one.
    long_ago = time.time() - 300
    os.utime(step, (long_ago, long_ago))
    os.utime(step.parent / "checked", (long_ago - 1, long_ago - 1))
    compile_cache.tidy(step.parent)
    assert not step.exists()


def test_it_is_off_where_jax_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        compile_cache.turn_on()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not (tmp_path / "cache").exists()


def test_an_entry_cut_short_is_removed_once_it_has_settled_and_whole_or_foreign_ones_stay(tmp_path):
    content = {
        "whole-cache": zlib.compress(b"program" * 100),
        "cut-cache": zlib.compress(os.urandom(1000))[:-7],
        "zeros-cache": b"",
        "foreign-cache": b"\x28\xb5\x2f\xfdwhatever",
        "being_written-cache": zlib.compress(os.urandom(1000))[:500],
        "unused-cache": zlib.compress(b"old"),
    }
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    ages = {"being_written-cache": 1, "unused-cache": 91 * 86_400}
    for name in content:
        then = time.time() - ages.get(name, 600)
        os.utime(tmp_path / name, (then, then))
    compile_cache.tidy(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"whole-cache", "foreign-cache", "being_written-cache", "checked"}
    # Looked into once it can be whole.
    then = time.time() - compile_cache._SETTLED_SECONDS / 2
    os.utime(tmp_path / "being_written-cache", (then, then))
    os.utime(tmp_path / "checked", (then - 1, then - 1))
    compile_cache.tidy(tmp_path)
    assert (tmp_path / "being_written-cache").exists()


def test_a_cache_that_cannot_be_written_is_told_and_nothing_else(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    assert jax.config.jax_compilation_cache_dir is None
    compile_cache.turn_on()
    assert jax.config.jax_compilation_cache_dir is None
    assert "compiled programs are not kept: cache folder" in caplog.text


def test_processes_that_start_at_once_share_the_cache(folder):
    environment = os.environ | {VARIABLE: str(folder / "shared"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    program = (
        "from cometjax import compile_cache; compile_cache.turn_on()\n"
        "import jax, jax.numpy as jnp\n"
        "x = jnp.arange(64.0).reshape(8, 8)\n"
        "print(float(jax.jit(lambda x: jnp.linalg.det(x @ x.T + jnp.eye(8)))(x)))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {process.communicate(timeout=200)[0] for process in processes}
    assert len(answers) == 1 and all(process.returncode == 0 for process in processes)
