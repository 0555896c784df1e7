"""Make or refresh a virtual environment from a lock file; the Makefile's way to install.

    python3 make_venv.py .venv requirements.lock [--editable] [--python /path/to/python3.12]

Runs on any Python from 3.6 on, so that an old one is told what is needed. The newest supported interpreter that really
runs is used. A file `installed` in the environment says that it is whole: removed first, written last.
"""

import argparse
import configparser
import contextlib
import fcntl
import glob
import json
import os
import re
import subprocess
import sys
import time
import urllib.request

ROOT = os.path.dirname(os.path.abspath(__file__))
# Without these files, or older than them, an environment is out of date; the lock file comes on top.
DESCRIPTIONS = ("setup.cfg", "pyproject.toml")
# Runs on any Python, 2 included. Debian ships `venv` without `ensurepip`, and an environment without pip is no use.
PROBE = """
import json, sys
try:
    import ensurepip, venv
    can_make_venv = True
except ImportError:
    can_make_venv = False
path = getattr(sys, "_base_executable", None) or sys.executable
print(json.dumps({"version": list(sys.version_info[:2]), "path": path, "can_make_venv": can_make_venv}))
"""


def main() -> None:
    """Bring the environment up to date, or exit with 2 and one line that says what to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv")
    parser.add_argument("lock")
    parser.add_argument("--editable", action="store_true", help="install the project itself too, from its sources")
    parser.add_argument("--python", default="", help="interpreter to use; default: the newest supported one")
    options = parser.parse_args()
    with _one_at_a_time(options.lock):
        _refuse_foreign(options.venv)
        if not _is_current(options):
            _install(options)


def _refuse_foreign(venv):
    """Another checkout's environment: what runs in it is the other's code, and an install would change that."""
    for found in glob.glob(
        os.path.join(venv, "lib", "python*", "site-packages", "cometjax-*.dist-info", "direct_url.json")
    ):
        with open(found) as file:
            url = json.load(file)["url"]
        root = urllib.request.url2pathname(url[len("file://") :]) if url.startswith("file://") else url
        # A root that is gone is this one's of before it was moved.
        if os.path.exists(root) and os.path.realpath(root) != os.path.realpath(ROOT):
            _fail(
                "{venv} is the environment of another checkout, {root}; remove {venv} here ({how}) and run make again",
                venv=venv,
                root=root,
                how="a link: rm {}".format(venv) if os.path.islink(venv) else "rm -r {}".format(venv),
            )


def _install(options):
    started = time.time()
    stamp = os.path.join(options.venv, "installed")
    if os.path.exists(stamp):
        os.remove(stamp)
    python = _python_of(options.venv)
    have = _probe(python)
    chosen = None if have and _is_supported(have) and not options.python else _choose(options.python)
    if chosen and not (have and have["version"] == chosen["version"]):
        _say("{}: Python {} ({})".format(options.venv, _dotted(chosen["version"]), chosen["path"]))
        _run([chosen["path"], "-m", "venv", "--clear", options.venv])
    with open(options.lock) as lines:
        count = sum(1 for line in lines if "==" in line)
    _say("{}: installing {} pinned packages, about a minute".format(options.venv, count))
    pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    _run([*pip, "--requirement", options.lock])
    if options.editable:
        _run([*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT])
    open(stamp, "w").close()
    _say("{}: ready after {:.0f} s".format(options.venv, time.time() - started))


def _choose(asked):
    """The first interpreter that runs, has a supported version and can make environments; what `_probe` says of it."""
    low, high = _supported()
    newest_first = ["python{}.{}".format(low[0], minor) for minor in range(high[1] - 1, low[1] - 1, -1)]
    found = [facts for facts in map(_probe, [asked] if asked else [*newest_first, "python3"]) if facts]
    supported = [facts for facts in found if _is_supported(facts)]
    for facts in supported:
        if facts["can_make_venv"]:
            return facts
    if supported:
        _fail(
            "Python {v} ({path}) cannot make virtual environments; install its venv package"
            " (Debian, Ubuntu: apt-get install python{v}-venv), then run make again",
            v=_dotted(supported[0]["version"]),
            path=supported[0]["path"],
        )
    _fail(
        "cometjax needs Python {wanted}, found {found}; install one (Debian 12: apt-get install python3 python3-venv;"
        " Ubuntu 24.04 the same) or name one: make setup PYTHON=/path/to/python",
        wanted=" or ".join("{}.{}".format(low[0], minor) for minor in range(low[1], high[1])),
        found=", ".join("{} ({})".format(_dotted(facts["version"]), facts["path"]) for facts in found)
        or "that {} does not run".format(asked or "python3"),
    )


def _probe(interpreter):
    # A pyenv shim is on the PATH for every version, and fails for those that are not active: only running it tells.
    try:
        output = subprocess.check_output([interpreter, "-c", PROBE], stderr=subprocess.DEVNULL)
        return json.loads(output.decode())
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _supported():
    """Lowest supported (major, minor) and the first that is not, as setup.cfg says."""
    config = configparser.ConfigParser()
    config.read(os.path.join(ROOT, "setup.cfg"))
    requires = config["options"]["python_requires"]
    bounds = re.match(r">=(\d+)\.(\d+),<(\d+)\.(\d+)$", requires)
    if not bounds:
        _fail("setup.cfg: python_requires = {requires} is not of the form >=3.X,<3.Y", requires=requires)
    numbers = [int(number) for number in bounds.groups()]
    return tuple(numbers[:2]), tuple(numbers[2:])


def _is_supported(facts):
    low, high = _supported()
    return low <= tuple(facts["version"]) < high


def _is_current(options):
    stamp = os.path.join(options.venv, "installed")
    sources = [options.lock, *[os.path.join(ROOT, name) for name in DESCRIPTIONS]]
    if not os.path.exists(stamp) or any(os.path.getmtime(stamp) < os.path.getmtime(path) for path in sources):
        return False
    if not options.python:
        return True
    return _choose(options.python)["version"] == (_probe(_python_of(options.venv)) or {}).get("version")


def _python_of(venv):
    return os.path.join(venv, "bin", "python")


@contextlib.contextmanager
def _one_at_a_time(path):
    # Opened for appending, and nothing appended: a lock over NFS wants a file that is open for writing.
    with open(path, "a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another make that is installing")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _run(command):
    if subprocess.call(command) != 0:
        _fail("install failed: {command}", command=" ".join(command))


def _dotted(version):
    return ".".join(map(str, version))


def _say(line):
    print(line, flush=True)


def _fail(message, **facts):
    print(message.format(**facts), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
