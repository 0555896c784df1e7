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


class _Bar(tqdm):
    """A bar whose rate is that of what comes after the first piece, most of whose time may be the compiler's."""

    _first: tuple[float, float] | None = None  # when the first was told, and how many there were then

    def update(self, n: float | None = 1) -> bool | None:
        if not self.disable and self._first is None and n:
            self._first = (self._time(), self.n + n)
        return super().update(n)

    @property
    def format_dict(self) -> Any:
        said = super().format_dict
        if self._first is None or self.n == self.total:
            return said
        began, done = self._first
        seconds = self._time() - began
        # tqdm writes a rate of 0 as one that is not known.
        return said | {"rate": (self.n - done) / seconds if seconds > 0 else 0.0}


def progress_bar(iterable: Any = None, *, enabled: bool = True, **settings: Any) -> tqdm:
    """A tqdm bar with tqdm's own `settings`, on stderr; one that shows nothing where not `enabled`.

    A job of less than a minute leaves no line in a log.
    """
    if sys.stderr.isatty() or not enabled:
        return _Bar(iterable, disable=not enabled, **settings)
    between = {"delay": _SECONDS_BETWEEN_LINES, "mininterval": _SECONDS_BETWEEN_LINES}
    return _Bar(iterable, file=_Lines(), ascii=True, ncols=100, **between, **settings)
