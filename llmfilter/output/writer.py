"""Bytes to a descriptor: by the loop where the system promises not to wait, else by a thread.

A blocking write on the event loop would make requests time out behind `| less`.
"""

import asyncio
import errno
import os
import select
import threading
from collections.abc import Callable, Iterable

from llmfilter.worker import Batcher

LINE_BYTES = 100  # of memory, beyond a line's own bytes
_LARGE_BYTES = 1 << 16  # a line that is not copied to be written together with others
Write = Callable[[bytes], None]  # takes all of it, or raises OSError
WriteNow = Callable[[list[bytes]], int | None]  # as `write_now` does
Line = tuple[int, bytes]  # its row's line number in the input, and the line; or the first of several


class Writer:
    """Hands lines to `write`, which may block, as fast as it takes them.

    on_written: gets the number of bytes that are out of the way.
    write_now: is tried first while nothing is under way; None where there is no such thing.
    error: the OSError that ended it, after which everything is dropped.
    lost_line: the lowest line number among what was dropped.
    """

    def __init__(self, write: Write, on_written: Callable[[int], None], write_now: WriteNow | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._write = write
        self._write_now = write_now
        self._on_written = on_written
        self._fresh: list[Line] = []  # of this turn of the loop
        self._batches = Batcher(self._join, self._written)
        self.error: Exception | None = None
        self.lost_line: int | None = None

    def put(self, line: Line) -> None:
        """Queue a line, or several; written at the end of this turn of the loop, or when the thread is free."""
        if self._write_now is None or self.error or not self._batches.idle:
            self._batches.add([line])
            return
        if not self._fresh:
            self._loop.call_soon(self._try_now, self._write_now)
        self._fresh.append(line)

    @property
    def idle(self) -> bool:
        """Everything is written, or dropped after an error."""
        return self._batches.idle and not self._fresh

    def _try_now(self, write_now: WriteNow) -> None:
        """Write what can be written without waiting; leave the rest to the thread."""
        lines, self._fresh = self._fresh, []
        taken = write_now([line for _, line in lines[:_BUFFERS_MOST]])
        if taken is None:
            self._write_now = None
        written, left = split(lines, taken or 0)
        if left:
            self._batches.add(left)
        if written:
            self._on_written(written)

    def _join(self, batch: list[Line]) -> None:
        if self.error:
            return
        lines = [line for _, line in batch]
        for piece in lines if max(map(len, lines)) > _LARGE_BYTES else [b"".join(lines)]:
            self._write(piece)

    def _written(self, batch: list[Line], error: Exception | None) -> None:
        if error and not isinstance(error, OSError):
            raise error
        self.error = self.error or error
        if self.error:
            self.lost_line = lowest([(self.lost_line or 0, b""), *batch])
        self._on_written(size_of(batch))

    def waiting(self) -> list[Line]:
        """Return what is queued or being written."""
        return self._batches.under_way + self._batches.pending + self._fresh


def size_of(lines: list[Line]) -> int:
    """About their memory."""
    return sum([len(line) for _, line in lines]) + LINE_BYTES * len(lines)


def split(lines: list[Line], taken: int) -> tuple[int, list[Line]]:
    """Return the memory of what is written once so many bytes are, and the lines that are left, the first cut."""
    whole = size_of(lines)
    if taken == whole - LINE_BYTES * len(lines):  # nearly always
        return whole, []
    size = 0
    for at, (number, line) in enumerate(lines):
        if taken < len(line):
            return size + taken, [(number, line[taken:]), *lines[at + 1 :]]
        taken -= len(line)
        size += len(line) + LINE_BYTES
    return size, []


def lowest(lines: Iterable[Line]) -> int | None:
    """Return the lowest of the line numbers; a line that belongs to no row has number 0."""
    return min([number for number, _ in lines if number], default=None)


_BUFFERS_MOST = 1024  # in one call: IOV_MAX
# The system, or this kind of file, makes no such promise.
_NO_PROMISE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ESPIPE, errno.ENOSYS}
_writing = threading.Lock()


def write_now(fd: int, buffers: list[bytes]) -> int | None:
    """Write what can be written without waiting; return how many bytes that were, None where it can't be known."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        return os.pwritev(fd, buffers, -1, os.RWF_NOWAIT)
    except OSError as error:  # any other one the thread will meet too
        return None if error.errno in _NO_PROMISE else 0


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
