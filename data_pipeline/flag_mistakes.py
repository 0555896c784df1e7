"""What is wrong with a command line or a configuration file, in one line, whatever absl or ml_collections raised.

config_flags reports an unknown configuration key as a bare KeyError or AttributeError, a bad value as ValueError or
TypeError, a missing file by an object that fails when it is touched, and a broken file as whatever that raised.
"""

import os
import pathlib
import re
import traceback
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

_NOT_GIVEN = re.compile(r"[Ff]lag --(\S+?)=None: Flag --\S+ must have a value other than None")
_BAD_VALUE = re.compile(r"[Ff]lag (--[\w.]+)=(.*?): (.*)", re.DOTALL)
_UNKNOWN_KEY = re.compile(r"""['"]*(\w+)['"]*(?:$| ?Did you mean)""")
_SUGGESTION = re.compile(r'Did you mean "(\w+)"')
# All of a section that lacks a key: of training's, 700 characters.
_OTHER_FIELDS = re.compile(r"Other fields present: (\"\{.*?\}\"|'\{.*?\}'|\{.*?\})")


def explain(error: Exception, argv: Sequence[str]) -> str:
    """What to tell of an error that came while `argv` was read."""
    files = _given_files(argv)
    for name, path in files.items():
        if not pathlib.Path(path).is_file():
            what = "is a folder" if os.path.isdir(path) else "no such file"
            return f"--{name}={path}: {what}; give a Python file with get_config()"
    if place := _line_of(error, files.values()):
        return f"{place}: {type(error).__name__}: {one_line(error)}"
    text = one_line(error)
    if "has no attribute 'get_config'" in text and files:
        return f"{', '.join(files.values())}: has no get_config(); define one that returns a ConfigDict"
    if not_given := _NOT_GIVEN.search(text):
        name = not_given[1]
        if name in files:
            return f"{files[name]}: get_config() returns None; let it return a ConfigDict"
        return f"--{name}: is missing; see --help"
    if isinstance(error, KeyError | AttributeError) and (key := _UNKNOWN_KEY.match(text)):
        typed = next((found[1] for arg in argv if (found := re.match(rf"(--[\w.]*\.{key[1]})\b", arg))), key[1])
        meant = _SUGGESTION.search(text)
        return f"{typed}: unknown key; {f'did you mean {meant[1]!r}?' if meant else 'see --help'}"
    if bad := _BAD_VALUE.fullmatch(text):
        return f"{bad[1]}: {_of_value(bad[2], bad[3])}; see --help"
    return f"command line: {text}; see --help"


def one_line(error: Exception) -> str:
    """What an error of absl or ml_collections says, without the breaks and escapes that these put into it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join(text.replace("\\n", " ").replace("\\'", "'").replace('\\"', '"').split())
    text = " ".join(_OTHER_FIELDS.sub("", text).split())
    # KeyErrors in KeyErrors: quotes around it all, and none of them within.
    while len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]:
        text = text[1:-1]
    return text


def _of_value(value: str, said: str) -> str:
    if "invalid literal for int()" in said:
        return f"{value!r} is not a whole number"
    if "could not convert string to float" in said:
        return f"{value!r} is not a number"
    if "Non-boolean argument" in said:
        return f"{value!r} is neither true nor false"
    return said if said.startswith(f"{value} ") else f"{value!r}: {said}"


def _given_files(argv: Sequence[str]) -> dict[str, str]:
    """By flag, the configuration files that the command line names: --NAME=FILE:ARGUMENT or --NAME FILE."""
    files = {}
    for name in flags.FLAGS:
        if not isinstance(flags.FLAGS[name].parser, ConfigFileFlagParser):
            continue
        for at, arg in enumerate(argv[1:], 1):
            given, equals, value = arg.lstrip("-").partition("=")
            if arg.startswith("-") and given == name and (equals or at + 1 < len(argv)):
                files[name] = (value if equals else argv[at + 1]).partition(":")[0]
    return files


def _line_of(error: Exception, files: Iterable[str]) -> str:
    """`FILE, line N` where the error came out of one of these files; otherwise empty."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    given = {os.path.abspath(file) for file in files}
    for file, line in reversed(lines):
        if os.path.abspath(file) in given:
            return f"{file}, line {line}"
    return ""
