"""Lines to stdout and stderr, through a writer thread each.

A blocking write on the event loop would make requests time out behind `| less`.
"""

import os
import select
from collections.abc import Callable

from llmfilter.batches import Batcher
from llmfilter.errors import RowError
from llmfilter.record import dump_text

BUFFER_BYTES = 1 << 20

Line = tuple[int, bytes]  # its row's line number in the input, and the line


class Writer:
    """Writes lines to a descriptor as fast as its reader takes them.

    size: bytes handed in and not yet written; error: the OSError that ended it, after which
    everything is dropped; lost_line: the lowest line number among what was dropped.
    """

    def __init__(self, fd: int, on_change: Callable[[], None]) -> None:
        self._fd = fd
        self._on_change = on_change
        self._batches = Batcher(self._write, self._written)
        self.size = 0
        self.error: Exception | None = None
        self.lost_line: int | None = None

    def write(self, number: int, line: bytes) -> None:
        """Queues one line; it is written as soon as nothing else is under way."""
        self.size += len(line)
        self._batches.add((number, line))

    @property
    def idle(self) -> bool:
        """Everything is written, or dropped after an error."""
        return self._batches.idle

    def _write(self, batch: list[Line]) -> None:
        if not self.error:
            write_all(self._fd, b"".join([line for _, line in batch]))

    def _written(self, batch: list[Line], error: Exception | None) -> None:
        self.size -= sum([len(line) for _, line in batch])
        self.error = self.error or error
        if self.error:
            lowest = min([number for number, _ in batch])
            self.lost_line = lowest if self.lost_line is None else min(lowest, self.lost_line)
        self._on_change()


def write_all(fd: int, data: bytes) -> None:
    """Writes everything, also to a descriptor that somebody has set non-blocking; raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


class Output:
    """Where rows end: answers on stdout, errors on stderr; with keep_order answers in input order.

    on_change is called when there may be room again.
    """

    def __init__(self, stdout: int, stderr: int, keep_order: bool, on_change: Callable[[], None]) -> None:
        self.stdout = Writer(stdout, on_change)
        self.stderr = Writer(stderr, on_change)
        self._order = Order(self.stdout.write) if keep_order else None
        self._answer = self._order.put if self._order else self.stdout.write

    def answer(self, number: int, line: bytes) -> None:
        """The answer to the row on line `number`, with its newline."""
        self._answer(number, line)

    def error(self, number: int, line: bytes) -> None:
        """The error line of the row on line `number`, with its newline."""
        self.stderr.write(number, line)
        self.skip(number)

    def skip(self, number: int) -> None:
        """Line `number` yields nothing on stdout."""
        if self._order:
            self._order.put(number, b"")

    def say(self, message: str) -> None:
        """A plain line on stderr."""
        self.stderr.write(0, f"llmfilter: {message}\n".encode("utf-8", "backslashreplace"))

    def has_room(self) -> bool:
        """Whether another row may be taken."""
        held = self._order.size if self._order else 0
        return self.stdout.size < BUFFER_BYTES and self.stderr.size < BUFFER_BYTES and held < BUFFER_BYTES

    def release(self) -> None:
        """What is held back for its turn is written all the same: the run is over."""
        if self._order:
            self._order.release()

    @property
    def idle(self) -> bool:
        """Everything is written."""
        return self.stdout.idle and self.stderr.idle

    @property
    def failure(self) -> Exception | None:
        """Why a stream can't be written any more, or None."""
        return self.stdout.error or self.stderr.error

    @property
    def lost_line(self) -> int | None:
        """The lowest line number among the lines that could not be written."""
        lost = [line for line in (self.stdout.lost_line, self.stderr.lost_line) if line is not None]
        return min(lost, default=None)


class Order:
    """Holds lines back until those before them have come: `emit` gets them by number, from 1 on."""

    def __init__(self, emit: Callable[[int, bytes], None]) -> None:
        self._emit = emit
        self._next = 1
        self._held: dict[int, bytes] = {}
        self.size = 0

    def put(self, number: int, line: bytes) -> None:
        """Takes line `number`; an empty one only lets those behind it pass."""
        self._held[number] = line
        self.size += len(line) or 1
        while (ready := self._held.pop(self._next, None)) is not None:
            self.size -= len(ready) or 1
            if ready:
                self._emit(self._next, ready)
            self._next += 1

    def release(self) -> None:
        """Emits what is held, in order, across the gaps of lines that never came."""
        for number in sorted(self._held):
            if line := self._held.pop(number):
                self._emit(number, line)


def error_line(number: int, error: RowError, attempts: int, raw: bytes, is_record: bool) -> bytes:
    """One line of JSON about a row that failed; `raw` are the row's own bytes, spliced in if it is a record."""
    parts = [b'{"line":%d,"error":"%b","message":%b' % (number, error.kind.encode(), dump_text(error.message))]
    if error.status is not None:
        parts.append(b',"status":%d' % error.status)
    if attempts:
        parts.append(b',"attempts":%d' % attempts)
    if error.raw:
        parts.append(b',"raw":' + dump_text(error.raw))
    parts.append(b',"input":' + (raw if is_record else dump_text(raw.decode("utf-8", "replace"))) + b"}\n")
    return b"".join(parts)
