"""How every entry point starts: absl flags in, one clear line and exit code 2 on a user's mistake.

absl alone prints a page of usage and exits with 1 for a wrong flag, and 1 for `--help` as well.
"""

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from data_pipeline import flag_mistakes, interrupts
from data_pipeline.errors import UserError

USER_ERROR_EXIT_CODE = 2
# Of --help, where neither the terminal nor $COLUMNS says.
COLUMNS = 80
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
    logging.set_verbosity(logging.ERROR)  # what config_flags warns of is told in the one line
    try:
        # Inside: a configuration flag with a default file reads its overrides from the command line when defined.
        define_flags()
        rest = flags.FLAGS(argv)
        # A configuration file that cannot be read fails only when first touched: touch it here.
        for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
            getattr(flag.value, "keys", None)
    except UserError as error:  # of a configuration file, or of the argument after its colon
        _exit(str(error))
    except Exception as error:  # flag_mistakes says what all it may be
        _exit(flag_mistakes.explain(error, argv))
    if len(rest) > 1:
        _exit(f"command line: unexpected argument {rest[1]!r}; flags start with --, see --help")
    return rest


def _describe_flags() -> str:
    lines, columns = [], _columns()
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        has_none = hasattr(flag.value, "keys") or flag.default is None or flag.default in ("", [])
        shown = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
        default = "" if has_none else f" (default: {shown})"
        text = f"--{flag.name}: {' '.join((flag.help or '').split())}{default}"
        lines.append(textwrap.fill(text, columns, initial_indent="  ", subsequent_indent="      ", **_WHOLE_WORDS))
    return "\n" + "\n".join(lines)


def _in_columns(text: str) -> str:
    """Paragraphs filled anew; one with an indented line, an example or a table, stays as it is."""
    paragraphs, columns = text.split("\n\n"), _columns()
    return "\n\n".join(
        part if "\n " in f"\n{part}" else textwrap.fill(part, columns, **_WHOLE_WORDS) for part in paragraphs
    )


def _columns() -> int:
    # Longer lines are hard to read, however wide the terminal.
    return min(100, max(40, shutil.get_terminal_size((COLUMNS, 24)).columns))


def _guarded(main: Callable[[], None]) -> Callable[[list[str]], None]:
    def guarded(_: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            main()
        except UserError as error:
            _exit(str(error))

    return guarded


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR_EXIT_CODE)
