"""A start is recorded where something is other than at the one before, and only cometjax's own commit is told."""

import importlib.metadata
import json
import platform
import shutil
import subprocess

import pytest

from cometjax import environment


def test_a_start_is_recorded_where_its_surroundings_are_not_those_before(tmp_path, monkeypatch):
    def starts():
        return json.loads((tmp_path / "environment.json").read_text())["starts"]

    environment.record(tmp_path, 0)
    environment.record(tmp_path, 40)
    (first,) = starts()
    assert first["step"] == 0 and first["python"] == platform.python_version()
    assert first["packages"]["jax"] == importlib.metadata.version("jax") and "optax" in first["packages"]
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    environment.record(tmp_path, 80)
    assert starts() == [first, first | {"step": 80, "python": "3.99.0"}]


def test_the_commit_is_of_the_packages_own_checkout_and_says_whether_files_were_changed(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("SKIPPED FOR LACK OF TOOLS: no git")

    def git(*arguments):
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    own, installed = tmp_path / "cometjax", tmp_path / ".venv" / "site-packages" / "cometjax"
    for package in (own, installed):
        package.mkdir(parents=True)
        (package / "environment.py").write_text("")
    git("init", "--quiet")
    git("add", "cometjax")
    git("commit", "--quiet", "--message=one")
    monkeypatch.setattr(environment, "__file__", str(own / "environment.py"))
    assert environment.describe()["commit"] == git("rev-parse", "HEAD")
    (own / "environment.py").write_text("changed")
    assert environment.describe()["commit"] == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setattr(environment, "__file__", str(installed / "environment.py"))
    assert environment.describe()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert environment.describe()["commit"] is None
