"""The requests under way, by key: identical rows share one.

Each request is one task of the pipeline's, from before its sending to its last line. Here is only
what all of them need to know of each other: which keys are under way, how much memory the rows
hold that have no slot, and which line is the first without an outcome.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from llmfilter.errors import RowError
from llmfilter.jsontext import Row

QUEUED_MOST = 64  # as many as are looked up together: the next block is taken when these have slots
_ROW_BYTES = 1000  # of memory, beyond a row's own bytes


@dataclass(slots=True, eq=False)
class Request:
    """One request and the rows that wait for its outcome, in the order of their lines.

    size: bytes of the memory that it holds without a slot.
    unusable: what is wrong with the answer that the cache has.
    attempts: how often it was sent so far, re-asking included.
    is_shared: its first row is printed, the others follow.
    """

    key: bytes
    body: bytes
    rows: deque[Row]
    size: int
    unusable: RowError | None = None
    attempts: int = 0
    is_shared: bool = False


class Requests:
    """The requests under way, and the slots for those that may be sent.

    start: gets each request as soon as there is a slot for it; made_room: is called when the queue has
    room; waiting_bytes: memory of the rows without a slot, those that share another row's request among
    them.
    """

    def __init__(self, jobs: int, start: Callable[[Request], object], made_room: Callable[[], object]) -> None:
        self._start = start
        self._made_room = made_room
        self._requests: dict[bytes, Request] = {}
        self._queue: deque[Request] = deque()
        self._slots_free = jobs
        self._returning: deque[asyncio.Future[None]] = deque()  # those who wait for the slot they have lent
        self._abandoned: int | None = None
        self.waiting_bytes = 0

    @property
    def queued(self) -> int:
        """Count the requests that never had a slot yet."""
        return len(self._queue)

    @property
    def count(self) -> int:
        """Count the requests under way."""
        return len(self._requests)

    @property
    def first_unfinished(self) -> int | None:
        """Return the lowest line that is still under way, or was abandoned; None if there is none."""
        lines = [row[0] for request in self._requests.values() for row in request.rows]
        return min(lines if self._abandoned is None else [*lines, self._abandoned], default=None)

    def join(self, row: Row, key: bytes) -> bool:
        """Let a row wait for an identical request; return whether there is one."""
        request = self._requests.get(key)
        if request is None:
            return False
        request.rows.append(row)
        self.waiting_bytes += _size(row)
        return True

    def add(self, row: Row, key: bytes, body: bytes, unusable: RowError | None) -> None:
        """Start a new request, or queue it for a slot."""
        request = self._requests[key] = Request(key, body, deque([row]), _size(row) + len(body), unusable)
        if self._slots_free:
            self._slots_free -= 1
            self._start(request)
        else:
            self._queue.append(request)
            self.waiting_bytes += request.size

    def free_slot(self) -> None:
        """Take a slot back, for another request; who has lent one comes first."""
        while self._returning:
            returning = self._returning.popleft()
            if not returning.done():
                return returning.set_result(None)
        if self._queue:
            request = self._queue.popleft()
            self.waiting_bytes -= request.size
            self._start(request)
        else:
            self._slots_free += 1
        if len(self._queue) < QUEUED_MOST:
            self._made_room()
        return None

    async def return_slot(self, request: Request) -> None:
        """Return when a request that has freed its slot for a while has one again."""
        if self._slots_free:
            self._slots_free -= 1
            return
        self.waiting_bytes += request.size
        try:
            self._returning.append(asyncio.get_running_loop().create_future())
            await self._returning[-1]
        finally:
            self.waiting_bytes -= request.size

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
            self.abandon_line(row[0])
        self.remove(request)

    def abandon_queue(self) -> None:
        """Forget the requests that never had a slot."""
        while self._queue:
            self.abandon(self._queue.popleft())

    def abandon_line(self, number: int) -> None:
        """Note that the row on a line gets no outcome."""
        self._abandoned = number if self._abandoned is None else min(self._abandoned, number)


def _size(row: Row) -> int:
    return len(row[1]) + _ROW_BYTES
