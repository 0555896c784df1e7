"""How far a long job is: a bar on a terminal, and elsewhere, as in a batch job's log, a line a minute."""

import io
import sys
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 60.0


class _Lines(io.TextIOBase):
    """Makes a line on stderr of each state of a bar, which a terminal would draw over the one before."""

    def write(self, text: str) -> int:
        if state := text.strip():
            print(state, file=sys.stderr, flush=True)
        return len(text)


def progress_bar(iterable: Any = None, *, enabled: bool = True, **settings: Any) -> tqdm:
    """A tqdm bar with tqdm's own `settings`, on stderr; one that shows nothing where not `enabled`.

    A job of less than a minute leaves no line in a log.
    """
    if sys.stderr.isatty() or not enabled:
        return tqdm(iterable, disable=not enabled, **settings)
    between = {"delay": _SECONDS_BETWEEN_LINES, "mininterval": _SECONDS_BETWEEN_LINES}
    return tqdm(iterable, file=_Lines(), ascii=True, ncols=100, **between, **settings)
