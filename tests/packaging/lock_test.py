"""What an install brings: the lock files keep to setup.cfg, and torch stays out of the core."""

import configparser
import pathlib
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[2]
LOCKS = {
    "requirements.lock": ("install_requires", "build", "test", "evaluation", "lint"),
    "requirements-parity.lock": ("install_requires", "build", "test", "parity"),
}
PLATFORMS = [
    {
        "python_version": version,
        "python_full_version": f"{version}.4",
        "sys_platform": "linux",
        "platform_machine": machine,
    }
    for version in ("3.11", "3.12")
    for machine in ("x86_64", "aarch64")
]
NOT_IN_THE_CORE = re.compile(r"torch|tensorflow|transformers|nvidia-|cuda-|triton|libtpu|ray$|xgboost|meds-transforms")


def _ranges(groups: tuple[str, ...]) -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [
        config["options"][group] if group == "install_requires" else config["options.extras_require"][group]
        for group in groups
    ]
    return [Requirement(line) for line in "\n".join(lines).splitlines() if line and not line.startswith("#")]


def _pins(lock: str, platform: dict[str, str]) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / lock).read_text().splitlines())
    pins = {}
    for requirement in (Requirement(line) for line in lines if line):
        if requirement.marker is None or requirement.marker.evaluate(
            {"platform_python_implementation": "CPython", **platform}
        ):
            (exact,) = requirement.specifier
            assert exact.operator == "==" and requirement.name not in pins, requirement
            pins[canonicalize_name(requirement.name)] = exact.version
    return pins


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: f"{p['python_version']}-{p['platform_machine']}")
@pytest.mark.parametrize("lock", LOCKS)
def test_every_range_of_setup_cfg_is_pinned_once_and_within_it(lock: str, platform: dict[str, str]) -> None:
    pins = _pins(lock, platform)
    for requirement in _ranges(LOCKS[lock]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: f"{p['python_version']}-{p['platform_machine']}")
def test_parity_pins_the_versions_that_the_core_pins(platform: dict[str, str]) -> None:
    core, parity = _pins("requirements.lock", platform), _pins("requirements-parity.lock", platform)
    assert {name: version for name, version in parity.items() if name in core} == {
        name: version for name, version in core.items() if name in parity
    }


def test_a_plain_install_has_no_torch_and_nothing_of_an_accelerator() -> None:
    core = {canonicalize_name(requirement.name) for requirement in _ranges(LOCKS["requirements.lock"])}
    for platform in PLATFORMS:
        core |= set(_pins("requirements.lock", platform))
    assert not [name for name in core if NOT_IN_THE_CORE.match(name)]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_file(lock: str) -> None:
    assert not re.search(r"://|^-|^\s*--| @ ", (ROOT / lock).read_text(), re.MULTILINE)
