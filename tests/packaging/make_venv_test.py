"""`make setup`: one line says why it cannot install; no stamp without a whole install; no work when nothing changed."""

import os
import pathlib
import subprocess
import sys

import pytest

import make_venv

ROOT = pathlib.Path(__file__).parents[2]
FILES = ("Makefile", "make_venv.py", "setup.cfg", "pyproject.toml")


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkout whose lock file pins nothing, so that an install needs no network."""
    for name in FILES:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "requirements.lock").write_text("")
    return tmp_path


def _interpreter(path: pathlib.Path, version: str = "{real}", ensurepip: bool = True) -> pathlib.Path:
    """An interpreter that claims another version, or to lack ensurepip as Debian's does."""
    facts = f'{{"version": {version}, "path": "{path}", "can_make_venv": {str(ensurepip).lower()}}}'
    real = facts.replace("{real}", str(list(sys.version_info[:2])))
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"""#!/bin/sh
case "$2" in *ensurepip*) echo '{real}';; *) exec '{sys.executable}' "$@";; esac
""")
    path.chmod(0o755)
    return path


def _make_venv(checkout: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "make_venv.py", ".venv", "requirements.lock", *arguments],
        cwd=checkout,
        env={**os.environ, "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("version", ["[3, 10]", "[3, 13]", "[2, 7]"])
def test_an_unsupported_python_is_refused_in_one_line(checkout: pathlib.Path, version: str) -> None:
    python = _interpreter(checkout / "bin" / "python3", version)
    # As typed by hand, whatever flags the make that runs these tests was given.
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "setup", f"PYTHON={python}"]
    result = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)
    complaint, of_make = result.stderr.splitlines()
    assert complaint.startswith(f"cometjax needs Python 3.11 or 3.12, found {'.'.join(version[1:-1].split(', '))}")
    assert "make setup PYTHON=" in complaint and of_make.startswith("make")
    assert result.returncode == 2 and not (checkout / ".venv").exists()


def test_a_python_without_ensurepip_names_the_package_to_install(checkout: pathlib.Path) -> None:
    result = _make_venv(checkout, "--python", str(_interpreter(checkout / "bin" / "python3", ensurepip=False)))
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in result.stderr


def test_a_failed_install_is_tried_again_and_a_whole_one_is_not(checkout: pathlib.Path) -> None:
    stamp = checkout / ".venv" / "installed"
    (checkout / "requirements.lock").write_text("a-package-that-is-nowhere==1.0\n")
    failed = _make_venv(checkout, "--python", sys.executable)
    assert failed.returncode == 2 and "install failed" in failed.stderr and not stamp.exists()

    (checkout / "requirements.lock").write_text("")
    installed = _make_venv(checkout)
    assert installed.returncode == 0 and stamp.exists(), installed.stderr
    assert "ready" in installed.stdout

    again = _make_venv(checkout)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    same_python = _make_venv(checkout, "--python", sys.executable)
    assert (same_python.returncode, same_python.stdout) == (0, "")

    changed = stamp.stat().st_mtime + 1
    os.utime(checkout / "setup.cfg", (changed, changed))
    assert "ready" in _make_venv(checkout).stdout


def test_another_python_than_the_environment_has_makes_it_anew(checkout: pathlib.Path) -> None:
    assert _make_venv(checkout, "--python", sys.executable).returncode == 0
    other = "[3, 11]" if sys.version_info[:2] == (3, 12) else "[3, 12]"
    # The make-believe interpreter makes an environment of the real version: what counts is that one was made.
    remade = _make_venv(checkout, "--python", str(_interpreter(checkout / "bin" / "python3", other)))
    assert remade.returncode == 0 and f"Python {'.'.join(other[1:-1].split(', '))}" in remade.stdout


def test_another_checkouts_environment_is_refused_and_left_alone(checkout: pathlib.Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    about = other / ".venv" / "lib" / "python3.11" / "site-packages" / "cometjax-0.1.dist-info" / "direct_url.json"
    about.parent.mkdir(parents=True)
    about.write_text(f'{{"url": "{other.as_uri()}", "dir_info": {{"editable": true}}}}')
    (other / ".venv" / "installed").touch()
    (checkout / ".venv").symlink_to(other / ".venv")
    result = _make_venv(checkout)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"the environment of another checkout, {other}; remove .venv here (a link: rm .venv)" in result.stderr
    assert sorted(path.name for path in (other / ".venv").iterdir()) == ["installed", "lib"]
    about.write_text('{"url": "file:///no/such/place"}')  # this one, before it was moved
    make_venv._refuse_foreign(str(checkout / ".venv"))
