"""So many requests a second: what was taken between two refusals, over the time in between.

At both refusals the server had nothing left, so the measure is exact, whatever it saves up for a burst.
"""

import math
from collections import deque
from collections.abc import Callable

MARGIN = 0.98  # of a measured rate: all that is refused below it is chance
MEANT = 10  # requests that make a measurement
FORGET_S = 60.0  # the longest window in use
TRIAL, TRIAL_UNSURE = 60, 20  # requests of a trial: after a good measurement, after another
STEP, STEP_MOST = 0.02, 0.25  # doubled at each raise
RAISE_S, RAISE_AFTER = 0.25, 4  # a pace is kept for so long, and for so many requests, before it is raised


class Pace:
    """The rate that the server bears, and the trial that goes on below it.

    per_s: requests a second
    measured: the rate that it is derived from
    clean: the pace before it was raised last; 0 where it was not
    """

    def __init__(self) -> None:
        self.per_s = self.measured = math.inf
        self.clean = 0.0
        self._step = STEP
        self._marks: deque[tuple[float, int]] = deque(maxlen=3)
        self.first, self._end = 0, 0  # requests of the trial
        self._began_at = self._ended_at = math.inf
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

    def try_below(self, rate: float, now: float, number: int, count: int) -> None:
        """Keep just below a rate for `count` requests, the next of which has this number."""
        self.measured = rate
        self.per_s = MARGIN * rate
        self.clean = 0.0
        self.first, self._end = number, number + count
        self._began_at, self._ended_at = now, math.inf

    def sent(self, now: float, number: int) -> None:
        """Note when the trial's last request is sent."""
        if number == self._end:
            self._ended_at = now

    def tried_at(self, settle_s: float) -> float:
        """Return when all of the trial's refusals will have been heard; infinity while it is still sent."""
        return self._ended_at + settle_s

    @property
    def is_short(self) -> bool:
        """Tell whether the trial is too small to be judged by more than a few refusals."""
        return self._end - self.first < TRIAL

    def prolong(self, now: float, number: int) -> None:
        """Make a short trial a whole one."""
        self._end = max(number, self.first + TRIAL)
        self._ended_at = now if self._end == number else math.inf

    def outcome(self, refused: Callable[[int, int], int]) -> tuple[int, float, float]:
        """Return of the trial: how many requests, the share that was refused, how many a second were taken."""
        count = self._end - self.first
        refusals = refused(self.first, self._end)
        return count, refusals / count, (count - refusals) / (self._ended_at - self._began_at)

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
