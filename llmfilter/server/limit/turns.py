"""Turns for sending requests: a queue of those who wait, and one timer."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from llmfilter.errors import Abandoned
from llmfilter.server.limit.history import Ticket
from llmfilter.server.limit.judge import FREE, Judge


class Limit:
    """Turns for sending requests, in the order they were asked for.

    jobs: most requests in flight, kept by the caller
    per_s_most: requests a second that are never exceeded (`--rpm`), or infinity
    clock: seconds, monotonic; the running loop's by default
    """

    def __init__(self, jobs: int, per_s_most: float = math.inf, clock: Callable[[], float] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._judge = Judge(jobs, per_s_most, self._clock())
        self._is_bounded = per_s_most < math.inf
        self._waiting: deque[tuple[asyncio.Future[Ticket], Any]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Count the requests that were sent and have no verdict."""
        return self._judge.in_flight

    @property
    def found(self) -> str | None:
        """Return the limit that was found, for people; None while there is none."""
        return self._judge.found

    @property
    def is_stopped(self) -> bool:
        """Tell whether the server takes nothing now, whoever asks."""
        return self._judge.is_stopped

    @property
    def is_away(self) -> bool:
        """Tell whether that is since it fails, or can't be reached."""
        return self._judge.is_away

    @property
    def is_idle(self) -> bool:
        """Tell whether no request is under way, and none waits for its turn."""
        return not self._judge.in_flight and not self._waiting

    @property
    def stuck_s(self) -> float:
        """Return for how long nothing has been answered, while nothing was under way."""
        return self._judge.stuck_s(self._clock())

    def take(self, row: Any = None) -> Ticket | None:
        """Return a turn at once while nothing is limited; else None: await `turn`."""
        if self._judge.mode == FREE and not self._is_bounded and not self._draining:
            return self._judge.send(row, self._clock())
        return None

    async def turn(self, row: Any = None) -> Ticket:
        """Return when the next request may be sent; raise Abandoned once drained. row: whose it is."""
        if ticket := self.take(row):
            return ticket
        if self._draining:
            raise Abandoned
        turn: asyncio.Future[Ticket] = self._loop.create_future()
        self._waiting.append((turn, row))
        self._pump()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release(turn.result())
            raise

    def drain(self) -> None:
        """Let nothing more be sent: all who wait raise Abandoned."""
        self._draining = True
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(Abandoned())

    def took_s(self, ticket: Ticket) -> float:
        """Return for how long a request has been under way."""
        return self._clock() - ticket.sent_at

    def answered(self, ticket: Ticket) -> None:
        """Note that the server took a request."""
        self._judge.answered(ticket, self._clock())
        self._pump()

    def refused(self, ticket: Ticket, after_s: float | None = None, is_own: bool = False) -> None:
        """Note that the server had no room; after_s: how long it asks to wait; is_own: see `Judge.refused`."""
        self._judge.refused(ticket, after_s, is_own, self._clock())
        self._pump()

    def overdue(self, ticket: Ticket, is_own: bool = False) -> None:
        """Note that a request ended at a time limit; is_own: see `Judge.overdue`."""
        self._judge.overdue(ticket, is_own, self._clock())
        self._pump()

    def failed(self, ticket: Ticket, is_own: bool = False, is_unreachable: bool = False) -> None:
        """Note that a request came to nothing; is_own, is_unreachable: see `Judge.failed`."""
        self._judge.failed(ticket, is_own, is_unreachable, self._clock())
        self._pump()

    def release(self, ticket: Ticket) -> None:
        """Give a turn back before there was a verdict."""
        self._judge.released(ticket, self._clock())
        self._pump()

    def _pump(self) -> None:
        """Give the turns that are due, and come again when more are."""
        while self._waiting:
            turn, row = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
                continue
            now = self._clock()
            at = self._judge.ready_at(now)
            if at > now:
                return self._wake(at - now)
            self._waiting.popleft()
            turn.set_result(self._judge.send(row, now))
        return None

    def _wake(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if wait_s < math.inf:
            self._timer = self._loop.call_later(wait_s, self._pump)
