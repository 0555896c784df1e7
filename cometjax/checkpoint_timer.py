"""When a checkpoint is due by the clock (config.train.checkpoint_minutes), beside those of every so many steps."""

import time

import jax

from cometjax import agreement


class CheckpointTimer:
    """Whether `minutes` have passed since the last save was begun; 0: never.

    With several processes the first one's clock tells, and all hear of it at the same step, the one after: the answer
    travels behind the steps (`agreement.Poll`), and nobody waits for it. Call each method in all at the same places.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._since = time.monotonic()
        # An answer that is under way is of the time before.
        self._poll = agreement.Poll(first=False)

    def due(self) -> bool:
        """Whether to save here; asked at every step."""
        if not self._seconds:
            return False
        passed = time.monotonic() - self._since >= self._seconds
        return self._poll.ask(passed and jax.process_index() == 0)
