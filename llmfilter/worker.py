"""A thread that works off whatever has piled up.

Blocking calls (a write to a pipe, an fsync) must not stop the event loop, and a thread hand-over
for every item would cost more than the item. So items pile up on the loop's side while the thread
is busy; when it is done it gets all of them at once. What arrives in one turn of the loop goes out
together, and nothing waits while the thread is idle.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from llmfilter.errors import UsageError

T = TypeVar("T")


def start_thread(run: Callable[[], None]) -> None:
    """Run something in a daemon thread, which does not keep the program alive; UsageError if there can't be one."""
    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError:
        raise UsageError("no thread can be started: raise ulimit -u or -v, or end other programs") from None


class Batcher(Generic[T]):
    """Calls `work(batch)` in its own thread, then `done(batch, error)` on the loop.

    One batch is under way at a time. `error` is the exception that `work` raised, or None.
    `meanwhile` is called on the loop when a batch has been handed over.
    pending, under_way: what is queued, and what the thread is working on.
    The thread is a daemon: a write that blocks for ever does not keep the program alive.
    """

    def __init__(
        self,
        work: Callable[[list[T]], None],
        done: Callable[[list[T], Exception | None], None],
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = work
        self._done = done
        self._meanwhile = meanwhile
        self._inbox: queue.SimpleQueue[list[T]] = queue.SimpleQueue()
        self._busy = False
        self.pending: list[T] = []
        self.under_way: list[T] = []
        start_thread(self._run)

    def add(self, items: Iterable[T]) -> None:
        """Queue items; they are handed over at the end of this turn of the loop, or when the thread is free."""
        self.pending += items
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._hand_over)

    @property
    def idle(self) -> bool:
        """Nothing is queued and nothing is under way."""
        return not self._busy

    def _hand_over(self) -> None:
        self.under_way, self.pending = self.pending, []
        self._inbox.put(self.under_way)
        self._meanwhile()

    def _run(self) -> None:
        while True:
            batch = self._inbox.get()
            error: Exception | None = None
            try:
                self._work(batch)
            except Exception as raised:  # reported to the loop, which knows what it means
                error = raised
            try:
                self._loop.call_soon_threadsafe(self._finish, batch, error)
            except RuntimeError:  # the loop has closed: the program is on its way out
                return
            batch = []

    def _finish(self, batch: list[T], error: Exception | None) -> None:
        self.under_way = []
        try:
            self._done(batch, error)
        finally:
            if self.pending:
                self._hand_over()
            else:
                self._busy = False


class Change:
    """Lets coroutines wait until something holds; they look whenever somebody notifies them."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._waiting = 0  # who is told; mostly nobody, and then it costs nothing

    def notify(self) -> None:
        """Let all who wait look again."""
        if self._waiting:
            self._event.set()
            self._event.clear()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return as soon as it holds."""
        self._waiting += 1
        try:
            while not holds():
                await self._event.wait()
        finally:
            self._waiting -= 1
