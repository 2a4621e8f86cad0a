"""stdin: bytes → blocks of lines.

A daemon thread reads the descriptor itself and hands blocks of lines through a bounded queue. That
serves files, pipes, terminals and sockets alike: an event loop refuses to watch files and
`/dev/null`, and would set a pipe non-blocking for everyone who shares it.
"""

import asyncio
import errno
import os
import select
import threading
from collections import deque
from collections.abc import Iterator

from llmfilter.worker import start_thread

BLOCK_BYTES = 1 << 18  # one read
AHEAD_BYTES = 2 * BLOCK_BYTES  # read but not yet taken: with what is in hand about 1 MB
LINE_BYTES_MAX = 64 << 20
SHOWN_BYTES = 1 << 10  # of a line that is too long
BOM = b"\xef\xbb\xbf"


class Overlong(bytes):
    """The beginning of a line of more than LINE_BYTES_MAX bytes; the rest was not kept."""

    def strip(self, _: object = None) -> "Overlong":
        """Return it as it is: whatever it begins with, the line is not blank."""
        return self


class Splitter:
    """Chunks of any size → lines without their newline, and without a BOM before them; holds one line at most.

    Each file of `cat a b` may begin with one, and JSON never does.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of the line that has not ended yet
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in this chunk."""
        lines = chunk.split(b"\n")
        if lines[0]:
            self._parts.append(lines[0])
            self._size += len(lines[0])
            if self._size > LINE_BYTES_MAX:
                self._parts = [_beginning(self._parts)]
        if len(lines) == 1:
            return []
        last = lines.pop()
        if BOM[:1] in chunk and BOM in chunk:  # one byte is looked for many times faster
            lines = [line.removeprefix(BOM) for line in lines]
        lines[:1] = self._join()
        self._parts, self._size = [last] if last else [], len(last)
        return lines

    def flush(self) -> list[bytes]:
        """Return the last line, if it has no newline."""
        return self._join() if self._parts else []

    def _join(self) -> list[bytes]:
        if self._size > LINE_BYTES_MAX:
            return [Overlong(_beginning(self._parts))]
        return [b"".join(self._parts).removeprefix(BOM)]


def _beginning(parts: list[bytes]) -> bytes:
    return b"".join([part[:SHOWN_BYTES] for part in parts[:SHOWN_BYTES]])[:SHOWN_BYTES]  # no part is empty


def read_chunks(fd: int) -> Iterator[bytes]:
    """Whatever the descriptor has, up to BLOCK_BYTES at a time, until its end; raises OSError."""
    while True:
        try:
            chunk = os.read(fd, BLOCK_BYTES)
        except BlockingIOError:  # somebody who shares it has set it non-blocking
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll()
            continue
        if not chunk:
            return
        yield chunk


class Ahead:
    """Counts the bytes that were read ahead; the thread that adds to them waits while they are too many."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._bytes = 0

    def add(self, size: int) -> None:
        """Return when there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < AHEAD_BYTES)
            self._bytes += size

    def take(self, size: int) -> None:
        """Make room."""
        with self._changed:
            self._bytes -= size
            self._changed.notify()


class Reader:
    """The lines of a descriptor, read ahead by a thread: `async for lines in rows`.

    lines_read, bytes_read: up to and with the block handed out last. The iteration ends at the end
    of the input or after `stop()`; `ended` tells which. Raises OSError where reading fails.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes | OSError] = deque()
        self._ahead = Ahead()
        self._splitter = Splitter()
        self._wake = asyncio.Event()
        self._stopped = False
        self.ended = False
        self.lines_read = self._block_lines = 0
        self.bytes_read = self._block_bytes = 0
        start_thread(self._read)

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True
        self._wake.set()

    def __aiter__(self) -> "Reader":
        return self

    async def __anext__(self) -> list[bytes]:
        lines: list[bytes] = []
        size = 0
        while not lines and not self.ended:
            chunk = await self._next_chunk()
            # Split here, not in the thread that read it: that would keep the lock of the interpreter
            # from the loop, and the lines would lie in the caches of another processor.
            if chunk:
                self._ahead.take(len(chunk))
                size += len(chunk)
                lines = self._splitter.feed(chunk)
            else:
                self.ended = True
                lines = self._splitter.flush()
        if not lines:
            raise StopAsyncIteration
        self._block_lines, self._block_bytes = len(lines), size
        self.lines_read += self._block_lines
        self.bytes_read += self._block_bytes
        return lines

    async def _next_chunk(self) -> bytes:
        """Return some bytes; none at the end."""
        while not self._chunks and not self._stopped:
            self._wake.clear()
            await self._wake.wait()
        if self._stopped:
            raise StopAsyncIteration
        chunk = self._chunks.popleft()
        if isinstance(chunk, OSError):
            raise chunk
        return chunk

    def bytes_until(self, line: int) -> float:
        """About how many bytes the first lines have, up to this one of the block handed out last."""
        if not self._block_lines:
            return 0.0
        rest = min(1.0, (self.lines_read - line) / self._block_lines)
        return self.bytes_read - rest * self._block_bytes

    def _read(self) -> None:
        end: bytes | OSError = b""
        try:
            for chunk in read_chunks(self._fd):
                self._ahead.add(len(chunk))
                if not self._deliver(chunk):
                    return
        except OSError as error:
            end = error
        except MemoryError:
            end = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self._deliver(end)

    def _deliver(self, chunk: bytes | OSError) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._receive, chunk)
        except RuntimeError:  # the loop has closed: the program is on its way out
            return False
        return True

    def _receive(self, chunk: bytes | OSError) -> None:
        self._chunks.append(chunk)
        self._wake.set()
