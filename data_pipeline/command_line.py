"""How every entry point starts: absl flags in, one clear line and exit code 2 on a user's mistake.

absl alone prints a page of usage and exits with 1 for a wrong flag, and 1 for `--help` as well.
"""

import contextlib
import os
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from data_pipeline import interrupts
from data_pipeline.errors import UserError

USER_ERROR_EXIT_CODE = 2
# Of --help.
COLUMNS = 100
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def run(main: Callable[[], None], define_flags: Callable[[], None] = lambda: None) -> None:
    """Parse flags, run `main`, and turn a `UserError` or a bad flag into one line on stderr and exit code 2.

    A module that others import defines its flags in `define_flags`, when it is run: flags are global, and other
    programs have flags of the same names.
    """
    with interrupts.ending_the_program():
        app.run(_guarded(main), flags_parser=lambda argv: _parse_flags(argv, define_flags))


def _parse_flags(argv: list[str], define_flags: Callable[[], None]) -> list[str]:
    if any(arg in ("--help", "-h", "-help") for arg in argv[1:]):
        define_flags()
        with contextlib.suppress(BrokenPipeError):  # --help | head
            said = _in_columns((sys.modules["__main__"].__doc__ or "").strip())
            print(f"{said}\n\nFlags:{_describe_flags()}", flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    try:
        # Inside: a configuration flag with a default file reads its overrides from the command line when defined.
        define_flags()
        rest = flags.FLAGS(argv)
        # A configuration file that cannot be read fails only when first touched: touch it here.
        for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
            getattr(flag.value, "keys", None)
    except UserError as error:  # of a configuration file, or of the argument after its colon
        _exit(str(error))
    # config_flags reports an unknown configuration key as a bare KeyError or AttributeError, a bad value as
    # ValueError or TypeError, and a broken configuration file as whatever it raised: all are what the user typed.
    except Exception as error:
        place = _line_of_a_given_file(error, argv)
        if place:
            _exit(f"{place}: {type(error).__name__}: {one_line(error)}")
        _exit(f"command line: {one_line(error)}; see --help")
    if len(rest) > 1:
        _exit(f"command line: unexpected argument {rest[1]!r}; flags start with --, see --help")
    return rest


def _line_of_a_given_file(error: Exception, argv: list[str]) -> str:
    """`FILE, line N` where the error came out of a file that the command line names; otherwise empty."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    # --config=FILE:ARGUMENT or --config FILE
    given = {os.path.abspath(arg.partition("=")[2] or arg).partition(".py:")[0].removesuffix(".py") for arg in argv[1:]}
    for file, line in reversed(lines):
        if os.path.abspath(file).removesuffix(".py") in given:
            return f"{file}, line {line}"
    return ""


def _describe_flags() -> str:
    lines = []
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        has_none = hasattr(flag.value, "keys") or flag.default is None or flag.default in ("", [])
        shown = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
        default = "" if has_none else f" (default: {shown})"
        text = f"--{flag.name}: {' '.join((flag.help or '').split())}{default}"
        lines.append(textwrap.fill(text, COLUMNS, initial_indent="  ", subsequent_indent="      ", **_WHOLE_WORDS))
    return "\n" + "\n".join(lines)


def _in_columns(text: str) -> str:
    """Paragraphs filled anew; one with an indented line, an example or a table, stays as it is."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        part if "\n " in f"\n{part}" else textwrap.fill(part, COLUMNS, **_WHOLE_WORDS) for part in paragraphs
    )


def _guarded(main: Callable[[], None]) -> Callable[[list[str]], None]:
    def guarded(_: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            main()
        except UserError as error:
            _exit(str(error))

    return guarded


def one_line(error: Exception) -> str:
    """What an error of absl or ml_collections says, without the breaks and quotes that these put into it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.replace("\\n", " ").split()).strip("'\"")


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR_EXIT_CODE)
