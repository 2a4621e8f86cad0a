"""Lines to stdout and stderr, through a writer thread each.

A blocking write on the event loop would make requests time out behind `| less`.
"""

import asyncio
import os
import re
import select
import threading
from collections.abc import Callable, Iterable

from llmfilter.batches import Batcher
from llmfilter.errors import RowError
from llmfilter.record import dump_text

BUFFER_BYTES = 1 << 20
_LINE_BYTES = 100  # of memory, beyond a line's own bytes

Write = Callable[[bytes], None]  # takes all of it, or raises OSError
Describe = Callable[[int, RowError, int, bytes, bool], bytes]  # as error_line does
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
        """What is queued or being written."""
        return self._batches.under_way + self._batches.pending


def size_of(lines: list[Line]) -> int:
    """About their memory."""
    return sum([len(line) for _, line in lines]) + _LINE_BYTES * len(lines)


def lowest(lines: Iterable[Line]) -> int | None:
    """The lowest of the line numbers; a line that belongs to no row has number 0."""
    return min([number for number, _ in lines if number], default=None)


_writing = threading.Lock()


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


def write_alone(fd: int, data: bytes) -> None:
    """Writes everything while no other such call writes: for two descriptors of one pipe, lest lines tear."""
    with _writing:
        write_all(fd, data)


def is_writable(fd: int) -> bool:
    """Whether a line can be written now: the reader of a pipe may have stopped, or a terminal."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


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


class Output:
    """Where rows end: answers on stdout, errors on stderr; with keep_order answers in input order.

    describe: makes the line of a row that failed; on_failure gets the error of a stream that can't be
    written any more; changed: tells those who wait for room that there may be some, as anybody may do who
    makes room elsewhere; size: bytes that are not written yet; is_over: set once no line will come that
    others wait for, so that what is there comes out.
    """

    on_failure: Callable[[Exception], None] = staticmethod(lambda error: None)

    def __init__(self, stdout: Write, stderr: Write, keep_order: bool, describe: Describe) -> None:
        self._describe = describe
        self.changed = Change()
        self.is_over = False
        self._stdout = Writer(stdout, self._count_written)
        self._stderr = Writer(stderr, self._count_written)
        self._order = Order(self._emit_in_turn) if keep_order else None
        self.size = 0

    def answers(self, lines: dict[int, bytes]) -> None:
        """The answers to rows by their number, each with its newline."""
        if self._order:
            self.size += size_of(list(lines.items()))
            if self._order.put(lines):
                self.changed.notify()
        else:
            whole = (next(iter(lines)), b"".join(lines.values()))
            self.size += size_of([whole])
            self._stdout.put([whole])

    def error(self, number: int, error: RowError, attempts: int, raw: bytes, is_record: bool) -> None:
        """The row on line `number` has failed, after so many requests; raw: its own bytes."""
        self._to_stderr((number, self._describe(number, error, attempts, raw, is_record)))
        self.skip(number)

    def skip(self, number: int) -> None:
        """Line `number` yields nothing on stdout."""
        if self._order:
            self.answers({number: b""})

    def say(self, message: str) -> None:
        """A plain line on stderr."""
        self._to_stderr((0, f"llmfilter: {message}\n".encode("utf-8", "backslashreplace")))

    def _to_stderr(self, line: Line) -> None:
        self.size += size_of([line])
        self._stderr.put([line])

    async def room_for(self, number: int) -> None:
        """Return when the line of the row on line `number` may come."""
        if not self._has_room_for(number):
            await self.changed.until(lambda: self._has_room_for(number))

    def _has_room_for(self, number: int) -> bool:
        if self.is_over:
            return True
        # What waits for its turn must not keep the line out that it waits for.
        if self._order and number == self._order.next:
            return self.size - self._order.size < BUFFER_BYTES
        return self.size < BUFFER_BYTES

    def _emit_in_turn(self, numbered: Line) -> None:
        if numbered[1]:
            self._stdout.put([numbered])
        else:
            self.size -= _LINE_BYTES

    def _count_written(self, size: int) -> None:
        self.size -= size
        if self.failure:
            self.on_failure(self.failure)
        self.changed.notify()

    def release(self) -> None:
        """What is held back for its turn is written all the same: the run is over."""
        if self._order:
            self._order.release()

    @property
    def idle(self) -> bool:
        """Everything is written."""
        return self._stdout.idle and self._stderr.idle

    @property
    def failure(self) -> Exception | None:
        """Why a stream can't be written any more, or None."""
        return self._stdout.error or self._stderr.error

    @property
    def first_unwritten(self) -> int | None:
        """The lowest line number among the lines that are not written yet, or could not be."""
        lost = [(writer.lost_line or 0, b"") for writer in (self._stdout, self._stderr)]
        held = self._order.held() if self._order else []
        return lowest([*lost, *held, *self._stdout.waiting(), *self._stderr.waiting()])


class Order:
    """Holds lines back until those before them have come: `emit` gets them by number, from 1 on.

    An empty line only lets those behind it pass. next: the number whose turn it is; size: about the
    memory of what is held back.
    """

    def __init__(self, emit: Callable[[Line], None]) -> None:
        self._emit = emit
        self.next = 1
        self._held: dict[int, bytes] = {}
        self.size = 0

    def put(self, lines: dict[int, bytes]) -> bool:
        """Take lines; return whether it is another one's turn now."""
        self._held.update(lines)
        self.size += size_of(list(lines.items()))
        turn = self.next
        while self.next in self._held:
            self._release(self.next)
            self.next += 1
        return self.next > turn

    def release(self) -> None:
        """Emits what is held, in order, across the gaps of lines that never came."""
        for number in sorted(self._held):
            self._release(number)

    def held(self) -> list[Line]:
        """What is held back and has something to say."""
        return [(number, line) for number, line in self._held.items() if line]

    def _release(self, number: int) -> None:
        line = self._held.pop(number)
        self.size -= size_of([(number, line)])
        self._emit((number, line))


# What JSON lets stand unescaped and a terminal may obey: DEL and C1 (ECMA-48), in UTF-8.
_CONTROL = re.compile(rb"\x7f|\xc2[\x80-\x9f]")


def escape_controls(line: bytes) -> bytes:
    """JSON with these as escapes: it means the same."""
    return _CONTROL.sub(lambda match: b"\\u%04x" % match[0][-1], line)


def _show(text: str) -> bytes:
    return escape_controls(dump_text(text))


def error_line(number: int, error: RowError, attempts: int, raw: bytes, is_record: bool) -> bytes:
    """One line of JSON about a row that failed; `raw` are the row's own bytes, spliced in if it is a record."""
    parts = [b'{"line":%d,"error":"%b","message":%b' % (number, error.kind.encode(), _show(error.message))]
    if error.status is not None:
        parts.append(b',"status":%d' % error.status)
    if attempts:
        parts.append(b',"attempts":%d' % attempts)
    if error.raw:
        parts.append(b',"raw":' + _show(error.raw))
    parts.append(b',"input":' + (raw if is_record else _show(raw.decode("utf-8", "replace"))) + b"}\n")
    return b"".join(parts)
