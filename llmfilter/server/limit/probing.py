"""Single requests after pauses that double, while the server takes nothing: a used-up window, an outage."""

import math

FIRST_S = 0.1
MOST_S = 2.5  # at first, then a share of the time stopped: back late by as much at most
MOST_SHARE, LONGEST_S = 1 / 15, 30.0
AWAY_MOST_S = 3.0  # a refused connection costs nobody anything
WINDOW_MOST_S = 10.0  # a sixth of the usual window
AFTER_MOST_S = 60.0  # the longest window in use: a longer Retry-After may be about the one row
FULL, WINDOW, AWAY = "full", "a window that is used up", "away"  # why nothing is taken
HANGS_S = 3.0  # a server that was away may still hang: another probe


class Probing:
    """When the next single request may be sent.

    first: the number of the first probe; verdicts on requests before it say nothing new
    cause: FULL, WINDOW where the server takes a few requests a minute, AWAY where it fails or can't be reached
    """

    def __init__(
        self, now: float, first: int, cause: str = FULL, pause_s: float = 0.0, after_s: float | None = None
    ) -> None:
        self.first = first
        self.cause = cause
        self._began_at = now
        self._pause_s = max(FIRST_S, pause_s)
        self._probed_at: float | None = None
        self._next_at = now + self._wait_s(after_s)

    def _wait_s(self, after_s: float | None) -> float:
        return self._pause_s if after_s is None else min(max(FIRST_S, after_s), AFTER_MOST_S)

    def ready_at(self, now: float) -> float:
        """Return when a probe may be sent."""
        if self._probed_at is None:
            return self._next_at
        return self._probed_at + HANGS_S if self.cause == AWAY else math.inf

    def survived_at(self, settle_s: float) -> float:
        """Return when a probe that was not refused was taken; of a server that is away only an answer tells."""
        return math.inf if self.cause == AWAY or self._probed_at is None else self._probed_at + settle_s

    def sent(self, now: float) -> None:
        """Note that a probe was sent."""
        self._probed_at = now

    def failed(self, now: float, after_s: float | None = None) -> None:
        """Wait twice as long, or as long as the server asks."""
        longest_s = max(MOST_S, min(LONGEST_S, MOST_SHARE * (now - self._began_at)))
        most_s = {AWAY: AWAY_MOST_S, WINDOW: WINDOW_MOST_S}.get(self.cause, longest_s)
        self._pause_s = min(most_s, 2 * self._pause_s)
        self._probed_at = None
        self._next_at = now + self._wait_s(after_s)

    def void(self, now: float) -> None:
        """Forget a probe that told nothing: another may be sent at once."""
        self._probed_at = None
        self._next_at = now
