"""Requests just below a measured rate: what is refused of them is chance, unless the rate was measured wrong."""

import math
from collections.abc import Callable
from typing import NamedTuple

TRIAL, TRIAL_UNSURE = 60, 20  # requests of a trial: after a good measurement, after another
MOST = 400  # requests of a trial
SLACK = 0.035  # two of 60: more than chance was refused


class Faster(NamedTuple):
    """What was refused when requests were sent faster: which share, and at how many a second; 0 if unknown."""

    share: float = 0.0
    rate: float = 0.0


UNKNOWN = Faster()


class Trial:
    """One trial.

    first: the number of its first request
    rate: that was measured, of requests a second
    before: what led to it
    """

    def __init__(self, now: float, first: int, count: int, rate: float, before: Faster = UNKNOWN) -> None:
        self.first = first
        self.rate = rate
        self.before = before
        self._end = first + min(count, MOST)
        self._began_at, self._ended_at = now, math.inf

    def sent(self, now: float, number: int) -> None:
        """Note when its last request is sent."""
        if number == self._end:
            self._ended_at = now

    def over_at(self, settle_s: float) -> float:
        """Return when all of its refusals will have been heard; infinity while it is still sent."""
        return self._ended_at + settle_s

    @property
    def count(self) -> int:
        """Return how many requests it has."""
        return self._end - self.first

    def share(self, refused: Callable[[int, int], int]) -> float:
        """Return the share that was refused; refused: counts the refused requests between two numbers."""
        return refused(self.first, self._end) / self.count

    def taken_per_s(self, share: float) -> float:
        """Return how many were taken a second; share: that was refused."""
        return self.count * (1 - share) / (self._ended_at - self._began_at)

    def shows_chance(self, share: float) -> bool:
        """Tell whether hardly less was refused than of requests that were sent faster: the rate is not the cause."""
        return self.before.share > 0 and share >= self.before.share / 2

    def shows_rate(self, share: float, chance: float) -> bool:
        """Tell whether no more was refused than by chance."""
        return share <= chance + SLACK

    @property
    def is_short(self) -> bool:
        """Tell whether it is too small to be judged by more than a few refusals."""
        return self.count < TRIAL

    def prolong(self, now: float, number: int) -> None:
        """Make a short trial a whole one; number: of the next request."""
        self._end = max(number, self.first + TRIAL)
        self._ended_at = now if self._end == number else math.inf
