"""The requests under way, by key: identical rows share one. And the slots (`-j`) for those that may be sent.

Here is only what all of them need to know of each other: which keys are under way, whose turn it is to have
a slot, how much memory the rows hold that have none, and which line is the first without an outcome.
"""

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from llmfilter.errors import RowError
from llmfilter.jsontext import Row
from llmfilter.modes.attempts import Attempts

QUEUED_MOST = 64  # the next block of lines is taken when no more wait
_ROW_BYTES = 1000  # of memory, beyond a row's own bytes


@dataclass(slots=True, eq=False)
class Request:
    """One request and the rows that wait for its outcome, in the order of their lines.

    size: bytes of the memory that it holds without a slot.
    unusable: what is wrong with the answer that the cache has.
    attempts: what it has gone through so far, re-asking included; None before.
    is_shared: its first row is printed, the others follow.
    slot: what it waits for that has lent its slot to others; None before.
    """

    key: bytes
    body: bytes
    rows: deque[Row]
    size: int
    unusable: RowError | None = None
    attempts: Attempts | None = None
    is_shared: bool = False
    slot: asyncio.Future[None] | None = None

    @property
    def line(self) -> int:
        """Return the lowest of its rows' lines."""
        return self.rows[0][0]


class Requests:
    """The requests under way, and the slots for those that may be sent.

    start: makes a slot, which calls `take` as long as there are requests `waiting`, and then `free_slot`.
    has_room_for: tells whether an answer for a line may come; no request has a slot before.
    changed: is called when the queue has room, or another request is the next one.
    waiting_bytes: memory of the rows without a slot: those in the queue, those that back off, and those that
    share another row's request.
    """

    def __init__(
        self,
        jobs: int,
        start: Callable[[], object],
        has_room_for: Callable[[int], bool],
        changed: Callable[[], object],
    ) -> None:
        self._start = start
        self._has_room_for = has_room_for
        self._changed = changed
        self._requests: dict[bytes, Request] = {}
        self._queue: deque[Request] = deque()
        self._returning: deque[Request] = deque()  # those that want the slot back that they have lent, by line
        self._slots_free = jobs
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
        """Queue a new request for a slot."""
        request = self._requests[key] = Request(key, body, deque([row]), _size(row) + len(body), unusable)
        self._queue.append(request)
        self.waiting_bytes += request.size
        if self._slots_free:
            self._slots_free -= 1
            self._start()

    @property
    def waiting(self) -> bool:
        """Return whether a request waits for a slot."""
        return bool(self._returning or self._queue)

    @property
    def may_take(self) -> bool:
        """Return whether there is room for the answer of the request whose turn it is, if one waits."""
        queue = self._returning or self._queue  # the former had a slot before
        return not queue or self._has_room_for(queue[0].line)

    def take(self) -> Request | None:
        """Return the request whose turn it is to have a slot; None while there is no room for its answer.

        One that has lent its slot takes over the one that it is given here: its `slot` is to be resolved.
        """
        if not self.may_take:
            return None
        request = (self._returning or self._queue).popleft()
        self.waiting_bytes -= request.size
        if len(self._queue) < QUEUED_MOST:
            self._changed()
        return request

    def free_slot(self) -> None:
        """Take a slot back; make another one where a request waits."""
        if self.waiting:
            self._start()
        else:
            self._slots_free += 1

    def lend_slot(self, request: Request) -> None:
        """Let others have a request's slot while it backs off."""
        self.waiting_bytes += request.size
        self.free_slot()

    async def return_slot(self, request: Request) -> None:
        """Return when a request that has lent its slot has one again."""
        request.slot = asyncio.get_running_loop().create_future()
        insort(self._returning, request, key=_line)
        if self._slots_free:
            self._slots_free -= 1
            self._start()
        self._changed()
        await request.slot

    def drop_row(self, request: Request) -> None:
        """Forget the first row of a request: it is printed."""
        row = request.rows.popleft()
        if request.is_shared:
            self.waiting_bytes -= _size(row)
        request.is_shared = True

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


def _line(request: Request) -> int:
    return request.line
