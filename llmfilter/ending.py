"""How a run ends: the exit statuses, and the one event that ends a run early."""

from collections.abc import Callable
from typing import NamedTuple

ALL_ANSWERED = 0
SOME_FAILED = 1
WRONG_USAGE = 2  # nothing was sent
STOPPED_EARLY = 3
BUG = 70  # sysexits.h: EX_SOFTWARE
SIGNALLED = 128  # and the signal's number
READER_GONE = 141  # 128 + SIGPIPE


class Stop(NamedTuple):
    """Why a run ends early.

    status: the exit status.
    reason: what to say; None where nobody would listen.
    whole_status: the exit status where each row of the input has its line all the same.
    """

    status: int
    reason: str | None
    whole_status: int


class Ending:
    """Whether the run ends early: nothing more is taken or sent, and what is at the server is finished.

    One for all rooms of a run, which either look at it, wait for it, or ask to be told.
    stop: why it ends early; None as long as it doesn't.
    """

    def __init__(self) -> None:
        import asyncio  # 40 ms, which --help and a typing error need not wait for

        self.stop: Stop | None = None
        self._event = asyncio.Event()
        self._listeners: list[Callable[[], object]] = []

    def tell(self, listener: Callable[[], object]) -> None:
        """Call `listener` when the run begins to end."""
        self._listeners.append(listener)

    @property
    def has_begun(self) -> bool:
        """Return whether nothing more is to be taken or sent."""
        return self.stop is not None

    def begin(self, status: int, reason: str | None, *, whole_status: int | None = None) -> None:
        """End the run, if it doesn't end already: the first reason counts."""
        if self.stop is None:
            self.stop = Stop(status, reason, status if whole_status is None else whole_status)
            self._event.set()
            for listener in self._listeners:
                listener()

    async def wait(self) -> None:
        """Return when the run begins to end."""
        await self._event.wait()
