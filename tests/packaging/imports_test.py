"""Who may import whom: data_pipeline knows no model, the core needs no extra, and nothing unpickles."""

import ast
import functools
import pathlib
from collections.abc import Iterable

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NEVER = {"torch", "transformers", "tensorflow", "pickle", "dill", "joblib"}
FORBIDDEN = {
    "data_pipeline": NEVER | {"jax", "flax", "optax", "orbax", "cometjax", "experiments"},
    "cometjax": NEVER | {"experiments"},
    "experiments": NEVER,
}
# They take long to import, and many commands fit nothing.
WHERE_FITTED = {"sklearn", "xgboost"}


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
    return {name.split(".")[0] for name in names}


@functools.cache
def _modules(package: str) -> dict[str, ast.Module]:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_lies_left_of_it(package: str) -> None:
    offenders = {path: _imported(ast.walk(tree)) & FORBIDDEN[package] for path, tree in _modules(package).items()}
    assert not {path: names for path, names in offenders.items() if names}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_what_only_fits_need_is_imported_where_they_are_made(package: str) -> None:
    offenders = {path: _imported(tree.body) & WHERE_FITTED for path, tree in _modules(package).items()}
    assert not {path: names for path, names in offenders.items() if names}
