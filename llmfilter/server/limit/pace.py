"""So many requests a second: what was taken between two refusals, over the time in between.

At both refusals the server had nothing left, so the measure is exact, whatever it saves up for a burst.
"""

import math
from collections import deque
from collections.abc import Callable

MARGIN = 0.98  # of a measured rate: all that is refused below it is chance
MEANT = 10  # requests that make a measurement
FORGET_S = 60.0  # the longest window in use
STEP, STEP_MOST = 0.02, 0.25  # doubled at each raise
RAISE_S, RAISE_AFTER = 0.25, 4  # a pace is kept for so long, and for so many requests, before it is raised


class Pace:
    """The rate that the server bears.

    per_s: requests a second
    clean: the pace before it was raised last; 0 where it was not
    """

    def __init__(self) -> None:
        self.per_s = math.inf
        self.clean = 0.0
        self._step = STEP
        self._marks: deque[tuple[float, int]] = deque(maxlen=3)
        self._raised = 0.0, 0

    def mark(self, sent_at: float, number: int) -> None:
        """Note a request that found the server with nothing left."""
        if self._marks and sent_at - self._marks[-1][0] > FORGET_S:
            self._marks.clear()
        self._marks.append((sent_at, number))

    def measure(self, sent_at: float, number: int, refused: Callable[[int, int], int], least: int) -> float | None:
        """Return how many requests a second were taken between the last mark that is far enough away and this one.

        refused: counts the refused requests between two numbers; least: requests that have to lie in between.
        """
        for since, first in reversed(self._marks):
            taken = number - first - refused(first, number)
            if taken >= max(MEANT, least) and sent_at > since:
                return taken / (sent_at - since)
        return None

    def keep_below(self, rate: float) -> None:
        """Keep just below a rate that was measured."""
        self.per_s = MARGIN * rate
        self.clean = 0.0

    def rise(self, rate: float, share: float, now: float, number: int) -> None:
        """Go up from a rate, of which a share is refused by chance."""
        self.per_s = MARGIN * rate / (1 - share)
        self._step = STEP
        self._raised = now, number

    def raise_at(self, number: int) -> float:
        """Return when it may be raised."""
        at, first = self._raised
        return at + RAISE_S if number - first >= RAISE_AFTER else math.inf

    def raise_once(self, now: float, number: int) -> None:
        """Send a little faster, and next time twice as much."""
        self.clean = self.per_s
        self.per_s *= 1 + self._step
        self._step = min(STEP_MOST, 2 * self._step)
        self._raised = now, number
