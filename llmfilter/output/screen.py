"""What a person sees of a run: error lines, plain lines, and at the end of them a bar.

The loop makes each frame of the bar; a thread writes it, so that a stopped terminal stops nothing else.
"""

import os
import stat
import threading
from argparse import Namespace
from collections import deque
from collections.abc import Mapping
from contextlib import suppress

from llmfilter.errors import RowError
from llmfilter.output.error_lines import error_line, short_line
from llmfilter.output.neighbours import is_llmfilter, neighbours, open_process, reader_of, writes_on
from llmfilter.output.terminal import CLEAR, Terminal, find_terminal
from llmfilter.output.writer import Write
from llmfilter.words import plain_line
from llmfilter.worker import Batcher

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_CLOSE_S = 1.0


class Screen:
    """The terminal of a run, if there is one.

    write: to stderr.
    terminal: that stderr is, or that the user looks at though stderr leads elsewhere.
    is_shown: whether more is shown there than error lines: a summary, and what is said of the run.
    may_have_bar: whether there may be a bar.
    place: among the llmfilters of our pipe, from 1 on; 0 where there are no others.
    """

    def __init__(
        self, write: Write, terminal: Terminal | None, is_shown: bool, may_have_bar: bool, place: int = 0
    ) -> None:
        self._write = write
        self._terminal = terminal
        self._is_stderr = terminal is not None and terminal.is_stderr
        self.is_shown = is_shown and terminal is not None
        self._may_have_bar = may_have_bar and self.is_shown
        self._has_looked = False
        self.place = place
        self._name = f"llmfilter {place}" if place else "llmfilter"
        self._bar = b""
        self._writing = threading.Lock()
        self._is_closed = False
        self._lines: deque[bytes] = deque()  # that are not shown yet
        self._worker: Batcher[bytes] | None = None  # takes frames of the bar; a thread that few runs need

    @property
    def is_painted(self) -> bool:
        """Return whether it may be shown colours."""
        return self._terminal is not None and self._terminal.is_painted

    @property
    def columns(self) -> int:
        """Return how many characters fit into a line."""
        return self._terminal.columns if self._terminal else 0

    def describe(self, number: int, error: RowError, attempts: int, raw: bytes, is_record: bool) -> bytes:
        """Return the line of a row that failed: short on a terminal, else for programs."""
        if not (self._is_stderr and self._terminal):
            return error_line(number, error, attempts, raw, is_record)
        return short_line(self._terminal, number, error, raw, f"{self._name}: " if self.place else "")

    def plain(self, message: str) -> bytes:
        """Return a plain line for stderr; if that leads elsewhere, show it on the terminal too."""
        if self._is_stderr:
            return plain_line(message, self._name)
        if self.is_shown:
            self._lines.append(plain_line(message, self._name))
            self._hand_over(self._bar)
        return plain_line(message)

    def write(self, lines: bytes) -> None:
        """Write whole lines to stderr: on its terminal above the bar, also above that of another llmfilter."""
        if self._is_stderr and self._may_have_bar and self._terminal:
            with self._writing:
                self._write(CLEAR + lines + self._bar if self._terminal.is_ours else lines)
        else:
            self._write(lines)

    def has_bar(self) -> bool:
        """Return whether there is a bar: none where another program of our job has the terminal for its own output."""
        if self._may_have_bar and not self._has_looked and self._terminal:
            self._has_looked = True
            device = self._terminal.device
            self._may_have_bar = not any(writes_on(pid, device) for pid in neighbours() or [])
        return self._may_have_bar

    def show(self, text: str) -> None:
        """Draw the bar anew, unless another llmfilter has one on this terminal, or the last frame is not out yet."""
        terminal = self._terminal
        if terminal and (self._worker is None or self._worker.idle):
            self._is_closed = False
            if not (terminal.is_ours and terminal.claim()):
                text = ""
            if text or self._bar:
                self._hand_over(text.encode())
            if not text:
                terminal.release()

    def close(self) -> None:
        """Take the bar away, and show the lines that are left; leave it on a terminal that is stopped."""
        terminal = self._terminal
        if terminal and self._writing.acquire(timeout=_CLOSE_S):
            lines = self._take_lines()
            if (self._bar or lines) and not terminal.is_stopped:
                terminal.write(CLEAR * self._may_have_bar + lines)
            self._bar, self._is_closed = b"", True
            self._writing.release()
            terminal.release()

    def say(self, *messages: str) -> None:
        """Say plain lines, and wait until they are out: on the terminal, above the bar of another llmfilter."""
        if self._terminal:
            lines = b"".join(plain_line(message, self._name) for message in messages)
            self._terminal.write(CLEAR + lines if self._may_have_bar else lines)

    def say_last(self, *messages: str) -> None:
        """Say plain lines on stderr, and where else the user looks: in one piece, since a neighbour may speak too."""
        if self.is_shown and messages:
            self.say(*messages)
        if not (self._is_stderr and self.is_shown):
            with suppress(OSError):  # nobody listens; the exit status tells
                self._write(b"".join(map(plain_line, messages)))

    def reader(self) -> int | None:
        """Return a descriptor that becomes readable when the program ends that shows our stdout; None if none does."""
        pid = reader_of(_STDOUT, self._terminal.device) if self.is_shown and self._terminal else None
        return None if pid is None else open_process(pid)

    def _take_lines(self) -> bytes:
        return b"".join([self._lines.popleft() for _ in range(len(self._lines))])

    def _hand_over(self, bar: bytes) -> None:
        if self._worker is None:
            self._worker = Batcher(self._draw, lambda batch, error: None)
        self._worker.add([bar])

    def _draw(self, frames: list[bytes]) -> None:
        """Write the lines that are left, and below them the last frame."""
        with self._writing:
            lines = self._take_lines()
            self._bar = b"" if self._is_closed else frames[-1]
            if self._terminal and (lines or not self._is_closed):
                self._terminal.write(CLEAR * self._may_have_bar + lines + self._bar)


def make_screen(args: Namespace, environ: Mapping[str, str], write: Write) -> Screen:
    """Return the screen of a run; write: to stderr."""
    terminal = find_terminal(_STDERR, is_painted=not environ.get("NO_COLOR"))
    is_shown = not args.quiet and environ.get("TERM", "dumb") != "dumb"
    may_have_bar = not (os.isatty(_STDOUT) or args.dry_run or args.to_batch)
    return Screen(write, terminal, is_shown, may_have_bar, find_place() if terminal else 0)


def find_place() -> int:
    """Return which of the llmfilters in our pipe we are, counted from 1; 0 where there are no others."""
    if not any(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in (_STDIN, _STDOUT)):
        return 0
    others = [pid for pid in neighbours() or [] if is_llmfilter(pid)]
    return sum(pid < os.getpid() for pid in others) + 1 if others else 0
