"""Every configuration key with its default, type and meaning, as a page: docs/config.md.

    python -m experiments.config_page --out docs/config.md

Meanings are the comments beside the keys in the source, defaults and types those of the configurations themselves. A
test compares the page with what this writes.
"""

import ast
import dataclasses
import io
import itertools
import pathlib
import tokenize
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import ml_collections
from absl import flags

from cometjax import config as training
from data_pipeline import build_config, command_line
from experiments.launch import jobset, slurm
from experiments.scaling import recipe, study_config

_HEAD = """\
# Configuration keys

<!-- Written by `python -m experiments.config_page --out docs/config.md`, from the comments beside the keys. -->

A configuration file has a function `get_config()` that returns all keys of its kind; `--config FILE` names it, and
`--config.KEY=VALUE` overrides one. A key that is not listed here is refused by name, and so is a value of another type.
"""


@dataclasses.dataclass(frozen=True)
class Part:
    """A kind of configuration: where it stands on the page, and what it is made of.

    Attributes:
        title, intro: heading, and the sentence below it.
        flag: that overrides its keys.
        config: all keys at their defaults.
        sources: modules whose comments say what keys mean.
        elsewhere: sections whose keys another part of the page lists.
    """

    title: str
    intro: str
    flag: str
    config: ml_collections.ConfigDict
    sources: tuple[ModuleType, ...]
    elsewhere: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Key:
    """A key: its path below the flag, its default and the name of its type, and what its comment says."""

    path: str
    default: Any
    type: str
    meaning: str

    @property
    def section(self) -> str:
        """Path of the section it is in; "" for none."""
        return self.path.rpartition(".")[0]


def parts() -> tuple[Part, ...]:
    """All kinds of configuration, in the order of the page."""
    return (
        Part(
            "Corpora",
            "`python -m data_pipeline.build` takes these; its defaults are data_pipeline/build_config.py.",
            "config",
            build_config.get_config(),
            (build_config,),
        ),
        Part(
            "Training",
            "`python -m cometjax.train`, `cometjax.plan` and `experiments.launch` take these; a file builds on "
            "`cometjax.config.default_config()`, as those of experiments/configs do.",
            "config",
            training.default_config(),
            (training,),
        ),
        Part(
            "Scaling studies",
            "`python -m experiments.scaling_sweep` takes these; a file builds on "
            "`experiments.scaling.study_config.default_config()`, as experiments/configs/scaling_world.py does.",
            "config",
            study_config.default_config(),
            (study_config, recipe),
            elsewhere=("base",),
        ),
        Part(
            "Slurm",
            "`python -m experiments.launch` and `experiments.scaling_sweep` take these ([pods.md](pods.md)).",
            "slurm",
            slurm.default_config(),
            (slurm,),
        ),
        Part(
            "GKE",
            "`python -m experiments.launch` and `experiments.scaling_sweep` take these ([pods.md](pods.md)).",
            "gke",
            jobset.default_config(),
            (jobset,),
        ),
    )


def page() -> str:
    """The page, as Markdown."""
    return "\n".join([_HEAD, *(_part(part) for part in parts())])


def keys(part: Part) -> list[Key]:
    """The part's keys in the order of the source; one without a comment of its own has that of its section."""
    said = _said(part)
    order = {path: place for place, path in enumerate(said)}
    found = []
    for path, default, kind in _leaves(part.config, part.elsewhere):
        section = path.rpartition(".")[0]
        found.append(Key(path, default, kind.__name__, said.get(path) or said.get(section, "")))
    return sorted(found, key=lambda key: order.get(key.path, order.get(key.section, len(order))))


def _said(part: Part) -> dict[str, str]:
    return {
        path: text for m in part.sources for path, text in comments(pathlib.Path(m.__file__ or "").read_text()).items()
    }


def comments(source: str) -> dict[str, str]:
    """Path → comment of each key and section to which a module gives a default, in its order; "" where there is none.

    The comment is the one behind the key, else the one above it, which holds for the keys right below it as well.
    """
    above, behind = _comments_by_line(source)
    found: dict[str, str] = {}
    inherited, next_line = "", 0
    for first, last, path in _places(ast.parse(source)):
        own_above = above.get(first - 1, "")
        if own_above or first != next_line:
            inherited = own_above
        found[path] = behind.get(last) or inherited
        next_line = last + 1
    return found


def _comments_by_line(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Line on which a comment ends → its text: those with lines of their own, and those behind code."""
    above: dict[int, str] = {}
    behind: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("# ")
        if token.line[: token.start[1]].strip():
            behind[line] = text
        else:
            above[line] = f"{above.pop(line - 1, '')} {text}".strip()
    return above, behind


def _places(tree: ast.Module) -> Iterator[tuple[int, int, str]]:
    """(first line, last line, path) of each default, in the order of the source."""
    for function in tree.body:
        for node in function.body if isinstance(function, ast.FunctionDef) else ():
            if isinstance(node, ast.Return) and node.value is not None:
                yield from _places_in(node.value, "")
            if not isinstance(node, ast.Assign):
                continue
            target = node.targets[0]
            if isinstance(target, ast.Name) and _is_section(node.value):
                yield node.lineno, node.end_lineno or node.lineno, target.id
            elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                owner = target.value.id
                path = target.attr if owner == "config" else f"{owner}.{target.attr}"
                yield node.lineno, node.end_lineno or node.lineno, path
                yield from _places_in(node.value, f"{path}.")


def _places_in(value: ast.expr, prefix: str) -> Iterator[tuple[int, int, str]]:
    if _is_section(value) and isinstance(value, ast.Call) and value.args:
        value = value.args[0]
    if not isinstance(value, ast.Dict):
        return
    for key, entry in zip(value.keys, value.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            path = f"{prefix}{key.value}"
            yield key.lineno, entry.end_lineno or key.lineno, path
            yield from _places_in(entry, f"{path}.")


def _is_section(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "ConfigDict"


def _leaves(
    config: ml_collections.ConfigDict, elsewhere: tuple[str, ...], prefix: str = ""
) -> Iterator[tuple[str, Any, type]]:
    """(path, default, type) of each key; sections that stand elsewhere are left out."""
    for name in config:
        if (path := f"{prefix}{name}") in elsewhere:
            continue
        if isinstance(config[name], ml_collections.ConfigDict):
            yield from _leaves(config[name], elsewhere, f"{path}.")
        else:
            yield path, config[name], config.get_type(name)


def _part(part: Part) -> str:
    said, listed = _said(part), keys(part)
    lines = [f"## {part.title}", "", part.intro, ""]
    for section in part.elsewhere:
        lines += [f"`--{part.flag}.{section}.KEY`: {said[section]}; the keys are those of [training](#training).", ""]
    # Keys of no section first, though the source has some of them between sections.
    for section in dict.fromkeys(["", *(key.section for key in listed)]):
        own = [key for key in listed if key.section == section]
        if not own:
            continue
        if section:
            lines += [f"### {section}", ""]
            if said.get(section) and all(key.meaning != said[section] for key in own):
                lines += [f"{said[section]}", ""]
        lines += [f"| `--{part.flag}.` | default | type | meaning |", "|---|---|---|---|"]
        # Keys that share a comment share a row.
        lines += [_row(list(group)) for _, group in itertools.groupby(own, key=lambda key: key.meaning)]
        lines.append("")
    return "\n".join(lines)


def _row(keys: list[Key]) -> str:
    columns = (
        [f"`{key.path}`" for key in keys],
        ["none" if key.default is None else _code(key.default) for key in keys],
        [key.type for key in keys],
    )
    cells = [values[:1] if len(set(values)) == 1 else values for values in columns]
    return "| " + " | ".join(["<br>".join(cell) for cell in cells] + [_escaped(keys[0].meaning)]) + " |"


def _code(default: Any) -> str:
    text = '"' + default + '"' if isinstance(default, str) else repr(default)
    return f"`{_escaped(text)}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the page."""
    pathlib.Path(flags.FLAGS.out).write_text(page())


def _define_flags() -> None:
    flags.DEFINE_string("out", None, "file to write, over the one that is there", required=True)


if __name__ == "__main__":
    command_line.run(main, _define_flags)
