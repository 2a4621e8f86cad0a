"""Bytes to a descriptor, by a thread.

A blocking write on the event loop would make requests time out behind `| less`.
"""

import os
import select
import threading
from collections.abc import Callable, Iterable

from llmfilter.worker import Batcher

LINE_BYTES = 100  # of memory, beyond a line's own bytes
Write = Callable[[bytes], None]  # takes all of it, or raises OSError
Line = tuple[int, bytes]  # its row's line number in the input, and the line; or the first of several


class Writer:
    """Hands lines to `write`, which may block, as fast as it takes them.

    on_written gets the number of bytes that are out of the way; error: the OSError that ended it,
    after which everything is dropped; lost_line: the lowest line number among what was dropped.
    """

    def __init__(self, write: Write, on_written: Callable[[int], None]) -> None:
        self._write = write
        self._on_written = on_written
        self._batches = Batcher(self._join, self._written)
        self.put = self._batches.add  # queues lines; they are written as soon as nothing else is under way
        self.error: Exception | None = None
        self.lost_line: int | None = None

    @property
    def idle(self) -> bool:
        """Everything is written, or dropped after an error."""
        return self._batches.idle

    def _join(self, batch: list[Line]) -> None:
        if not self.error:
            self._write(b"".join([line for _, line in batch]))

    def _written(self, batch: list[Line], error: Exception | None) -> None:
        if error and not isinstance(error, OSError):
            raise error
        self.error = self.error or error
        if self.error:
            self.lost_line = lowest([(self.lost_line or 0, b""), *batch])
        self._on_written(size_of(batch))

    def waiting(self) -> list[Line]:
        """Return what is queued or being written."""
        return self._batches.under_way + self._batches.pending


def size_of(lines: list[Line]) -> int:
    """About their memory."""
    return sum([len(line) for _, line in lines]) + LINE_BYTES * len(lines)


def lowest(lines: Iterable[Line]) -> int | None:
    """Return the lowest of the line numbers; a line that belongs to no row has number 0."""
    return min([number for number, _ in lines if number], default=None)


_writing = threading.Lock()


def write_all(fd: int, data: bytes) -> None:
    """Write everything, also to a descriptor that somebody has set non-blocking; raise OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def write_alone(fd: int, data: bytes) -> None:
    """Write everything while no other such call writes: for two descriptors of one pipe, lest lines tear."""
    with _writing:
        write_all(fd, data)


def is_writable(fd: int) -> bool:
    """Whether a line can be written now: the reader of a pipe may have stopped, or a terminal."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
