"""One timeout for many tasks."""

import asyncio
from typing import Any


class Deadlines:
    """Cancels tasks that take longer than `timeout_s`: one timer for all, since they share one timeout."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._due: dict[asyncio.Task[Any], float] = {}  # the oldest first
        self._over: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, task: asyncio.Task[Any]) -> None:
        """Start the task's time."""
        self._due[task] = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._sweep)

    def end(self, task: asyncio.Task[Any]) -> None:
        """Forget the task: it was in time, or has noticed that it wasn't."""
        self._due.pop(task, None)
        self._over.discard(task)

    def is_over(self, task: asyncio.Task[Any]) -> bool:
        """Return whether the task was cancelled by its deadline."""
        return task in self._over

    def close(self) -> None:
        """Stop the timer."""
        if self._timer:
            self._timer.cancel()

    def _sweep(self) -> None:
        now = self._loop.time()
        for task, due in list(self._due.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._sweep)
                return
            del self._due[task]
            self._over.add(task)
            task.cancel()
        self._timer = None
