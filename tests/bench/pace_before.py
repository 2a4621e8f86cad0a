"""How fast to send: what the server bears, found without being told.

Until a server rejects something there is no limit and nothing here costs anything. From the first
rejection on, sending is paced at a rate that works like TCP's CUBIC (RFC 9438): a rejection cuts
it, then it returns to where it was cut within a second or two, stays near there, and probes ever
faster if nothing is rejected. In-flight requests follow from the rate (Little's law): a server
that bears C requests at a time, each L seconds, bears C/L a second.

Rejections of what was sent before the last cut say nothing new, so there is one cut a round trip.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable

CUT = 0.9  # a cut near the rate that the server is known to bear
CUT_FAR = 0.5  # a cut far above it
GROWTH = 0.03  # per time unit cubed: from a cut by half back after 2.6 units, doubled 3.2 after that
UNIT_REQUESTS = 40  # the time unit stretches to this many requests, or it would probe all the time
UNIT_MOST_S = 5.0
TOLERATED = 0.02  # of the requests: one sick replica among many is no limit
UNSURE_REQUESTS = 50  # that count as accepted, so that chance means nothing
BURST_S = 0.25  # what is sent within this time of the start was a burst, not a rate
EARLY_S = 0.001  # the event loop's timers are no finer
LATE_S = 0.02  # what timers lose by firing late may be caught up, no more
RATE_LEAST = 1.0  # from here it is the single request's backoff that slows down


class Pace:
    """Turns for sending, in the order they were asked for.

    most: requests a second that must not be exceeded (`--rpm`), or infinity. clock: seconds, monotonic.
    """

    def __init__(
        self,
        most: float = math.inf,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.most = most
        self._clock = clock or asyncio.get_running_loop().time
        self._sleep = sleep
        self.is_limited = most < math.inf
        self._line = asyncio.Lock()  # first come, first served
        self._sent = 0
        self._accepted = 0  # since _window_at
        self._borne = 0.0  # accepted a second, in the window before
        self._accepted_since_cut = self._rejected_since_cut = 0
        self._started_at = self._window_at = self._next = self._clock()
        self._cut_at = -math.inf
        self._peak = most  # the rate at the last cut
        self._return_units = 0.0  # from the cut until the rate is at its peak again
        self._unit_s = 1.0
        self._latency_s = 0.0  # of accepted requests, a moving average

    async def turn(self) -> float:
        """Returns when the next request may be sent: the time, to be handed to `reject`."""
        if not self.is_limited:
            self._sent += 1
            return self._clock()
        async with self._line:
            now = self._clock()
            if self._next <= now:
                self._next = now
            elif self._next > now + EARLY_S:
                await self._sleep(self._next - now)
                now = self._clock()
            self._next = max(self._next, now - LATE_S) + 1 / self.rate(now)
            return now

    def rate(self, now: float) -> float:
        """Requests a second."""
        if self._cut_at == -math.inf:
            return self.most
        units = (now - self._cut_at) / self._unit_s - self._return_units
        grown = self._peak * (1 + GROWTH * units**3)
        return max(RATE_LEAST, min(grown, self.most))

    def accept(self, sent_at: float) -> None:
        """A request that was sent at this time was not rejected: to be called when its answer is there."""
        self._accepted += 1
        self._accepted_since_cut += 1
        if self.is_limited:
            now = self._clock()
            self._latency_s += (now - sent_at - self._latency_s) / 16
            self._measure(now)

    def reject(self, sent_at: float) -> None:
        """A request that was sent at this time was rejected, because there are too many."""
        if sent_at <= self._cut_at:
            return
        self._rejected_since_cut += 1
        if self._rejected_since_cut < TOLERATED * (UNSURE_REQUESTS + self._accepted_since_cut):
            return
        self._accepted_since_cut = self._rejected_since_cut = 0
        now = self._clock()
        if self.is_limited:
            self._measure(now)
            rate = self.rate(now)
        else:
            self.is_limited = True
            rate = self._sent / max(now - self._started_at, BURST_S)
            self._window_at, self._accepted = now, 0
        cut = max(CUT_FAR * rate, CUT * min(rate, self._borne), RATE_LEAST)
        self._cut_at, self._peak = now, rate
        self._return_units = max(0.0, (1 - cut / rate) / GROWTH) ** (1 / 3)
        self._unit_s = max(1.0, self._latency_s / 2, min(UNIT_MOST_S, UNIT_REQUESTS / rate))

    def _measure(self, now: float) -> None:
        if now - self._window_at >= self._unit_s:
            self._borne = self._accepted / (now - self._window_at)
            self._window_at, self._accepted = now, 0
