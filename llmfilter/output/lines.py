"""Where rows end: lines to stdout and stderr, in the order they come or in the input's."""

from collections.abc import Callable
from typing import Protocol

from llmfilter.errors import RowError
from llmfilter.output.writer import LINE_BYTES, Line, Write, WriteNow, Writer, lowest, size_of
from llmfilter.worker import Change

BUFFER_BYTES = 1 << 20


class Stderr(Protocol):
    """What stderr is to lines: a file, or a terminal (Screen)."""

    def describe(self, number: int, error: RowError, attempts: int, raw: bytes, is_record: bool) -> bytes:
        """Return the line of a row that failed."""

    def plain(self, message: str) -> bytes:
        """Return a line about the whole run."""

    def write(self, lines: bytes) -> None:
        """Write whole lines; raise OSError."""


class Output:
    """Where rows end: answers on stdout, errors on stderr; with keep_order answers in input order.

    on_failure: called with the error when a stream can't be written any more.
    stdout_now: tried before `stdout`, which may wait; None where there is no such thing.
    changed: tells those who wait for room that there may be some; so may who makes room elsewhere.
    size: bytes that are not written yet.
    is_over: no line will come any more that others wait for, so that what is there comes out.
    """

    def __init__(
        self,
        stdout: Write,
        stderr: Stderr,
        keep_order: bool,
        on_failure: Callable[[Exception], None],
        stdout_now: WriteNow | None = None,
    ) -> None:
        self._describe = stderr.describe
        self._plain = stderr.plain
        self._on_failure = on_failure
        self.changed = Change()
        self.is_over = False
        self._stdout = Writer(stdout, self._count_written, stdout_now)
        self._stderr = Writer(stderr.write, self._count_written)
        self._order = Order(self._emit_in_turn) if keep_order else None
        self._waiting = 0  # rows that wait for room
        self.size = 0

    def answers(self, lines: dict[int, bytes]) -> None:
        """Print the answers to rows by their number, each with its newline."""
        if self._order:
            self.size += size_of(list(lines.items()))
            if self._order.put(lines):
                self.changed.notify()
        else:
            self._put(self._stdout, (next(iter(lines)), b"".join(lines.values())))

    def answer(self, number: int, line: bytes) -> None:
        """Print the answer to one row."""
        if self._order:
            self.answers({number: line})
        else:
            self._put(self._stdout, (number, line))

    def error(self, number: int, error: RowError, attempts: int, raw: bytes, is_record: bool) -> None:
        """Print that the row on line `number` has failed, after so many requests; raw: its own bytes."""
        self._put(self._stderr, (number, self._describe(number, error, attempts, raw, is_record)))
        self.skip(number)

    def skip(self, number: int) -> None:
        """Line `number` yields nothing on stdout."""
        if self._order:
            self.answers({number: b""})

    def say(self, message: str) -> None:
        """Print a plain line on stderr."""
        self._put(self._stderr, (0, self._plain(message)))

    def _put(self, writer: Writer, line: Line) -> None:
        self.size += len(line[1]) + LINE_BYTES
        writer.put(line)

    async def room_for(self, number: int) -> None:
        """Return when the line of the row on line `number` may come."""
        if not self._has_room_for(number):
            self._waiting += 1
            try:
                await self.changed.until(lambda: self._has_room_for(number))
            finally:
                self._waiting -= 1
                self.changed.notify()

    def is_free_for(self, number: int) -> bool:
        """Return whether the line of the row on line `number` may come, and no other has to be let out before."""
        return self._has_room_for(number) and (not self._waiting or self._is_awaited(number))

    def _has_room_for(self, number: int) -> bool:
        if self.size < BUFFER_BYTES or self.is_over:
            return True
        # What waits for its turn must not keep the line out that it waits for.
        return self._order is not None and self._is_awaited(number) and self.size - self._order.size < BUFFER_BYTES

    def _is_awaited(self, number: int) -> bool:
        return self._order is not None and number == self._order.next

    def _emit_in_turn(self, numbered: Line) -> None:
        if numbered[1]:
            self._stdout.put(numbered)
        else:
            self.size -= LINE_BYTES

    def _count_written(self, size: int) -> None:
        self.size -= size
        if self.failure:
            self._on_failure(self.failure)
        self.changed.notify()

    def finish(self) -> None:
        """Hold back no line any more for others that will not come; let all who wait look again."""
        self.is_over = True
        self.changed.notify()

    def release(self) -> None:
        """Write what is held back for its turn: the run is over."""
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
        """Emit what is held, in order, across the gaps of lines that never came."""
        for number in sorted(self._held):
            self._release(number)

    def held(self) -> list[Line]:
        """Return the lines that are held back."""
        return [(number, line) for number, line in self._held.items() if line]

    def _release(self, number: int) -> None:
        line = self._held.pop(number)
        self.size -= size_of([(number, line)])
        self._emit((number, line))
