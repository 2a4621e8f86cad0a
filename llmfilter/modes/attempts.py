"""What one row goes through: when it is sent again, and when it is given up.

What a server says to one row again and again, while it answers others, is about that row.
"""

from llmfilter.errors import Retryable

BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.5, 60.0  # after a failure
PAUSE_FIRST_S, PAUSE_MOST_S = 0.25, 8.0  # after a refusal
SPEAKS_TWICE = 2  # so many refusals or failures of a row tell something about the server
LATE_MOST = 2  # attempts that end at a time limit after so long that each was most likely billed
GIVE_UP_REFUSALS, GIVE_UP_ANSWERS = 6, 10  # of the row, and of others meanwhile
GIVE_UP_ALONE_S = 75.0  # by then a limit counted by the minute has begun anew


class Attempts:
    """The attempts of one row.

    retries: failures that it may have after the first
    sent: how many requests were sent for it
    refusal: the last one, or None
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self.sent = 0
        self.refusal: Retryable | None = None
        self._failures = self._refusals = self._late = 0
        self._answers: int | None = None  # of the whole run, when it first failed or was refused

    def is_own_fault(self, answers: int) -> bool:
        """Tell whether it keeps failing, or being refused, while others are answered.

        answers: how many requests of the run have been answered
        """
        is_known = self._failures + self._refusals >= SPEAKS_TWICE
        return is_known and self._answers is not None and answers > self._answers

    def after(
        self, fault: Retryable, is_stopped: bool, is_alone: bool, stuck_s: float, answers: int, jitter: float
    ) -> float | None:
        """Return how many seconds to wait before another attempt; None to give the row up.

        is_stopped: the server takes nothing, whoever asks, which is not held against the row
        is_alone: nothing else is under way
        stuck_s: for how long nothing has been answered
        answers: how many requests of the run have been answered
        jitter: in [0, 1), spreads the requests, so that they do not all come back at once
        """
        # A timeout has taken its time already: the row's path is bounded by its attempts, not by ten minutes.
        is_counted = not is_stopped or fault.kind == "timeout" or self.is_own_fault(answers)
        if self._answers is None:
            self._answers = answers
        if fault.is_refusal:
            self.refusal = fault
            self._refusals += is_counted
            others = answers - self._answers
            is_refused = self._refusals >= GIVE_UP_REFUSALS and (others >= GIVE_UP_ANSWERS or is_alone)
            is_over = others > 0 and (is_refused or (is_alone and stuck_s >= GIVE_UP_ALONE_S))
            wait_s = pause_s(fault.after_s, max(1, self._refusals), jitter)
        else:
            self._failures += is_counted
            is_over = self._failures > self._retries
            wait_s = delay_s(fault.after_s, max(1, self._failures), jitter)
        self._late += fault.is_late
        return None if is_over or self._late >= LATE_MOST else wait_s

    def forget_failures(self) -> None:
        """Begin anew, with another request."""
        self._failures = self._late = 0


def pause_s(after_s: float | None, refusals: int, jitter: float) -> float:
    """Return how many seconds a row waits after a refusal.

    after_s: what the server asked for, or None; refusals: how many there were, from 1 on; jitter: in [0, 1).
    """
    own_s = min(PAUSE_MOST_S, PAUSE_FIRST_S * 2.0 ** min(refusals - 1, 16)) * (0.5 + jitter / 2)
    return own_s if after_s is None else max(own_s, after_s * (1 + jitter / 10))


def delay_s(after_s: float | None, failures: int, jitter: float) -> float:
    """Return how many seconds to wait before a request that failed is sent again.

    after_s: what the server asked for, or None; failures: how many there were, from 1 on; jitter: in [0, 1).
    """
    if after_s is not None:
        return after_s * (1 + jitter / 4)
    return min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16)) * (0.5 + jitter / 2)
