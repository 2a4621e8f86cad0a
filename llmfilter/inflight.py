"""The requests under way, by key: identical rows share one.

Each request is one task of the pipeline's, from before its sending to its last line. Here is only
what all of them need to know of each other: which keys are under way, how much memory the rows
hold that have no slot, and which line is the first without an outcome.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from llmfilter.errors import RowError
from llmfilter.rows import Row

QUEUED_MOST = 64  # as many as are looked up together: the next block is taken when these have slots
_ROW_BYTES = 1000  # of memory, beyond a row's own bytes


@dataclass(slots=True, eq=False)
class Request:
    """One request and the rows that wait for its outcome, in the order of their lines.

    unusable: what is wrong with the answer that the cache has; attempts: how often it was sent so
    far, re-asking included; is_shared: its first row is printed, the others follow.
    """

    key: bytes
    body: bytes
    rows: deque[Row]
    unusable: RowError | None = None
    attempts: int = 0
    is_shared: bool = False


class InFlight:
    """The requests under way, and the slots for those that are sent.

    slots: one for each of `jobs` requests; queued: how many never had one yet; waiting_bytes: memory
    of the rows without a slot, those that share another row's request among them.
    """

    def __init__(self, jobs: int) -> None:
        self._requests: dict[bytes, Request] = {}
        self._abandoned: int | None = None
        self.slots = asyncio.Semaphore(jobs)
        self.queued = 0
        self.waiting_bytes = 0

    @property
    def count(self) -> int:
        """Count the requests under way."""
        return len(self._requests)

    @property
    def first_unfinished(self) -> int | None:
        """Return the lowest line that is still under way, or was abandoned; None if there is none."""
        lines = [row.number for request in self._requests.values() for row in request.rows]
        return min(lines if self._abandoned is None else [*lines, self._abandoned], default=None)

    def join(self, row: Row, key: bytes) -> bool:
        """Let a row wait for an identical request; return whether there is one."""
        request = self._requests.get(key)
        if request is None:
            return False
        request.rows.append(row)
        self.waiting_bytes += _size(row)
        return True

    def add(self, row: Row, key: bytes, body: bytes, unusable: RowError | None) -> Request:
        """Return a new request, which is queued for a slot."""
        request = self._requests[key] = Request(key, body, deque([row]), unusable)
        self.queued += 1
        self.waiting_bytes += _size(row) + len(body)
        return request

    def leave_queue(self, request: Request) -> None:
        """Count a request as one that has a slot."""
        self.queued -= 1
        self.waiting_bytes -= _size(request.rows[0]) + len(request.body)

    async def lend_slot(self, request: Request, wait_s: float, stopping: asyncio.Event) -> None:
        """Let others have a request's slot for some seconds, or until `stopping` is set."""
        size = _size(request.rows[0]) + len(request.body)
        self.waiting_bytes += size
        self.slots.release()
        try:
            async with asyncio.timeout(wait_s):
                await stopping.wait()
        except TimeoutError:
            pass
        finally:
            await self.slots.acquire()
            self.waiting_bytes -= size

    def take_row(self, request: Request) -> Row:
        """Take the first row off a request, to be printed."""
        row = request.rows.popleft()
        if request.is_shared:
            self.waiting_bytes -= _size(row)
        request.is_shared = True
        return row

    def remove(self, request: Request) -> None:
        """Forget a request whose rows are all printed."""
        del self._requests[request.key]

    def abandon(self, request: Request) -> None:
        """Forget a request whose rows get no outcome."""
        for row in request.rows:
            self.abandon_line(row.number)
        self.remove(request)

    def abandon_line(self, number: int) -> None:
        """Note that the row on a line gets no outcome."""
        self._abandoned = number if self._abandoned is None else min(self._abandoned, number)


def _size(row: Row) -> int:
    return len(row.raw) + _ROW_BYTES
