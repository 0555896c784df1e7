"""Who may import whom: data_pipeline knows no model, the core needs no extra, and nothing unpickles."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NEVER = {"torch", "transformers", "tensorflow", "pickle", "dill", "joblib"}
FORBIDDEN = {
    "data_pipeline": NEVER | {"jax", "flax", "optax", "orbax", "cometjax", "experiments"},
    "cometjax": NEVER | {"experiments"},
    "experiments": NEVER,
}


def _imported(source: str) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_lies_left_of_it(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    offenders = {str(path.relative_to(ROOT)): _imported(path.read_text()) & FORBIDDEN[package] for path in modules}
    assert not {path: names for path, names in offenders.items() if names}
